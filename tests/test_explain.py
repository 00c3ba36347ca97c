"""Explanations: exact where they claim to be, true to the model, and better than chance."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from small_run import SMALL, run_small

import medseq_tf
from medseq_tf import experiment as recipes
from medseq_tf import explain, models
from medseq_tf.errors import InputError
from medseq_tf.pipeline import SliceStore
from medseq_tf.prepared import Prepared

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
            network = explain._Network(model, recipe)
            made[kind] = explain._Reader(network, SliceStore(prepared, recipe), 3)
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


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_up_to_eight_slices_every_part_is_shown_once(count):
    parts = explain.parts_of(count)
    expected = set(itertools.product([False, True], repeat=count)) - {(False,) * count}
    assert {tuple(part) for part in parts.tolist()} == expected
    assert len(parts) == len(expected)


@pytest.mark.parametrize("count", [9, 40, 200])
def test_above_that_parts_are_drawn_with_their_complements(count):
    parts = explain.parts_of(count)
    assert len(parts) >= max(250, 4 * count - 4)
    assert parts.any(axis=1).all()
    complements = {tuple(~part) for part in parts if not part.all()}
    assert complements <= {tuple(part) for part in parts}
    np.testing.assert_array_equal(parts, explain.parts_of(count))


def game(reader, monkeypatch, worth):
    """Let the model's answer be `worth(positions)`."""
    answers = lambda parts: np.array([[worth(list(part))] for part in parts])  # noqa: E731
    monkeypatch.setattr(reader, "answers", answers)
    return reader


@pytest.mark.parametrize("count", [5, 12])
def test_what_slices_add_up_to_is_found_exactly(readers, monkeypatch, count):
    values = np.random.default_rng(0).normal(size=count)
    reader = game(readers("shared"), monkeypatch, lambda part: values[part].sum() + 0.3)
    found = reader._banzhaf(np.arange(count))
    np.testing.assert_allclose(found[:, 0], values, atol=1e-9)


def test_two_slices_of_one_lesion_share_its_importance_and_occlusion_sees_neither(
    readers, monkeypatch
):
    reader = game(readers("shared"), monkeypatch, lambda part: float(0 in part or 3 in part))
    importance = reader._banzhaf(np.arange(6))[:, 0]
    # Banzhaf: a lesion slice decides when the other is absent, in half of the parts (up to the
    # empty part, which no model can be shown).
    np.testing.assert_allclose(importance[[0, 3]], 0.5, atol=0.03)
    np.testing.assert_allclose(importance[[1, 2, 4, 5]], 0, atol=0.03)
    np.testing.assert_array_equal(reader._occlusion(np.arange(6)), 0)


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
    network = explain._Network(model, recipe)
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
    layer = explain._last_maps(reader.model.encoder)
    inside = keras.Model(network.model.inputs, [layer.output, network.model.output])
    expected, _ = inside(network.preprocess(255.0 * tf.repeat(images, 3, axis=-1)), training=False)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-4)
    assert maps.shape[1] > 1


def test_the_model_is_as_before(readers):
    """What records the maps leaves no trace in the layers."""
    reader = readers("shared")
    layer = explain._last_maps(reader.model.encoder)
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


def test_a_perfect_explanation_scores_one_and_its_reverse_nothing(run, demo_data, prepared):
    explainer = explain._Explainer(run, prepared, prepared.studies["study_id"].tolist())
    for name in prepared.studies["study_id"]:
        masks = prepared.masks(explainer.row_of[name])
        shown = explainer.reader(name).distinct
        lesion = masks[shown].any(axis=(1, 2))
        if lesion.any() and lesion.sum() * 2 < len(lesion):
            break
    found = explainer.explain(name)
    mine = found.slices["shown"] > 0
    found.slices.loc[mine, "importance"] = lesion.astype(float)
    found.slices.loc[mine, "alone"] = -lesion.astype(float)
    judged = explain._judged(found, explainer.reader(name), masks, lesion, 0)
    figures = {method: values for method, values, _ in judged}
    assert (figures["importance"]["slice_hit"], figures["importance"]["top_k"]) == (1, 1)
    assert (figures["alone"]["slice_hit"], figures["alone"]["top_k"]) == (0, 0)


def test_without_masks_quality_says_so(run, tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(Prepared, "masks", lambda self, row, indices=None: None)
    with pytest.raises(InputError, match="no positive test study with a lesion mask"):
        explain.quality(run, prepared)
