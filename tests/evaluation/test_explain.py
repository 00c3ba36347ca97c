"""Explanations: exact where they claim to be, true to the model, and better than chance."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from small_run import SMALL, run_small

import medseq_tf
from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain import explain, explainer
from medseq_tf.evaluation.explain import quality as explanation_quality
from medseq_tf.evaluation.explain.explainer import Explainer, Graphs, ShownStudy
from medseq_tf.input.slice_store import SliceStore

KERAS = (
    "model.encoder.name=keras_application",
    "model.encoder.network=VGG16",
    "model.encoder.weights=none",
    "input.mean=0",
    "input.std=1",
)
WEIGHTS = {
    "shared": SMALL,
    "per position": (
        *SMALL,
        "model.encoder.weights=per_position",
        "model.encoder.positions=6",
        "sequence.policy=even",
    ),
    "frozen": tuple(s for s in SMALL if "encoder" not in s) + KERAS,
    "attention": (
        *(s for s in SMALL if "aggregator" not in s),
        "model.aggregator.name=attention",
    ),
}


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture(scope="module")
def readers(prepared):
    """A study before a model of random weights, by kind of model; made once each."""
    made = {}

    def reader(kind):
        if kind not in made:
            recipe = recipes.load(recipes.Experiment(), WEIGHTS[kind])
            model = models.build(recipe.model, (32, 32, 1), labels=1, seed=1)
            network = Graphs(model, recipe)
            made[kind] = ShownStudy(network, SliceStore(prepared, recipe), 3)
        return made[kind]

    return reader


@pytest.fixture(scope="module")
def run(demo_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    return run_small(demo_data, out, "fit.epochs=4", "optimizer.learning_rate=0.01")


def probability(reader, slices):
    return tf.sigmoid(logits(reader, tf.gather(reader.inputs, slices))).numpy()


def logits(reader, slices):
    lengths = np.array([len(slices)], np.int32)
    return reader.model({"slices": slices[None], "lengths": lengths}, training=False)[0]


# ---------------------------------------------------------------------------------- slices


def game(reader, monkeypatch, worth, *sequences):
    """Let the model's answer be `worth(positions)` of the study shown as these sequences."""
    answers = lambda parts: np.array([[worth(list(part))] for part in parts])  # noqa: E731
    monkeypatch.setattr(reader, "answers", answers)
    monkeypatch.setattr(reader, "sequences", list(sequences))
    return reader


@pytest.mark.parametrize("count", [5, 14])
def test_what_slices_add_up_to_is_found_exactly(readers, monkeypatch, count):
    values = np.random.default_rng(0).normal(size=count)
    one = game(
        readers("shared"), monkeypatch, lambda part: values[part].sum() + 0.3, np.arange(count)
    )
    found = one.importance(np.array([0.3]), [0])
    np.testing.assert_allclose(found.values[:count, 0], values, atol=1e-9)


