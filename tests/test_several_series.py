"""Studies of several series, from files to what is served: as channels, and one after the other."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tensorflow as tf
import tiny_network
from served import NAME, serving
from small_run import SMALL, run_small

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import InputError
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.explain.explainer import Explainer
from medseq_tf.evaluation.explain.explanation import PIXEL_METHODS
from medseq_tf.evaluation.explain.graphs import ModelGraphs
from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.evaluation.feature_store import FeatureStore
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.reporting import model_card
from medseq_tf.reporting.report import report
from medseq_tf.serving.export import export
from medseq_tf.serving.open_model import open_model
from medseq_tf.serving.predict import predict
from medseq_tf.training.pretraining import healthy
from medseq_tf.training.train import train

SIZE, PATIENTS = 32, 12
READ_AS = ("sequence", "channels")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """MR volumes of two series, on scales of their own, a file each."""
    root, rng = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    for patient in range(PATIENTS):
        for name, low in (("dwi", 0), ("adc", 3000)):
            values = low + rng.integers(0, 900, (3 + patient % 3, SIZE, SIZE))
            path = root / "scans" / f"p{patient}" / f"p{patient}_{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.int16)), str(path))
    rows = "".join(f"p{i},{i % 2}\n" for i in range(PATIENTS))
    (root / "labels.csv").write_text("patient_id,sick\n" + rows)
    return root


def prepared(scans, out, read_as):
    return prepare(
        "volumes",
        scans / "scans",
        out=out,
        labels=scans / "labels.csv",
        modality="MR",
        size=SIZE,
        series_as=read_as,
        series="dwi,adc",
        workers=1,
        progress=False,
    )


@pytest.fixture(scope="module", params=READ_AS)
def trained(request, scans, tmp_path_factory):
    """A data set, and a run whose answers tell series, slices and their order apart."""
    root = tmp_path_factory.mktemp(request.param)
    data = prepared(scans, root / "data", request.param)
    overrides = ["fit.epochs=1", "input.neighbours=1", "optimizer.learning_rate=0.03"]
    if request.param == "sequence":
        overrides.append("model.series_mark=true")
    return scans, data, run_small(data, root / "run", *overrides)


def of_the_run(run, data):
    """The run's probability of each study, by its place in the source."""
    source = dict(zip(data.studies["study_id"], data.studies["source"], strict=True))
    return {source[row.study]: row.probability for row in run.predictions.itertuples()}


def rows_of(trained):
    """The rows of the studies that the run has predicted."""
    _, data, run = trained
    return np.flatnonzero(data.studies["study_id"].isin(run.predictions["study"]))


def predicted(model, scans, **options):
    rows = list(predict(model, scans / "scans", workers=1, **options))
    assert [row.error for row in rows] == [None] * PATIENTS
    return {row.study.removeprefix(f"{scans / 'scans'}/"): row for row in rows}


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    _, data, run = trained
    return export(run, tmp_path_factory.mktemp("export") / NAME, data=data, warmup=True)


def test_files_get_the_run_s_probability_wherever_the_model_is(trained, exported):
    scans, data, run = trained
    expected = of_the_run(run, data)
    assert np.ptp(list(expected.values())) > 1e-3
    signatures = tf.saved_model.load(str(exported.path)).signatures
    with serving(signatures=signatures, with_grpc=True) as server:
        over_grpc = f"grpc://127.0.0.1:{server.grpc_port}/{NAME}"
        for model in (run, exported.path, server.address(), over_grpc):
            found = predicted(model, scans, running=model is run)
            for source, probability in expected.items():
                assert found[source].probability == pytest.approx(probability, abs=1e-5)
                if model is run:
                    steps = found[source].running
                    assert len(steps) == found[source].slices
                    assert steps[-1] == pytest.approx(probability, abs=1e-5)


@pytest.mark.slow
def test_the_export_is_checked_on_made_up_studies_too(trained, tmp_path):
    _, _, run = trained
    assert export(run, tmp_path / NAME).difference <= 1e-5


