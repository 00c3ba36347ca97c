"""Covariates: standardised, one-hot, learned where missing, and joined before the head."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from model_checks import check_padding, check_round_trip, randomize_moving_statistics
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.models import Covariates
from medseq_tf.runs.model_file import load_model_file

SHAPE = (20, 20, 1)
LENGTHS = np.array([5, 1, 3], "int32")
KINDS = {"age": {"kind": "number"}, "sex": {"kind": "category", "categories": ["f", "m", "x"]}}
CONVOLUTIONS = {"filters": [3], "kernels": [5], "strides": [2], "paddings": [0]}
AGGREGATORS = {
    "bilstm": {"name": "lstm", "units": 4, "layers": 1},
    "one_way": {"name": "gru", "units": 4, "bidirectional": False, "readout": "last"},
    "slice_scores": {"name": "slice_scores"},
    "study_scores": {"name": "slice_scores", "target": "study", "pooling": "log_sum_exp"},
    "attention": {"name": "attention", "units": 4},
}


def layer(values=None, names=("age", "weight", "sex")):
    made = Covariates(names, [None, None, ["f", "m", "x"]])
    made.build((None, 3))
    if values is not None:
        made.standardise(values)
    return made


@pytest.fixture
def values(rng):
    columns = [rng.normal(60, 10, 30), rng.normal(4000, 900, 30), rng.integers(0, 3, 30)]
    return np.stack(columns, axis=1).astype("float32")


def test_features_are_those_of_scikit_learn(values):
    numbers = StandardScaler().fit_transform(values[:, :2].astype(np.float64))
    words = OneHotEncoder(categories=[[0, 1, 2]], sparse_output=False).fit_transform(values[:, 2:])
    features = layer(values)(values)
    assert features.dtype == "float32"
    assert features.shape == layer().compute_output_shape(values.shape) == (30, 5)
    np.testing.assert_allclose(features, np.hstack([numbers, words]), atol=1e-5)


def test_missing_values_count_in_no_constant_and_get_weights_of_their_own(values):
    made, half = layer(values[:20]), values.copy()
    half[20:] = np.nan
    again = layer(half)
    for ours, theirs in zip(again.weights, made.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(again(half)[20:], 0)
    again.missing.assign([1, 2, 3, 4, 5])
    one = values[:3].copy()
    one[0, 0] = one[1, 2] = np.nan
    one[2] = np.nan
    features, known = np.asarray(again(one)), np.asarray(again(values[:3]))
    np.testing.assert_array_equal(features[0], [1, *known[0, 1:]])
    np.testing.assert_array_equal(features[1], [*known[1, :2], 3, 4, 5])
    np.testing.assert_array_equal(features[2], [1, 2, 3, 4, 5])


@pytest.mark.parametrize("constant", [0.0, 0.1, 63.0, 1e6])
def test_a_number_that_never_varies_divides_by_nothing(values, constant):
    values = values.astype(np.float64)
    values[:, 0], values[:, 1] = constant, np.nan
    made = layer(values)
    np.testing.assert_array_equal(made.deviation, 1)
    assert made.mean[0] == np.float32(constant)
    assert made.mean[1] == 0
    np.testing.assert_array_equal(made(np.float32([[constant, 2, 1]])), [[0, 2, 0, 1, 0]])


def test_a_value_far_out_of_range_is_used_as_it_is(values):
    made = layer(values)
    far = np.asarray(made(np.float32([[1e4, 4000, 0]])))[0, 0]
    np.testing.assert_allclose(far, (1e4 - values[:, 0].mean()) / values[:, 0].std(), rtol=1e-4)


def test_it_is_all_in_its_configuration(values):
    check_round_trip(layer(values), values)


def build(aggregator, labels=2, precision="float32", **arguments):
    settings = recipes.Model(
        encoder=CONVOLUTIONS,
        aggregator=AGGREGATORS[aggregator],
        head={"units": [5]},
        covariates=list(KINDS),
    )
    with models.applications.dtype_policy(keras.DTypePolicy(precision)):
        model = models.build(settings, SHAPE, labels, seed=0, covariates=KINDS, **arguments)
    randomize_moving_statistics(model)
    model.covariates.mean.assign([60, 0])
    model.covariates.deviation.assign([10, 1])
    model.covariates.missing.assign([0.5, 0.1, -0.2, 0.3])
    return model


COVARIATES = np.float32([[70, 0], [np.nan, 2], [45, np.nan]])


@pytest.fixture
def slices(rng):
    return rng.normal(size=(3, 5, *SHAPE)).astype("float32")


@pytest.fixture(params=AGGREGATORS)
def model(request):
    return build(request.param)


def inputs_of(slices, lengths=LENGTHS, covariates=COVARIATES, kind="slices"):
    return {kind: slices, "lengths": lengths, "covariates": covariates}


def test_they_join_what_the_head_takes(model, slices):
    features = model.encode(slices, LENGTHS)
    told = np.asarray(model.covariates(COVARIATES))
    if model.aggregator.of_scores:
        joined = np.concatenate([features, np.repeat(told[:, None], 5, axis=1)], axis=-1)
        expected = model.aggregator(model.head(joined), LENGTHS)
    else:
        vectors = model.aggregator(features, LENGTHS)
        expected = model.head(np.concatenate([vectors, told], axis=-1))
    logits = model(inputs_of(slices))
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    other = model(inputs_of(slices, covariates=COVARIATES + 20))
    assert np.abs(np.asarray(logits - other)).max(axis=1).all()
    kept = np.asarray(model.extract(slices, LENGTHS))
    np.testing.assert_array_equal(model(inputs_of(kept, kind="features")), logits)


def test_all_missing_is_as_if_told_nothing(model, slices):
    missing = inputs_of(slices, covariates=np.full((3, 2), np.nan, "float32"))
    nothing = {"slices": slices, "lengths": LENGTHS}
    np.testing.assert_array_equal(model(missing), model(nothing))
    np.testing.assert_array_equal(model.running(missing), model.running(nothing))


def test_padding_and_batch_mates_change_nothing(model, slices):
    row = {int(length): values for length, values in zip(LENGTHS, COVARIATES, strict=True)}

    def call(slices, lengths):
        covariates = np.stack([row[int(length)] for length in lengths])
        return model(inputs_of(slices, lengths, covariates))

    def running(slices, lengths):
        covariates = np.stack([row[int(length)] for length in lengths])
        return model.running(inputs_of(slices, lengths, covariates))

    check_padding(call, slices, LENGTHS)
    check_padding(running, slices, LENGTHS)


def test_the_prediction_after_each_slice_knows_them(model, slices):
    running = np.asarray(model.running(inputs_of(slices)))
    for row, length in enumerate(LENGTHS):
        for count in range(1, length + 1):
            one = slices[row : row + 1, :count], np.array([count]), COVARIATES[row : row + 1]
            np.testing.assert_allclose(
                running[row, count - 1], model(inputs_of(*one))[0], atol=1e-5
            )


def test_training_compares_logits_that_know_them(model, slices):
    labels = np.float32([[0, 1], [1, 0], [1, 1]])
    logits = [
        np.asarray(model.examples(inputs_of(slices, covariates=values), labels)[0])
        for values in (COVARIATES, COVARIATES + 20)
    ]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_a_file_keeps_them_and_their_constants(model, slices, tmp_path):
    model.covariates.mean.assign([250_000, 0])  # of platelets, say
    expected = model(inputs_of(slices))
    model.save(tmp_path / "model.keras")
    loaded = load_model_file(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs_of(slices)), expected)
    assert loaded.covariates.names == ["age", "sex"]
    assert loaded.covariates.categories == [None, ["f", "m", "x"]]


@pytest.mark.parametrize("outputs", ["classes", "ordered"])
@pytest.mark.parametrize("aggregator", ["bilstm", "slice_scores"])
def test_probabilities_of_classes_still_add_up_to_1(aggregator, outputs, slices):
    model = build(aggregator, labels=3, outputs=outputs)
    probabilities = keras.ops.sigmoid(model(inputs_of(slices)))
    np.testing.assert_allclose(keras.ops.sum(probabilities, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_values_are_not_rounded_to_16_bits(precision, slices):
    model = build("bilstm", precision=precision)
    model.covariates.mean.assign([100_000, 0])
    near = np.float32([[100_001, 0], [100_010, 0], [100_020, 0]])
    logits = np.asarray(model(inputs_of(slices[:1].repeat(3, 0), LENGTHS[:1].repeat(3), near)))
    assert logits.dtype == "float32"
    assert (np.abs(np.diff(logits, axis=0)) > 1e-4).all()


def test_without_covariates_a_configuration_is_what_it_was():
    settings = recipes.Model(encoder=CONVOLUTIONS, aggregator=AGGREGATORS["bilstm"])
    model = models.build(settings, SHAPE, labels=1, seed=0, covariates=KINDS)
    assert "covariates" not in model.get_config()
    assert set(model.input_signature()) == {"slices", "lengths"}


def test_a_segmenter_has_none():
    with pytest.raises(ValueError, match="the area of the lesion alone"):
        recipes.Model(encoder={"name": "segmenter"}, covariates=["age"])


def test_one_name_once():
    with pytest.raises(ValueError, match="covariates names one twice"):
        recipes.Model(covariates=["age", "age"])