def test_two_slices_of_one_lesion_share_its_importance_and_occlusion_sees_neither(
    readers, monkeypatch
):
    one = game(
        readers("shared"), monkeypatch, lambda part: float(0 in part or 3 in part), np.arange(6)
    )
    importance = one.importance(np.array([0.0]), [0]).values[:6, 0]
    # A lesion slice decides when the other is absent, in half of the parts.
    np.testing.assert_allclose(importance, [0.5, 0, 0, 0.5, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(one._occlusion(np.arange(6)), 0)


def test_a_study_of_several_sequences_gets_the_mean_over_those_that_show_a_slice(
    readers, monkeypatch
):
    shown = np.array([0, 1, 2]), np.array([2, 3])
    one = game(readers("shared"), monkeypatch, lambda part: 0.1 * sum(part) + 0.2, *shown)
    found = one.importance(np.array([0.2]), [0])
    np.testing.assert_allclose(found.values[:4, 0], [0, 0.1, 0.2, 0.3], atol=1e-9)
    assert np.isnan(found.values[4:]).all()
    assert found.parts == 7 + 3


@pytest.mark.parametrize("kind", ["shared", "per position", "frozen", "attention"])
def test_a_slice_is_left_out_exactly(readers, kind):
    reader = readers(kind)
    sequence = reader.sequences[0]
    whole = probability(reader, sequence)
    found = reader._occlusion(sequence)
    for number, slice_ in enumerate(sequence):
        without = probability(reader, sequence[sequence != slice_])
        np.testing.assert_allclose(found[number], whole - without, atol=2e-6)
    np.testing.assert_allclose(reader.probabilities(), whole, atol=2e-6)


@pytest.mark.parametrize("kind", ["shared", "per position"])
def test_the_running_probability_is_that_of_the_slices_so_far(readers, kind):
    reader = readers(kind)
    sequence = reader.sequences[0]
    expected = [probability(reader, sequence[: i + 1]) for i in range(len(sequence))]
    np.testing.assert_allclose(reader._running(sequence), expected, atol=1e-5)


def test_a_slice_that_stands_twice_is_left_out_twice(readers):
    reader = readers("shared")
    found = reader._occlusion(np.array([1, 1, 4, 7]))
    expected = probability(reader, [1, 1, 4, 7]) - probability(reader, [4, 7])
    assert len(found) == 3
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_attention_weights_are_those_of_the_aggregator(readers):
    table = readers("attention").slice_table()
    shown = table[table["shown"] > 0]
    assert shown["attention"].sum() == pytest.approx(1, abs=1e-5)
    assert (shown["attention"] > 0).all()
    assert "attention" not in readers("shared").slice_table()


# ---------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("kind", ["shared", "per position", "frozen"])
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(readers, kind):
    reader = readers(kind)
    sequence = reader.sequences[0]
    heat, missed = reader.integrated_gradients(0, steps=64)
    black = tf.zeros_like(reader.inputs) + reader.black
    ends = [logits(reader, tf.gather(part, sequence))[0] for part in (reader.inputs, black)]
    difference = float(ends[0] - ends[1])
    assert np.nansum(heat) == pytest.approx(difference, rel=0.1, abs=2e-3)
    assert missed == pytest.approx(abs(np.nansum(heat) - difference) / abs(difference), abs=0.02)
    assert np.isnan(np.delete(heat, sequence, axis=0)).all()


@pytest.mark.parametrize("kind", ["shared", "per position", "frozen"])
def test_every_slice_shown_has_a_heat_map(readers, kind):
    reader = readers(kind)
    heat = reader.grad_cam(0)
    assert heat.shape == tuple(reader.inputs.shape[:3])
    shown = heat[reader.sequences[0]]
    assert np.isfinite(shown).all()
    assert (shown >= 0).all()
    assert np.isnan(np.delete(heat, reader.sequences[0], axis=0)).all()


def test_grad_cam_of_a_linear_model_is_its_weighted_maps(readers):
    """Average pooling, mean over slices, one linear layer: the weights are known by hand."""
    overrides = ("model.encoder.pooling=average", "model.aggregator.name=mean",
                 "model.head.units=[]")  # fmt: skip
    base = tuple(s for s in SMALL if "aggregator" not in s and "head" not in s)
    recipe = recipes.load(recipes.Experiment(), (*base, *overrides))
    model = models.build(recipe.model, (32, 32, 1), labels=1, seed=2)
    images = np.random.default_rng(0).random((4, 32, 32, 1)).astype(np.float32)
    network = Graphs(model, recipe)
    maps, gradient = network.maps_and_gradient(images, 0)
    kernel = model.head.logits.kernel.numpy()[:, 0]
    places = maps.shape[1] * maps.shape[2]
    expected = np.broadcast_to(kernel / (4 * places), maps.shape)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    pooled = maps.numpy().mean(axis=(0, 1, 2)) @ kernel + model.head.logits.bias.numpy()
    np.testing.assert_allclose(network.whole(images[None])[0], pooled, atol=1e-5)


def test_the_maps_of_a_keras_network_are_those_of_its_last_convolution(readers):
    reader = readers("frozen")
    network = reader.model.encoder.network
    images = tf.gather(reader.inputs, reader.sequences[0])
    maps, _ = reader.network.maps_and_gradient(images, 0)
    layer = explainer._last_maps(reader.model.encoder)
    inside = keras.Model(network.model.inputs, [layer.output, network.model.output])
    expected, _ = inside(network.preprocess(255.0 * tf.repeat(images, 3, axis=-1)), training=False)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-4)
    assert maps.shape[1] > 1


def test_the_model_is_as_before(readers):
    """What records the maps leaves no trace in the layers."""
    reader = readers("shared")
    layer = explainer._last_maps(reader.model.encoder)
    before = probability(reader, reader.sequences[0])
    reader.grad_cam(0)
    assert "call" not in vars(layer)
    np.testing.assert_array_equal(probability(reader, reader.sequences[0]), before)


# ---------------------------------------------------------------------------------- a run


def test_a_study_is_explained_by_slice_and_pixel(run, demo_data, prepared):
    name = run.splits["test"][0]
    found = explain.study(run, demo_data, name, pixels=explain.PIXEL_METHODS)
    stored = run.predictions.set_index("study").loc[name]
    assert found.probabilities["lesion"] == pytest.approx(stored["probability"], abs=1e-5)
    assert found.thresholds == run.thresholds
    count = int(prepared.studies.set_index("study_id").loc[name, "slices"])
    assert found.slices["slice"].tolist() == list(range(count))
    shown = found.of()
    assert len(shown) == 6
    assert (
        shown[["importance", "occlusion", "alone", "running", "gradients"]].notna().all(axis=None)
    )
    assert shown["running"].iloc[-1] == pytest.approx(stored["probability"], abs=1e-5)
    assert set(found.heat) == {(m, "lesion") for m in explain.PIXEL_METHODS}
    sums = np.nansum(found.heat["integrated_gradients", "lesion"], axis=(1, 2))
    np.testing.assert_allclose(found.slices["gradients"].fillna(0), sums, atol=1e-6)
    assert (found.top(2)["importance"].to_numpy() == np.sort(shown["importance"])[::-1][:2]).all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.curves().axes
    assert len(found.sheet(columns=4).axes) == 8
    assert name in found.alternative()
    again = explain.study(run, demo_data, name, pixels=explain.PIXEL_METHODS)
    pd.testing.assert_frame_equal(found.slices, again.slices)


def test_the_command_writes_figures_and_a_table(run, demo_data, tmp_path):
    found = medseq_tf.explain(run, demo_data, out=tmp_path / "out")
    assert {file.suffix for file in found.files} == {".csv", ".png"}
    assert all(file.stat().st_size for file in found.files)
    for one in found.studies:
        table = pd.read_csv(tmp_path / "out" / f"{one.study}.csv")
        assert len(table) == len(one.slices)
        assert one.study in found.text()


def test_the_surest_wrong_ones_are_chosen_then_a_right_one_of_each_class():
    table = pd.DataFrame(
        {
            "study": list("abcdefg"),
            "split": "test",
            "label": "lesion",
            "truth": [1.0, 0, 1, 0, 1, 0, np.nan],
            "probability": [0.1, 0.9, 0.45, 0.2, 0.8, 0.4, 0.99],
            "threshold": 0.5,
        }
    )
    table["positive"] = table["probability"] >= table["threshold"]
    assert explain.choose(table) == ["a", "b", "c", "e", "d"]
    assert explain.choose(table, wrong=1) == ["a", "e", "d"]
    called = table["positive"]
    again = table.assign(repeat=2, positive=~called, probability=1 - table["probability"])
    repeated = pd.concat([table.assign(repeat=1), again])
    assert explain.choose(repeated) == explain.choose(table), "the first repeat alone"


def test_of_repeated_folds_the_first_to_test_a_study_explains_it():
    folds = [SimpleNamespace(splits={"test": names}) for names in (["a"], ["b"], ["b", "a"])]
    parts = Explainer._parts(SimpleNamespace(folds=folds), ["a", "b"])
    assert parts == {"a": folds[0], "b": folds[1]}


def test_the_base_is_the_mean_answer_to_the_validation_studies(run, demo_data):
    name = run.splits["test"][0]
    found = explain.study(run, demo_data, name)
    table = run.predictions
    base = table[table["split"] == "validation"]["probability"].mean()
    assert found.base == {"lesion": pytest.approx(base)}
    shown = found.of()
    assert found.parts == 2**6 - 1
    np.testing.assert_array_equal(shown["importance_low"], shown["importance"])
    assert f"no slice: {base:.3f}" in explain.Explained([found], []).text()


def test_the_importance_of_an_only_slice_is_the_answer_less_the_base(run, demo_data, monkeypatch):
    monkeypatch.setattr(
        explainer.sequences, "evaluation_sequences", lambda length, settings: [np.array([4])]
    )
    found = explain.study(run, demo_data, run.splits["test"][0])
    (row,) = found.of().to_dict(orient="records")
    expected = found.probabilities["lesion"] - found.base["lesion"]
    assert row["importance"] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(row["occlusion"])


def test_a_long_study_has_intervals_and_says_which_slices_are_not_told_apart(
    run, demo_data, monkeypatch
):
    """Three slices of equal weight are ahead of the others."""
    monkeypatch.setattr(
        explainer.sequences, "evaluation_sequences", lambda length, settings: [np.arange(length)]
    )

    def answers(self, parts):
        rng = np.random.default_rng([len(parts), len(parts[0])])
        lesion = np.array([[float(np.isin([2, 5, 9], part).sum())] for part in parts])
        return 0.2 * lesion + rng.normal(0, 0.1, (len(parts), 1))

    monkeypatch.setattr(ShownStudy, "answers", answers)
    found = explain.study(run, demo_data, run.splits["test"][0], pixels=[])
    assert sorted([*found.top(1)["slice"], *found.ties["lesion"]]) == [2, 5, 9]
    shown = found.of().set_index("slice")
    assert (shown["importance_low"] < shown["importance"]).all()
    assert (shown["importance_high"] > shown["importance"]).all()
    assert any("cannot be told apart from" in note for note in found.notes)
    assert " to +0.2" in explain.Explained([found], []).text()
    assert "not told apart" in found.alternative()
    assert found.curves().axes


def test_a_wrong_method_is_said_for_several_studies_too(run, demo_data):
    pairs = [(name, "lesion") for name in run.splits["test"][:2]]
    with pytest.raises(InputError, match="pixels = 'magic': expected grad_cam or integrated"):
        explain.studies(run, demo_data, pairs, pixels=["magic"])
    with pytest.raises(InputError, match="label = 'tumour'"):
        explain.studies(run, demo_data, [(run.splits["test"][0], "tumour")])
    assert len(explain.studies(run, demo_data, pairs)) == 2


def test_answers_that_are_no_numbers_are_no_negative_ones(run, demo_data, monkeypatch):
    logits = ShownStudy._logits
    monkeypatch.setattr(ShownStudy, "_logits", lambda *arguments: logits(*arguments) * np.nan)
    name = run.splits["test"][0]
    with pytest.raises(InputError, match=f"{name}.*no numbers"):
        explain.study(run, demo_data, name)


def test_quality_knows_its_methods_whatever_the_studies(run, demo_data):
    with pytest.raises(InputError, match="pixels = 'magic': expected grad_cam or integrated"):
        explain.quality(run, demo_data, pixels=["magic"])


def test_without_validation_studies_the_base_is_the_mean_of_the_others(
    run, demo_data, prepared, monkeypatch
):
    table = run.predictions
    table = table[table["split"] == "test"]
    monkeypatch.setattr(type(run), "predictions", table)
    every = Explainer(run, prepared, run.splits["test"][:1])
    base, note = every.base(run)
    assert base == {"lesion": pytest.approx(table["probability"].mean())}
    assert "no validation studies" in note
    monkeypatch.setattr(type(run), "predictions", table[:0])
    assert every.base(run)[0] == {"lesion": 0.5}


def test_a_study_that_cannot_be_read_is_left_out_of_several(run, demo_data, monkeypatch):
    first, second = run.splits["test"][:2]
    read = Prepared.slices

    def damaged(self, row, indices=None):
        if self.studies["study_id"].iat[row] == first:
            raise InputError(f"study {first} is damaged")
        return read(self, row, indices)

    monkeypatch.setattr(Prepared, "slices", damaged)
    found = explain.studies(run, demo_data, [(first, "lesion"), (second, "lesion")])
    assert [one.study for one in found] == [second]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"study_id": "nobody"}, "has no study 'nobody'"),
        ({"label": "tumour"}, "label = 'tumour': expected one of lesion"),
        ({"pixels": ["magic"]}, "pixels = 'magic': expected grad_cam or integrated_gradients"),
    ],
)
def test_what_cannot_be_explained_is_said(run, demo_data, arguments, message):
    with pytest.raises(InputError, match="label = 'x'"):
        explain.explain(run, demo_data, label="x")
    with pytest.raises(InputError, match="seed = -1: expected a whole number"):
        explain.explain(run, demo_data, seed=-1)
    arguments = {"study_id": run.splits["test"][0]} | arguments
    with pytest.raises(InputError, match=message):
        explain.study(run, demo_data, **arguments)