def test_a_model_says_its_series(trained, exported):
    _, data, _ = trained
    described = json.loads((exported.path / "assets" / "description.json").read_text())
    assert described["series"] == {"names": ["dwi", "adc"], "read_as": data.series.read_as}
    model = open_model(exported.path)
    assert model.describe().channels == data.channels
    row = rows_of(trained)[0]
    files = data.encoded_slices(row)
    with pytest.raises(InputError, match="is told no series" if data.channels > 1 else "1 entries"):
        model.predict(files, series=["dwi"])
    if data.marked_series:
        names = [data.series.names[number] for number in data.series_of(row)]
        told, without = (model.predict(files, series=s).probability[0] for s in (names, None))
        assert told == pytest.approx(
            of_the_run(trained[2], data)[data.studies["source"][row]], abs=1e-5
        )
        assert abs(told - without) > 1e-4
        unknown = model.predict(files, series=[None] * len(files))
        assert unknown.probability[0] == without
        with pytest.raises(InputError, match="series of slice 1 is none of dwi, adc"):
            model.predict(files, series=["dwi", "flair", *names[2:]])
        with pytest.raises(InputError, match="series of slice 0 is none"):
            model.predict(files, series=[2, *names[1:]])


def test_a_data_set_of_other_series_does_not_check_an_export(trained, tmp_path):
    _, data, run = trained
    without = {key: value for key, value in data.info.items() if key != "series"}
    other = dataclasses.replace(data, info=without)
    with pytest.raises(InputError, match="studies are one stack each, those of the run series dwi"):
        export(run, tmp_path / NAME, data=other)


def test_a_cohort_of_other_series_is_one_line(trained):
    _, data, run = trained
    without = {key: value for key, value in data.info.items() if key != "series"}
    turned = {**data.info, "series": {**data.info["series"], "names": ["adc", "dwi"]}}
    for info, has in ((without, "one stack each"), (turned, "series adc, dwi as")):
        other = dataclasses.replace(data, info=info)
        words = f"{has}.*the model knows series dwi, adc as.*prepare it again"
        with pytest.raises(InputError, match=words):
            evaluate(run, other, split="all")
        with pytest.raises(InputError, match=words):
            Explainer(run, other, [])


def test_an_explanation_knows_the_series_of_each_slice(trained):
    _, data, run = trained
    row = rows_of(trained)[0]
    study_id = data.studies["study_id"][row]
    explainer = Explainer(run, data, [study_id])
    study, model, series = explainer.shown(study_id), run.model(), data.series_of(row)
    last = study.length - 1
    sequences = [np.array(positions) for positions in ([0], [last], [0, last], [last, 1, 1, 0])]
    found = study.probabilities_of(sequences)
    for sequence, probability in zip(sequences, found, strict=True):
        slices = tf.gather(study.inputs, sequence)[None]
        inputs = {"slices": slices, "lengths": np.array([len(sequence)], np.int32)}
        if data.marked_series:
            inputs["series"] = series[sequence][None]
        np.testing.assert_allclose(probability, tf.sigmoid(model(inputs))[0], atol=1e-6)
        np.testing.assert_allclose(study.running(sequence)[-1], probability, atol=1e-6)
        whole = study.graphs.whole_logits(tf.repeat(slices, 2, 0), study.told_of(sequence[None]))
        np.testing.assert_allclose(tf.sigmoid(whole), [probability] * 2, atol=1e-6)
        with tf.GradientTape() as tape:
            tape.watch(slices)
            logit = model({**inputs, "slices": slices})[0, 0]
        gradient = study.graphs.gradient(slices, 0, study.told_of(sequence[None]))
        np.testing.assert_allclose(gradient, tape.gradient(logit, slices), atol=1e-5)
    explanation = explainer.explain(study_id, pixels=PIXEL_METHODS)
    predicted = of_the_run(run, data)[data.studies["source"][row]]
    assert explanation.probabilities["sick"] == pytest.approx(predicted, abs=1e-5)
    assert explanation.slices["running"].dropna().iloc[-1] == pytest.approx(predicted, abs=1e-5)
    if data.marked_series:
        names = np.array(data.series.names)[series]
        assert explanation.slices["series"].tolist() == names.tolist()
        titles = [axis.get_title() for axis in explanation.sheet().axes]
        shown = explanation.shown_slices()["slice"]
        assert [title for title in titles if title] == [f"{i} {names[i]}" for i in shown]
    else:
        assert "series" not in explanation.slices
        assert explanation.notes[-1].startswith("pictures show dwi; the model sees dwi, adc")
        stored = data.slices(row)[..., 0]
        low, high = np.quantile(stored, run.experiment.input.percentiles)
        expected = np.clip((stored - low) / (high - low), 0, 1)
        np.testing.assert_allclose(explanation.images, expected, atol=1e-4)


