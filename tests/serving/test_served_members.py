"""Several models served as one: each reads the slices its own way, and has its share."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import tensorflow as tf
import tiny_network
from served import pictures
from small_models import (
    CLASSES,
    COVARIATES,
    NETWORK,
    SIZE,
    description_of,
    model_of,
    recipe_of,
)

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStores
from medseq_tf.serving.description import Description
from medseq_tf.serving.export import export
from medseq_tf.serving.member_group import ServedMember, groups_of
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.open_model import open_model
from medseq_tf.serving.predict import predict

NEIGHBOURS = {**NETWORK, "input.size": 16, "input.neighbours": 1, "input.mean": 0.2}
ALL = {**NETWORK, "sequence.evaluation.policy": "all"}
PAPER = {**NETWORK, "sequence.evaluation.policy": "paper"}
BARE = {key: value for key, value in NETWORK.items() if "aggregator" not in key}
SAME = {**BARE, "model.aggregator.name": "mean"}
COUNTS = (1, 3, 9)


def member(weight, values, seed=0, outputs="labels"):
    recipe = recipe_of(values)
    return ServedMember(model_of(recipe, seed, outputs), recipe, weight)


def request(files):
    rows = [study + [files[0][0]] * (max(COUNTS) + 2 - len(study)) for study in files]
    return {"image_bytes": tf.constant(rows), "lengths": tf.constant([*map(len, files)])}


@functools.cache
def files():
    return [pictures(count, seed=count) for count in COUNTS]


def alone(one, description):
    return ServingModel([one._replace(weight=1.0)], description)


LABELS = [(0.35, NETWORK), (0.25, NEIGHBOURS), (0.2, SAME), (0.2, PAPER)]


@pytest.mark.parametrize(
    ("outputs", "chosen", "sizes"),
    [
        ("labels", LABELS, [2, 1, 1]),
        ("classes", [(0.6, NETWORK), (0.3, SAME), (0.1, ALL)], [2, 1]),
    ],
)
def test_the_probability_is_the_weighted_mean_also_after_each_slice(outputs, chosen, sizes):
    members = [member(*one, seed, outputs) for seed, one in enumerate(chosen)]
    description = description_of("uint8", outputs=outputs)
    served = ServingModel(members, description)
    assert [len(group.models) for group in groups_of(members, description)] == sizes
    found = served.serving_default(**request(files()))
    lean = served.probability(**request(files()))["probability"]
    own = [alone(one, description).serving_default(**request(files())) for one in members]
    for name in ("probability", "running_probability"):
        expected = sum(one.weight * each[name] for one, each in zip(members, own, strict=True))
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(lean, found["probability"], rtol=0, atol=1e-6)
    assert np.ptp([each["probability"] for each in own], axis=0).max() > 1e-2
    last = [found["running_probability"][i, n - 1] for i, n in enumerate(COUNTS)]
    np.testing.assert_allclose(last, found["probability"], rtol=0, atol=1e-6)
    if outputs == "classes":
        np.testing.assert_allclose(found["probability"].numpy().sum(axis=1), 1, atol=1e-6)


def test_tensors_are_taken_where_all_read_the_same(rng):
    members = [member(0.7, NETWORK, 1), member(0.3, ALL, 2)]
    served = ServingModel(members, description_of("uint8"))
    slices, lengths = rng.normal(size=(2, 5, 20, 20, 1)).astype(np.float32), np.int32([5, 2])
    inputs = {"slices": tf.constant(slices), "lengths": tf.constant(lengths)}
    expected = sum(one.weight * tf.sigmoid(one.model(inputs)) for one in members)
    found = served.serve_tensors(**inputs)["probability"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for other in (NEIGHBOURS, {**NETWORK, "input.mean": 0.4}):
        served = ServingModel([members[0], member(0.3, other)], description_of("uint8"))
        assert "serve_tensors" not in served.signatures
        assert set(served.signatures) >= {"serving_default", "probability", "describe"}


def test_each_member_is_told_the_covariates_that_it_reads():
    members = [
        member(0.5, NETWORK, 1),
        member(0.3, {**NEIGHBOURS, "model.covariates": ["age", "sex"]}, 2),
        member(0.2, {**NETWORK, "model.covariates": ["sex", "age"]}, 3),
    ]
    description = description_of("uint8", covariates=COVARIATES)
    served = ServingModel(members, description)
    known = np.float32([[63, 1], [np.nan, 0], [20, np.nan]])
    told = served.with_covariates(**request(files()), covariates=tf.constant(known))
    expected = 0
    for one in members:
        names = one.recipe.model.covariates
        listed = [c for name in names for c in COVARIATES if c["name"] == name]
        of_one = alone(one, description_of("uint8", covariates=listed or None))
        if names:
            order = [["age", "sex"].index(name) for name in names]
            inputs = {**request(files()), "covariates": tf.constant(known[:, order])}
            expected += one.weight * of_one.with_covariates(**inputs)["probability"]
        else:
            expected += one.weight * of_one.serving_default(**request(files()))["probability"]
    np.testing.assert_allclose(told["probability"], expected, rtol=0, atol=1e-6)
    without = served.serving_default(**request(files()))["probability"]
    assert np.abs(told["probability"] - without).max() > 1e-3


def frozen(weight, seed, *overrides):
    settings = [f"input.size={SIZE}", "model.encoder.frozen=all", *overrides]
    recipe = tiny_network.recipe(*settings)
    model = model_of(recipe, seed)
    network = model.encoder.network.model
    network.set_weights([np.full_like(value, 0.002) for value in network.get_weights()])
    return ServedMember(model, recipe, weight)


def test_the_very_same_backbone_is_there_and_runs_once(monkeypatch, tmp_path):
    tiny_network.install(monkeypatch)
    members = [
        frozen(0.4, 1),
        frozen(0.3, 2, "model.aggregator={name: mean}"),
        frozen(0.1, 3, "sequence.evaluation.policy=all"),
        frozen(0.2, 4, "input.grey_window=[120, 90]"),
    ]
    changed = members[2].model.encoder.network.model
    changed.set_weights([value + 0.001 for value in changed.get_weights()])
    description = description_of("uint8")
    owners = [owner for group in groups_of(members, description) for owner in group.owners]
    first = members[0].model
    assert [owner is first for owner in owners] == [True, True, False, True]
    served = ServingModel(members, description)
    size = lambda model: sum(int(np.prod(v.shape)) for v in model.weights)  # noqa: E731
    apart = [alone(one, description) for one in members]
    backbone = sum(int(np.prod(v.shape)) for v in first.encoder.backbone.variables)
    assert size(served) == sum(map(size, apart)) - 2 * backbone
    expected = sum(
        one.weight * own.serving_default(**request(files()))["probability"]
        for one, own in zip(members, apart, strict=True)
    )
    tf.saved_model.save(served, str(tmp_path), signatures=served.signatures)
    found = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](**request(files()))
    np.testing.assert_allclose(found["probability"], expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------- an automatic run


@pytest.fixture(scope="module")
def done(automatic, tmp_path_factory):
    return export(automatic, tmp_path_factory.mktemp("served") / "auto")


def keras_probability(run, prepared, row):
    stores = SliceStores(prepared)
    return sum(
        weight
        * study_probabilities(
            one.model(), stores.of(one.experiment), np.array([row]), one.experiment
        )[0]
        for one, weight in run.members
    )


def test_an_export_of_it_gives_the_members_mean(automatic, done, demo_data):
    assert done.difference <= 1e-5
    prepared = Prepared.load(demo_data)
    for model in (open_model(done.path), open_model(automatic)):
        for row in (0, 7):
            found = model.predict(prepared.encoded_slices(row), running=True)
            expected = keras_probability(automatic, prepared, row)
            np.testing.assert_allclose(found.probability, expected, rtol=0, atol=1e-5)
            np.testing.assert_allclose(found.running[-1], expected, rtol=0, atol=1e-5)
    assert "serve_tensors" not in tf.saved_model.load(str(done.path)).signatures
    recipe = (done.path / "assets" / "experiment.yaml").read_text("utf-8")
    assert recipe == automatic.experiment.to_yaml()


def test_it_says_how_many_it_is_and_calls_by_the_run_s_thresholds(automatic, done):
    text = (done.path / "assets" / "description.json").read_text("utf-8")
    description = Description.from_json(text)
    assert (description.name, description.members) == ("auto", 4)
    assert description.thresholds == automatic.thresholds
    assert description.temperatures == {"lesion": 1.25}
    assert description.shares == {"sequence": 0.5, "neighbours": 0.3, "mean": 0.2}
    alone = Description.of_run(automatic.members[0].run)
    assert alone.shares is None
    assert "shares" not in alone.to_json()
    assert Description.from_json(alone.to_json()) == alone
    assert json.loads(text)["fingerprint"] == automatic.info["fingerprint"]


def test_it_predicts_from_files(automatic, demo_data, tmp_path):
    prepared = Prepared.load(demo_data)
    folder = tmp_path / "study"
    folder.mkdir()
    for number, file in enumerate(prepared.encoded_slices(3)):
        (folder / f"{number:03}.png").write_bytes(file)
    (found,) = predict(automatic, folder, workers=1, running=True)
    expected = keras_probability(automatic, prepared, 3)
    np.testing.assert_allclose(found.probability, expected[0], rtol=0, atol=1e-5)
    assert found.positive == (found.probability >= automatic.thresholds["lesion"])
    assert len(found.running) == found.slices


@pytest.mark.slow
def test_an_export_of_classes(automatic_classes, class_data, tmp_path):
    done = export(automatic_classes, tmp_path / "model", data=class_data)
    assert done.difference <= 1e-5
    description = open_model(done.path).describe()
    assert description.labels == list(automatic_classes.classes.names)
    assert description.temperatures == {automatic_classes.classes.column: 1.25}
    assert set(CLASSES).isdisjoint(description.labels)


def test_a_run_of_no_members_is_no_model(automatic, tmp_path):
    from automatic_run import emptied

    run = emptied(automatic, tmp_path)
    for refuse in (lambda: export(run, tmp_path / "model"), lambda: open_model(run.path)):
        with pytest.raises(InputError, match=r"has no model \(nothing beats chance\)"):
            refuse()
    assert not (tmp_path / "model" / "1").exists()
