"""The graph from bytes to probabilities: the prepared road's numbers, for every kind of recipe."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from served import pictures
from small_models import (
    CLASSES,
    COVARIATES,
    LABELS,
    NETWORK,
    SIZE,
    WITH_COVARIATES,
    Drawn,
    InMemory,
    description_of,
    members_of,
    model_of,
    recipe_of,
)

from medseq_tf.dataset.records import STORAGE, StorageSpec, study_record
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.batches import evaluation_batches
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.readers.pictures import decode_picture
from medseq_tf.serving.description import Description
from medseq_tf.serving.model import ServingModel

PER_POSITION = {
    "model.encoder.weights": "per_position",
    "model.encoder.positions": 4,
    "sequence.fill": True,
}
ONE_WAY = {"model.aggregator.bidirectional": False, "model.aggregator.readout": "last"}
PRETRAINED = [
    "input.size=32",
    "model.encoder.name=keras_application",
    "model.encoder.network=MobileNet",
    "model.encoder.weights=none",
    "model.encoder.dense=[{units: 5}]",
    "input.mean=0",
    "input.std=1",
    *(f"{key}={value}".lower() for key, value in ONE_WAY.items()),
    "sequence.length=4",
    "model.aggregator.units=4",
    "sequence.evaluation.policy=paper",
]


def prepared_road(model_list, recipe, dtype, studies, names=LABELS):
    """What evaluation says of studies of images, by way of a prepared data set."""
    how = StorageSpec((), dtype, SIZE, "pad")
    records = [
        study_record(Drawn(images), f"study-{i}", how).example for i, images in enumerate(studies)
    ]
    table = pd.DataFrame(
        {
            "study_id": [f"study-{i}" for i in range(len(studies))],
            "slices": [len(images) for images in studies],
            "shard": "",
            "record": records,
            **{f"label.{name}": np.nan for name in names},
        }
    )
    modality = description_of(dtype).modality
    info = {"label_names": names, "size": SIZE, "storage": STORAGE[dtype], "modality": modality}
    store = SliceStore(InMemory("memory", info, table), recipe)
    rows = np.arange(len(studies))
    return np.mean([study_probabilities(m, store, rows, recipe) for m in model_list], axis=0)


def images_of(files, dtype):
    if dtype == "uint8":
        return [decode_picture(file) for file in files]
    flags = cv2.IMREAD_UNCHANGED
    values = [cv2.imdecode(np.frombuffer(file, np.uint8), flags) for file in files]
    offset = STORAGE[dtype]["offset"]
    return [(value.astype(np.int32) + offset).astype(dtype) for value in values]


def request(studies, extra=0):
    """A request padded as TF Serving pads: with the first element, which may be anything."""
    width = max(map(len, studies)) + extra
    rows = [files + [studies[0][0]] * (width - len(files)) for files in studies]
    lengths = tf.constant([len(files) for files in studies], tf.int32)
    return {"image_bytes": tf.constant(rows, tf.string), "lengths": lengths}


BARE = {key: value for key, value in NETWORK.items() if "aggregator" not in key}
COUNTS = (1, 3, 4, 5, 11)
CASES = {
    "even": ("uint8", NETWORK),
    "even, filled": ("uint8", {**NETWORK, "sequence.fill": "true"}),
    "paper": ("uint8", {**NETWORK, "sequence.evaluation.policy": "paper"}),
    "all, one way": ("uint8", {**NETWORK, **ONE_WAY, "sequence.evaluation.policy": "all"}),
    "all, thinned": (
        "uint8",
        {**NETWORK, "sequence.evaluation.policy": "all", "sequence.evaluation.length": 6},
    ),
    "attention": ("uint8", {**BARE, "model.aggregator.name": "attention"}),
    "transformer": ("uint8", {**BARE, "model.aggregator.name": "transformer"}),
    "per position": ("uint8", {**NETWORK, **PER_POSITION, "sequence.evaluation.policy": "paper"}),
    "neighbours": ("uint8", {**NETWORK, "input.neighbours": 1}),
    "CT windows": ("int16", {**NETWORK, "input.windows": [[0, 20000], [5000, 60000]]}),
    "CT windows and neighbours": (
        "int16",
        {**NETWORK, "input.windows": [[0, 20000], [5000, 60000]], "input.neighbours": 2},
    ),
    "MR percentiles": ("uint16", {**NETWORK, "input.percentiles": [0.2, 0.9]}),
    "MR percentiles and neighbours": ("uint16", {**NETWORK, "input.neighbours": 1}),
    "pretrained, enlarged": ("uint8", PRETRAINED),
    "shown mirrored": (
        "int16",
        {
            **NETWORK,
            "input.windows": [[0, 20000], [5000, 60000]],
            "input.neighbours": 1,
            "sequence.evaluation.mirrored": "true",
        },
    ),
    "paper, shown mirrored": (
        "uint8",
        {
            **NETWORK,
            "sequence.evaluation.policy": "paper",
            "sequence.evaluation.mirrored": "true",
        },
    ),
    "mirrored, lesion map": (
        "uint8",
        {
            **NETWORK,
            "input.grey_window": [120, 90],
            "model.encoder.mirrored": "true",
            "model.encoder.pooling": "lesion_map",
        },
    ),
}


MORE = {"even, filled", "all, thinned", "attention", "transformer", "neighbours", "CT windows"}
MORE |= {"MR percentiles and neighbours", "pretrained, enlarged", "paper, shown mirrored"}
NAMES = [pytest.param(n, marks=[pytest.mark.slow] if n in MORE else []) for n in CASES]


@functools.cache
def case(name):
    dtype, values = CASES[name]
    recipe = recipe_of(values)
    model = model_of(recipe)
    served = ServingModel(members_of([model], recipe), description_of(dtype))
    pixel = np.uint8 if dtype == "uint8" else np.uint16
    files = [pictures(n, seed=n, size=20 + 9 * i, dtype=pixel) for i, n in enumerate(COUNTS)]
    if dtype == "uint8":
        files[2] = pictures(COUNTS[2], seed=2, size=41, kind=".jpg")
    studies = [images_of(study, dtype) for study in files]
    return served, files, prepared_road([model], recipe, dtype, studies), recipe, model


@pytest.mark.parametrize("name", NAMES)
def test_bytes_give_the_prepared_road_s_number(name):
    served, files, expected, *_ = case(name)
    assert np.ptp(expected, axis=0).min() > 1e-3, "the studies have to differ"
    for signature in ("serving_default", "probability"):
        ask = getattr(served, signature)
        alone = [ask(**request([study]))["probability"][0] for study in files]
        np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_merged_requests_give_each_patient_what_it_gets_alone(name):
    served, files, expected, *_ = case(name)
    for order in (slice(None), slice(None, None, -1)):
        merged = served.serving_default(**request(files[order], extra=3))
        np.testing.assert_allclose(merged["probability"], expected[order], rtol=0, atol=1e-5)
        running = merged["running_probability"].numpy()
        for study, own in zip(files[order], running, strict=True):
            alone = served.serving_default(**request([study]))["running_probability"][0]
            np.testing.assert_allclose(own[: len(study)], alone, rtol=0, atol=1e-5)
            assert not own[len(study) :].any()


@pytest.mark.parametrize("name", ["even", "all, one way"])
def test_beyond_a_study_s_length_nothing_is_read(name):
    served, files, expected, *_ = case(name)
    for junk in (b"", b"not a picture", b"\xff\xd8\xff broken"):
        rows = tf.constant([files[3] + [junk] * 4])
        answer = served.serving_default(image_bytes=rows, lengths=tf.constant([len(files[3])]))
        np.testing.assert_allclose(answer["probability"][0], expected[3], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["all, one way", "even", "paper", "per position", "shown mirrored"]
)
def test_the_last_running_probability_is_the_answer(name):
    served, files, expected, *_ = case(name)
    for study, probability in zip(files, expected, strict=True):
        running = served.serving_default(**request([study]))["running_probability"][0]
        assert running.shape == (len(study), len(LABELS))
        assert np.all((running.numpy() > 0) & (running.numpy() < 1))
        np.testing.assert_allclose(running[-1], probability, rtol=0, atol=1e-5)


def test_with_every_slice_shown_it_is_the_answer_to_the_first_slices_alone():
    served, files, *_ = case("all, one way")
    running = served.serving_default(**request([files[3]]))["running_probability"][0]
    for t in range(len(files[3])):
        alone = served.serving_default(**request([files[3][: t + 1]]))["probability"][0]
        np.testing.assert_allclose(running[t], alone, rtol=0, atol=1e-5)


def test_tensors_give_what_the_keras_model_gives(rng):
    served, *_, model = case("even")
    slices = rng.normal(size=(3, 5, 20, 20, 1)).astype(np.float32)
    lengths = np.int32([5, 2, 1])
    logits = model({"slices": slices, "lengths": lengths}, training=False)
    slices[1, 2:] = np.nan  # what lies beyond a study's length is ignored
    answer = served.serve_tensors(slices=tf.constant(slices), lengths=tf.constant(lengths))
    np.testing.assert_allclose(answer["probability"], tf.sigmoid(logits), rtol=0, atol=1e-5)
    running = answer["running_probability"].numpy()
    np.testing.assert_allclose(running[0, 4], answer["probability"][0], rtol=0, atol=1e-5)
    assert not running[1, 2:].any()


def test_tensors_are_shown_mirrored_too(rng):
    served, *_, model = case("shown mirrored")
    slices = rng.normal(size=(2, 4, 20, 20, 6)).astype(np.float32)
    lengths = np.int32([4, 2])
    each = [
        special.expit(model({"slices": shown, "lengths": lengths}, training=False))
        for shown in (slices, slices[:, :, :, ::-1])
    ]
    answer = served.serve_tensors(slices=tf.constant(slices), lengths=tf.constant(lengths))
    np.testing.assert_allclose(answer["probability"], np.mean(each, axis=0), rtol=0, atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-4


def test_folds_are_averaged():
    recipe = recipe_of(NETWORK)
    folds = [model_of(recipe, seed=seed) for seed in (1, 2)]
    served = ServingModel(members_of(folds, recipe), description_of("uint8"))
    files = [pictures(n, seed=n) for n in (3, 9)]
    studies = [images_of(study, "uint8") for study in files]
    expected = prepared_road(folds, recipe, "uint8", studies)
    answer = served.serving_default(**request(files))
    np.testing.assert_allclose(answer["probability"], expected, rtol=0, atol=1e-5)
    last = [answer["running_probability"][i, n - 1] for i, n in enumerate((3, 9))]
    np.testing.assert_allclose(last, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------- classes


OF_CLASSES = {
    "folds": ("classes", NETWORK, 2),
    "several sequences a study": ("ordered", {**NETWORK, "sequence.evaluation.policy": "paper"}, 1),
    "one way": ("classes", {**NETWORK, **ONE_WAY, "sequence.evaluation.policy": "all"}, 1),
    "each slice scored": ("classes", {**BARE, "model.aggregator.name": "slice_scores"}, 1),
}


@functools.cache
def class_case(name):
    outputs, values, folds = OF_CLASSES[name]
    recipe = recipe_of(values)
    model_list = [model_of(recipe, seed, outputs) for seed in range(folds)]
    return ServingModel(
        members_of(model_list, recipe), description_of("uint8", outputs=outputs)
    ), model_list


@pytest.mark.parametrize("name", OF_CLASSES)
def test_bytes_give_the_prepared_road_s_probability_of_each_class(name):
    served, model_list = class_case(name)
    files = [pictures(n, seed=n, size=20 + 9 * i) for i, n in enumerate(COUNTS)]
    studies = [images_of(study, "uint8") for study in files]
    recipe = recipe_of(OF_CLASSES[name][1])
    expected = prepared_road(model_list, recipe, "uint8", studies, CLASSES)
    assert np.ptp(expected, axis=0).max() > 1e-2, "the studies have to differ"
    merged = served.serving_default(**request(files, extra=3))
    lean = served.probability(**request(files[::-1]))["probability"][::-1]
    for found in (merged["probability"], lean):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for study, own in zip(files, merged["running_probability"].numpy(), strict=True):
        alone = served.serving_default(**request([study]))["running_probability"][0]
        np.testing.assert_allclose(own[: len(study)], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OF_CLASSES)
@settings(max_examples=10)
@given(counts=st.lists(st.integers(1, 13), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_probabilities_of_classes_add_up_to_1_whatever_the_slices(name, counts, seed):
    served, _ = class_case(name)
    files = [pictures(n, seed=seed + i) for i, n in enumerate(counts)]
    answer = served.serving_default(**request(files, extra=1))
    np.testing.assert_allclose(answer["probability"].numpy().sum(axis=1), 1, rtol=0, atol=1e-6)
    for n, running in zip(counts, answer["running_probability"].numpy(), strict=True):
        np.testing.assert_allclose(running[:n].sum(axis=1), 1, rtol=0, atol=1e-6)
        assert not running[n:].any()


@pytest.mark.parametrize("outputs", ["classes", "ordered"])
def test_the_probabilities_of_classes_are_those_of_the_head_s_weights(outputs, rng):
    recipe = recipe_of(NETWORK)
    model = model_of(recipe, outputs=outputs)
    served = ServingModel(members_of([model], recipe), description_of("uint8", outputs=outputs))
    slices = rng.normal(size=(4, 5, 20, 20, 1)).astype(np.float32)
    lengths = np.int32([5, 2, 1, 4])
    vectors = np.asarray(model.aggregator(model.encode(slices, lengths), lengths), np.float64)
    hidden_kernel, hidden_bias = model.head.hidden[0].get_weights()
    hidden = np.maximum(vectors @ hidden_kernel + hidden_bias, 0)
    kernel, *bias = model.head.logits.get_weights()
    scores = hidden @ kernel + (bias[0] if bias else 0)
    if outputs == "classes":
        expected = special.softmax(scores, axis=1)
    else:
        below = special.expit(np.asarray(model.head.cutpoints, np.float64) - scores)
        expected = np.diff(below, axis=1, prepend=0, append=1)
    answer = served.serve_tensors(slices=tf.constant(slices), lengths=tf.constant(lengths))
    np.testing.assert_allclose(answer["probability"], expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------ covariates


@functools.cache
def covariate_case(policy):
    recipe = recipe_of({**NETWORK, **WITH_COVARIATES, "sequence.evaluation.policy": policy})
    model_list = [model_of(recipe, seed, "classes") for seed in (0, 1)]
    description = description_of("uint8", outputs="classes", covariates=COVARIATES)
    return ServingModel(members_of(model_list, recipe), description), model_list


KNOWN = np.float32([[63, 1], [np.nan, 0], [20, np.nan]])


def test_covariates_give_the_keras_model_s_number():
    served, model_list = covariate_case("all")
    files = [pictures(n, seed=n) for n in (3, 1, 9)]
    told = served.with_covariates(**request(files), covariates=tf.constant(KNOWN))["probability"]
    recipe = recipe_of({**NETWORK, "sequence.evaluation.policy": "all"})
    expected = []
    for study, covariates in zip(files, KNOWN, strict=True):
        frames = frames_of(study, recipe)
        inputs = {"slices": frames[None], "lengths": np.int32([len(study)])}
        inputs["covariates"] = covariates[None]
        expected.append(np.mean([tf.sigmoid(model(inputs)) for model in model_list], axis=0)[0])
    np.testing.assert_allclose(told, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-2


def frames_of(study, recipe):
    """The slices of a study as the prepared road shows them to a model."""
    how = StorageSpec((), "uint8", SIZE, "pad")
    record = study_record(Drawn(images_of(study, "uint8")), "study", how).example
    table = pd.DataFrame(
        {"study_id": ["study"], "slices": [len(study)], "shard": "", "record": [record]}
    )
    info = {"label_names": [], "size": SIZE, "storage": STORAGE["uint8"], "modality": "photograph"}
    store = SliceStore(InMemory("memory", info, table), recipe)
    (batch,) = evaluation_batches(store.prepared, np.arange(1), recipe, store=store)
    return batch[0]["slices"][0].numpy()


@pytest.mark.parametrize("policy", ["all", "paper", "even"])
def test_covariates_stay_with_their_study(policy):
    served, _ = covariate_case(policy)
    files = [pictures(n, seed=n) for n in (3, 1, 9)]
    merged = served.with_covariates(**request(files, extra=2), covariates=tf.constant(KNOWN))
    lean = served.probability_with_covariates(**request(files), covariates=tf.constant(KNOWN))
    np.testing.assert_allclose(merged["probability"], lean["probability"], rtol=0, atol=1e-5)
    for i, study in enumerate(files):
        covariates = tf.constant(KNOWN[i : i + 1])
        alone = served.with_covariates(**request([study]), covariates=covariates)
        for name in ("probability", "running_probability"):
            own = merged[name][i, : len(study)] if name.startswith("running") else merged[name][i]
            np.testing.assert_allclose(own, alone[name][0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            alone["running_probability"].numpy().sum(axis=2), 1, rtol=0, atol=1e-6
        )


def test_without_covariates_all_are_missing():
    served, _ = covariate_case("paper")
    asked = request([pictures(n, seed=n) for n in (3, 9)])
    blank = served.with_covariates(**asked, covariates=tf.fill((2, 2), np.float32(np.nan)))
    for name, values in served.serving_default(**asked).items():
        np.testing.assert_array_equal(values, blank[name])


WRONG_COVARIATES = {
    "too few rows": ([[1, 0]], "lengths has 2 values, covariates has 1 rows"),
    "infinite": ([[1, 0], [np.inf, 0]], r"covariates\[1, 0\] is neither a number nor NaN"),
    "no place": ([[1, 0], [1, 2]], r"covariates\[1, 1\] is neither a whole number from 0 to 1 nor"),
    "between two": ([[1, 0.5], [1, 1]], r"covariates\[0, 1\] is neither a whole number"),
    "below 0": ([[1, -1], [1, 1]], r"covariates\[0, 1\] is neither a whole number"),
}


@pytest.mark.parametrize("name", WRONG_COVARIATES)
def test_wrong_covariates_are_an_error_that_says_what(name):
    served, _ = covariate_case("all")
    values, words = WRONG_COVARIATES[name]
    for ask in (served.with_covariates, served.probability_with_covariates):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            ask(**request([pictures(1), pictures(2)]), covariates=tf.constant(np.float32(values)))


# ---------------------------------------------------------------------------------------- errors


FILE = pictures(1)[0]
WRONG = {
    "no slices": ([[]], [0], r"lengths\[0\] is below 1"),
    "a length of 0": ([[FILE], [FILE]], [1, 0], r"lengths\[1\] is below 1"),
    "a negative length": ([[FILE]], [-3], r"lengths\[0\] is below 1"),
    "a length beyond the slices": (
        [[FILE, FILE]],
        [3],
        r"lengths\[0\] = 3, but image_bytes holds 2 slices a study",
    ),
    "more lengths than studies": ([[FILE]], [1, 1], "lengths has 2 values, image_bytes has 1"),
    "no study": (np.zeros((0, 3), object), [], "holds no study"),
    "more slices than the limit": ([[FILE] * 41], [41], "= 41; at most 40 slices"),
    "no picture": ([[FILE, b"x" * 99]], [2], r"image_bytes\[0, 1\] is no JPEG or PNG picture"),
    "an empty file": ([[FILE, b""]], [2], r"image_bytes\[0, 1\] is cut short or empty"),
    "16 bits": ([pictures(1, dtype=np.uint16)], [1], r"image_bytes\[0, 0\] has 16 bits"),
    "half a PNG": ([[FILE[: len(FILE) // 2]]], [1], "PNG"),
    "half a JPEG": ([[pictures(1, size=90, kind=".jpg")[0][:400]]], [1], "JPEG"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_an_error_that_says_what(name):
    served, *_ = case("even")
    image_bytes, lengths, words = WRONG[name]
    shape = np.shape(np.array(image_bytes, object))
    image_bytes = tf.constant(np.array(image_bytes, object).tolist(), tf.string, shape=shape)
    for ask in (served.serving_default, served.probability):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            ask(image_bytes=image_bytes, lengths=tf.constant(lengths, tf.int32))


def test_wrong_tensors_are_an_error_that_says_what():
    served, *_ = case("even")
    slices = np.zeros((1, 2, 20, 20, 1), np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="slices holds 2 slices a study"):
        served.serve_tensors(slices=tf.constant(slices), lengths=tf.constant([3]))
    slices[0, 0, 3, 3] = np.inf
    with pytest.raises(tf.errors.InvalidArgumentError, match="values that are no number"):
        served.serve_tensors(slices=tf.constant(slices), lengths=tf.constant([2]))


def test_it_describes_itself():
    served, *_ = case("even")
    texts = served.describe(question=tf.constant(["", "x"]))["description"].numpy()
    assert [Description.from_json(text) for text in texts] == [description_of("uint8")] * 2