# -------------------------------------------------------------------------------- quality


def test_quality_is_measured_against_masks_and_chance(run, demo_data, prepared):
    found = explain.quality(run, demo_data, "test")
    table = found.table.set_index("method")
    assert {"importance", "occlusion", "alone", "gradients", "random"} <= set(table.index)
    assert set(explain.PIXEL_METHODS) <= set(table.index)
    assert table.loc["random", "slice_hit"] == table.loc["random", "top_k"]
    assert 0 < table.loc["random", "pixel_hit"] < 0.3
    values = table.drop(columns="studies").stack().dropna()
    assert values.between(0, 1).all()
    starts = found.deletion.groupby("method")["probability"].first()
    assert starts.nunique() == 1
    assert found.figure().axes
    assert "studies with a lesion" in found.text()
    middles = []
    every = Explainer(run, prepared, run.splits["test"])
    for name in run.splits["test"]:
        shown, masks = every.shown(name).distinct, prepared.masks(every.row_of[name])
        lesion = None if masks is None else masks[shown].any(axis=(1, 2))
        if lesion is not None and lesion.any() and not lesion.all():
            middles.append(lesion[len(lesion) // 2])
    assert table.loc["middle", "slice_hit"] == pytest.approx(np.mean(middles))
    assert f"the middle slice shows a lesion in {np.mean(middles):.0%}" in found.text()


def test_a_perfect_explanation_scores_one_and_its_reverse_nothing(run, demo_data, prepared):
    every = Explainer(run, prepared, prepared.studies["study_id"].tolist())
    for name in prepared.studies["study_id"]:
        masks = prepared.masks(every.row_of[name])
        shown = every.shown(name).distinct
        lesion = masks[shown].any(axis=(1, 2))
        if lesion.any() and lesion.sum() * 2 < len(lesion):
            break
    found = every.explain(name)
    mine = found.slices["shown"] > 0
    found.slices.loc[mine, "importance"] = lesion.astype(float)
    found.slices.loc[mine, "alone"] = -lesion.astype(float)
    judged = explanation_quality._judged(found, every.shown(name), masks, lesion, 0)
    figures = {method: values for method, values, _ in judged}
    assert (figures["importance"]["slice_hit"], figures["importance"]["top_k"]) == (1, 1)
    assert (figures["alone"]["slice_hit"], figures["alone"]["top_k"]) == (0, 0)


def test_without_masks_quality_says_so(run, tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(Prepared, "masks", lambda self, row, indices=None: None)
    with pytest.raises(InputError, match="no positive test study with a lesion mask"):
        explain.quality(run, prepared)