def test_attention_is_that_of_marked_slices(scans, tmp_path):
    settings = recipes.load(
        recipes.Experiment(),
        [*SMALL, "model.aggregator={name: attention}", "model.series_mark=true"],
    )
    data = prepared(scans, tmp_path / "data", "sequence")
    shape = settings.input.slice_shape()
    model = models.build(settings.model, shape, 1, seed=0, series=data.marked_series)
    study = ShownStudy(ModelGraphs(model, settings), SliceStore(data, settings), 0)
    sequence = np.arange(study.length)
    before = study.attention(sequence)
    model.series_mark.marks.assign(
        np.random.default_rng(0).normal(size=model.series_mark.marks.shape)
    )
    assert np.abs(study.attention(sequence) - before).max() > 1e-3


def test_the_report_and_the_model_card_say_the_series(trained):
    _, data, run = trained
    words = {
        "sequence": "series dwi, adc as a sequence, each slice with a learned mark",
        "channels": "series dwi, adc as channels",
    }[data.series.read_as]
    assert words in model_card.card(run)
    page = report(run, data, images=True).read_text("utf-8")
    assert words in page


def test_features_are_marked_as_slices_are(scans, tmp_path, monkeypatch):
    tiny_network.install(monkeypatch)
    data = prepared(scans, tmp_path / "data", "sequence")
    marked = ["model.series_mark=true", "fit.epochs=1", "input.neighbours=1"]
    recipe = tiny_network.recipe(*marked, "model.encoder.frozen=all")
    run = train(recipe, data, tmp_path / "run", track=False, verbose=False)
    model, store = run.model(), SliceStore(data, recipe)
    model.series_mark.marks.assign(np.ones_like(model.series_mark.marks))
    rows = np.arange(len(data))
    by_slices = study_probabilities(model, store, rows, recipe)
    features = FeatureStore(model, store, recipe)
    by_features = study_probabilities(model, store, rows, recipe, features)
    np.testing.assert_allclose(by_features, by_slices, atol=1e-5)


def test_pretraining_on_several_channels_is_one_line(scans, tmp_path):
    data = prepared(scans, tmp_path / "data", "channels")
    with pytest.raises(InputError, match="slices of one channel, these have 2"):
        healthy(data, np.arange(len(data)))


@pytest.mark.parametrize("marked", [True, False])
def test_only_the_mark_tells_which_series_shows_a_finding(tmp_path, marked):
    """One picture a series, one of the two with a bright square; sick: in the first of them."""
    rng = np.random.default_rng(0)
    for patient in range(24):
        for number, series in enumerate(("a", "b")):
            picture = rng.integers(0, 40, (16, 16), np.uint8)
            if patient % 2 == number:
                picture[4:12, 4:12] += 200
            folder = tmp_path / "scans" / f"p{patient}" / series
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / "0.png"), picture)
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,sick\n" + "".join(f"p{i},{1 - i % 2}\n" for i in range(24)))
    data = prepare(
        "image-folder",
        tmp_path / "scans",
        out=tmp_path / "data",
        labels=labels,
        size=16,
        series_as="sequence",
        workers=1,
        progress=False,
    )
    run = run_small(
        data,
        tmp_path / "run",
        "input.size=16",
        "sequence.policy=all",
        "model.aggregator={name: slice_scores}",
        "model.head.units=[8]",
        f"model.series_mark={str(marked).lower()}",
        "augment={}",
        "optimizer.learning_rate=0.02",
        "fit.epochs=30",
        "fit.patience=null",
    )
    store = SliceStore(data, run.experiment)
    found = study_probabilities(run.model(), store, np.arange(24), run.experiment)[:, 0]
    sick = data.labels[:, 0] == 1
    if marked:
        assert found[sick].min() > 0.8
        assert found[~sick].max() < 0.2
    else:
        assert abs(found[sick].mean() - found[~sick].mean()) < 0.1
