"""Batches: what they hold, for whom, and that they come out the same however they are made."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from covariate_columns import with_covariates

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, encode_example, frame
from medseq_tf.errors import InputError
from medseq_tf.input import model_input
from medseq_tf.input.batches import evaluation_batches, readable, steps_per_epoch, training_batches
from medseq_tf.input.sampling import Part
from medseq_tf.input.slice_store import SliceStore, resize
from medseq_tf.recipe import Augment, Experiment

SIZE = 16
PAPER = {
    "gaussian_noise": {},
    "gaussian_blur": {},
    "grid_distortion": {},
    "optical_distortion": {},
    "coarse_dropout": {"size": 4},
}
OFFSETS = {"uint8": 0, "uint16": 0, "int16": -32768}
MODALITIES = {"uint8": "photograph", "uint16": "MR", "int16": "CT"}


class CountingPrepared(Prepared):
    """Counts the slices that are decoded."""

    decoded = 0

    def slices(self, row, indices=None):
        images = super().slices(row, indices)
        type(self).decoded += len(images)
        return images


def write(folder: Path, studies: list[np.ndarray], labels: np.ndarray | None = None) -> Prepared:
    """Writes studies (T, H, W) as the shard of a prepared data set."""
    labels = np.zeros((len(studies), 1), np.float32) if labels is None else labels
    (folder / "shards").mkdir(parents=True)
    records = []
    for i, images in enumerate(studies):
        stored = images
        if images.dtype == np.int16:
            stored = (images.astype(np.int32) + 32768).astype(np.uint16)
        encoded = [cv2.imencode(".png", image)[1].tobytes() for image in stored]
        example = {"study_id": [b"%016x" % i], "slices": encoded, "labels": labels[i]}
        records.append(frame(encode_example(example)))
    shard = b"".join(records)
    (folder / "shards" / "only.tfrecord").write_bytes(shard)
    lengths = np.array([len(record) for record in records])
    table = pd.DataFrame(
        {
            "study_id": [f"{i:016x}" for i in range(len(studies))],
            "slices": [len(images) for images in studies],
            "shard": "only.tfrecord",
            "offset": np.cumsum(lengths) - lengths + HEADER_BYTES,
            "length": lengths - HEADER_BYTES - FOOTER_BYTES,
            **{f"label.{k}": labels[:, k].astype(float) for k in range(labels.shape[1])},
        }
    )
    dtype = str(studies[0].dtype)
    info = {
        "label_names": [str(k) for k in range(labels.shape[1])],
        "modality": MODALITIES[dtype],
        "size": studies[0].shape[1],
        "storage": {"dtype": "uint8" if dtype == "uint8" else "uint16", "offset": OFFSETS[dtype]},
        "shards": {"only.tfrecord": {"sha256": hashlib.sha256(shard).hexdigest()}},
    }
    return CountingPrepared(folder, info, table)


def random_studies(lengths, dtype=np.uint8, size=SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    top = 256 if dtype == np.uint8 else 1000
    return [rng.integers(0, top, (n, size, size)).astype(dtype) for n in lengths]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Prepared:
    """24 studies of 3 to 14 random slices, two labels, some of them unknown."""
    lengths = np.random.default_rng(1).integers(3, 15, size=24)
    labels = np.random.default_rng(2).integers(0, 2, (24, 2)).astype(np.float32)
    labels[::5, 1] = np.nan
    return write(tmp_path_factory.mktemp("cohort"), random_studies(lengths), labels)


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Prepared:
    """24 studies whose every pixel is 10 x the row; slice k of it is marked by k in a corner."""
    studies = []
    for row in range(24):
        images = np.full((5 + row % 7, SIZE, SIZE), 10 * row, np.uint8)
        images[:, 0, 0] = np.arange(len(images))
        studies.append(images)
    return write(tmp_path_factory.mktemp("marked"), studies, np.arange(24.0)[:, None])


def recipe(augment=None, **values) -> Experiment:
    """A recipe on raw grey levels: what comes out is pixels / 255."""
    groups = {
        "input": {"size": SIZE, "mean": 0.0, "std": 1.0},
        "sequence": {"policy": "all", "length": 50},
        "fit": {"batch_size": 4},
    }
    for name, group in values.items():
        groups[name] = {**groups.get(name, {}), **group}
    return Experiment(augment=augment or {}, seed=5, **groups)


def collect(dataset: tf.data.Dataset) -> list:
    return [tf.nest.map_structure(lambda tensor: tensor.numpy(), element) for element in dataset]


def assert_same_bits(one: list, other: list) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        pairs = zip(tf.nest.flatten(first), tf.nest.flatten(second), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)


ALL = np.arange(24)


# ---------------------------------------------------------------------------- what a batch holds


def test_elements_have_the_shapes_of_the_contract(cohort):
    dataset = training_batches(cohort, ALL, recipe(), epoch=0)
    inputs, labels = dataset.element_spec
    assert inputs["slices"] == tf.TensorSpec((None, None, SIZE, SIZE, 1), tf.float32)
    assert inputs["lengths"] == tf.TensorSpec((None,), tf.int32)
    assert labels == tf.TensorSpec((None, 2), tf.float32)
    (inputs, labels), *_ = collect(dataset)
    assert inputs["slices"].shape == (4, inputs["lengths"].max(), SIZE, SIZE, 1)
    assert labels.shape == (4, 2)


@pytest.mark.parametrize("augment", [{}, PAPER])
def test_padding_is_zero_after_normalisation_and_as_short_as_can_be(cohort, augment):
    experiment = recipe(augment, input={"mean": 0.5, "std": 0.3})
    for inputs, _ in collect(training_batches(cohort, ALL, experiment, epoch=0)):
        slices, lengths = inputs["slices"], inputs["lengths"]
        assert slices.shape[1] == lengths.max()
        for sequence, length in zip(slices, lengths, strict=True):
            assert (sequence[length:] == 0).all()
            assert (sequence[:length] != 0).any(axis=(1, 2, 3)).all()


def test_slices_are_the_studys_own_normalised(cohort):
    experiment = recipe(input={"mean": 0.5, "std": 0.3})
    for inputs, labels, rows in collect(evaluation_batches(cohort, ALL, experiment)):
        np.testing.assert_array_equal(labels, cohort.labels[rows])
        for sequence, length, row in zip(inputs["slices"], inputs["lengths"], rows, strict=True):
            even = (2 * np.arange(length) + 1) * len(cohort.slices(row)) // (2 * length)
            expected = (cohort.slices(row)[even] / 255 - 0.5) / 0.3
            np.testing.assert_allclose(sequence[:length, ..., 0], expected, atol=1e-5)


def test_a_black_slice_is_a_slice(tmp_path):
    black = [np.zeros((3, SIZE, SIZE), np.uint8), np.full((5, SIZE, SIZE), 9, np.uint8)]
    prepared = write(tmp_path, black)
    ((inputs, _, rows),) = collect(evaluation_batches(prepared, [0, 1], recipe()))
    assert dict(zip(rows.tolist(), inputs["lengths"].tolist(), strict=True)) == {0: 3, 1: 5}


def test_every_study_of_the_rows_and_no_other_with_its_own_labels(marked):
    rows = np.array([3, 8, 9, 14, 20, 23, 1])
    seen = []
    for inputs, labels in collect(training_batches(marked, rows, recipe(), epoch=3)):
        grey = np.rint(inputs["slices"][:, 0, 5, 5, 0] * 255 / 10).astype(int)
        np.testing.assert_array_equal(labels[:, 0], grey)
        for row, sequence, length in zip(grey, inputs["slices"], inputs["lengths"], strict=True):
            assert length == 5 + row % 7
            np.testing.assert_array_equal(np.rint(sequence[:length, 5, 5, 0] * 25.5), row)
            order = np.rint(sequence[:length, 0, 0, 0] * 255)
            np.testing.assert_array_equal(order, np.arange(length))
        seen += grey.tolist()
    assert sorted(seen) == sorted(rows.tolist())


def test_covariates_are_the_studys_own(marked):
    """Shuffled, bucketed by length, from the middle of an epoch on, and for evaluation."""
    words = ["c" if row % 3 == 2 else "ab"[row % 3] for row in range(24)]
    told = with_covariates(marked, age=np.arange(24.0), group=words)
    experiment = recipe(model={"covariates": ["group", "age"]})
    dataset = training_batches(told, ALL, experiment, epoch=3, first_batch=2)
    spec = tf.TensorSpec((None, 2), tf.float32)
    assert dataset.element_spec[0]["covariates"] == spec
    elements = [*dataset, *evaluation_batches(told, ALL[::-1], experiment, batch_size=5)]
    seen = []
    for inputs, labels, *_ in elements:
        expected = np.stack([labels[:, 0] % 3, labels[:, 0]], axis=1)
        np.testing.assert_array_equal(inputs["covariates"], expected)
        seen += labels.numpy()[:, 0].tolist()
    assert sorted(seen[-24:]) == ALL.tolist()
    assert set(dataset.element_spec[0]) > set(
        training_batches(told, ALL, recipe(), 0).element_spec[0]
    )


def test_unknown_labels_stay_nan(cohort):
    labels = np.concatenate([labels for _, labels in training_batches(cohort, ALL, recipe(), 0)])
    assert np.isnan(labels[:, 1]).sum() == 5
    assert not np.isnan(labels[:, 0]).any()


def test_evaluation_tells_the_study_of_each_sequence(marked):
    experiment = recipe(sequence={"length": 7, "evaluation": {"policy": "paper"}})
    counts = np.zeros(24, int)
    lengths = []
    for inputs, _, rows in collect(evaluation_batches(marked, ALL, experiment, batch_size=6)):
        grey = np.rint(inputs["slices"][:, 0, 5, 5, 0] * 25.5)
        np.testing.assert_array_equal(grey, rows)
        np.add.at(counts, rows, 1)
        lengths += inputs["lengths"].tolist()
    expected = {5: 7, 6: 7, 7: 1, 8: 1, 9: 2, 10: 3, 11: 4}
    assert counts.tolist() == [expected[5 + row % 7] for row in range(24)]
    assert lengths == sorted(lengths)


def test_rows_may_be_a_few_in_any_order(marked):
    (element,) = collect(evaluation_batches(marked, [9, 2], recipe()))
    assert sorted(element[2].tolist()) == [2, 9]


# --------------------------------------------------------- the same numbers however they are made


@pytest.fixture(scope="module")
def whole_epoch(cohort) -> list:
    return collect(training_batches(cohort, ALL, recipe(PAPER), epoch=2))


@pytest.mark.parametrize("first_batch", [0, 1, 4, 6])
def test_an_epoch_resumes_at_any_batch_bit_for_bit(cohort, whole_epoch, first_batch):
    dataset = training_batches(cohort, ALL, recipe(PAPER), epoch=2, first_batch=first_batch)
    assert len(dataset) == 6 - first_batch
    assert_same_bits(collect(dataset), whole_epoch[first_batch:])


@pytest.mark.parametrize("first_batch", [0, 4])
def test_several_epochs_are_each_of_them_bit_for_bit(cohort, whole_epoch, first_batch):
    dataset = training_batches(cohort, ALL, recipe(PAPER), 1, first_batch=first_batch, epochs=3)
    assert len(dataset) == 18 - first_batch
    first, last = (collect(training_batches(cohort, ALL, recipe(PAPER), e)) for e in (1, 3))
    assert_same_bits(collect(dataset), [*first, *whole_epoch, *last][first_batch:])


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("per", ["slice", "sequence"])
def test_parts_of_batches_are_the_batches(cohort, count, per):
    """Whatever is drawn for them, to rounding; a part may have no sequence."""
    augment = {name: {**settings, "p": 0.5, "per": per} for name, settings in PAPER.items()}
    augment["rotation"] = {"degrees": 20.0, "p": 0.5, "per": per}
    given = (cohort, ALL, recipe(augment), 1)
    parts = [collect(training_batches(*given, part=Part(at, count))) for at in range(count)]
    for (inputs, labels), *mine in zip(collect(training_batches(*given)), *parts, strict=True):
        for name in ("slices", "lengths"):  # padded as the whole batch is, even an empty part
            joined = np.concatenate([part[name] for part, _ in mine])
            np.testing.assert_allclose(joined, inputs[name], atol=2e-6)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in mine]), labels)


@pytest.mark.parametrize("calls", [1, 2, 7])
def test_parallel_calls_change_nothing(cohort, whole_epoch, calls):
    dataset = training_batches(cohort, ALL, recipe(PAPER), epoch=2, num_parallel_calls=calls)
    assert_same_bits(collect(dataset), whole_epoch)


@pytest.mark.parametrize("size", [SIZE, 12, 24])
def test_kept_slices_equal_streamed_ones(cohort, size):
    epochs = [
        collect(
            training_batches(
                cohort,
                ALL,
                recipe(
                    PAPER,
                    fit={"cache": cache},
                    input={"size": size},
                    sequence={"policy": "paper", "length": 9},
                ),
                epoch=0,
            )
        )
        for cache in ("memory", "none")
    ]
    assert_same_bits(*epochs)


def test_epochs_and_seeds_differ_in_order_and_pictures(cohort, whole_epoch):
    other = collect(training_batches(cohort, ALL, recipe(PAPER), epoch=3))
    assert any(
        a["slices"].shape != b["slices"].shape or (a["slices"] != b["slices"]).any()
        for (a, _), (b, _) in zip(whole_epoch, other, strict=True)
    )


def test_batches_of_equal_studies_are_varied_differently(tmp_path):
    prepared = write(tmp_path, [np.full((4, SIZE, SIZE), 128, np.uint8)] * 6)
    experiment = recipe({"gaussian_noise": {"p": 1.0}}, fit={"batch_size": 1})
    epochs = [collect(training_batches(prepared, np.arange(6), experiment, e)) for e in (0, 1)]
    pictures = {element[0]["slices"].tobytes() for epoch in epochs for element in epoch}
    assert len(pictures) == 12


def test_a_studys_draws_do_not_depend_on_the_other_rows(marked):
    experiment = recipe(sequence={"policy": "random", "length": 4}, fit={"batch_size": 1})

    def drawn(rows):
        elements = collect(training_batches(marked, rows, experiment, epoch=1))
        return {
            int(labels[0, 0]): np.rint(inputs["slices"][0, :, 0, 0, 0] * 255).tolist()
            for inputs, labels in elements
        }

    everyone, some = drawn(ALL), drawn(ALL[10:])
    assert some == {row: everyone[row] for row in range(10, 24)}


def test_evaluation_is_repeatable_and_never_varied(cohort):
    plain, varied = recipe(), recipe(PAPER)
    first = collect(evaluation_batches(cohort, ALL, plain, num_parallel_calls=1))
    assert_same_bits(first, collect(evaluation_batches(cohort, ALL, varied)))


def test_the_graph_is_traced_once_for_all_epochs(cohort):
    experiment = recipe(PAPER, input={"mean": 0.125})
    store = SliceStore(cohort, experiment)
    for epoch in range(3):
        collect(training_batches(cohort, ALL, experiment, epoch, store=store))
    graph = model_input.input_graph(
        experiment.input.model_dump_json(), experiment.augment.model_dump_json()
    )
    assert graph.experimental_get_tracing_count() == 1


# --------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("policy", ["paper", "all", "window", "random", "even"])
def test_steps_per_epoch_is_the_number_of_batches_of_every_epoch(cohort, policy):
    experiment = recipe(sequence={"policy": policy, "length": 7})
    steps = steps_per_epoch(cohort, ALL, experiment)
    for epoch in range(2):
        dataset = training_batches(cohort, ALL, experiment, epoch)
        assert len(dataset) == len(collect(dataset)) == steps


def test_sequences_that_are_left_out_reach_no_batch(marked):
    experiment = recipe(sequence={"policy": "all", "length": 6, "over": "leave_out"})
    for inputs, _ in collect(training_batches(marked, ALL, experiment, epoch=0)):
        assert inputs["lengths"].max() <= 6
    rows = np.concatenate([rows for *_, rows in evaluation_batches(marked, ALL, experiment)])
    assert sorted(rows.tolist()) == ALL.tolist()


def test_a_recipe_that_leaves_no_study_is_an_error(marked):
    experiment = recipe(sequence={"policy": "all", "length": 2, "over": "leave_out"})
    with pytest.raises(InputError, match="leaves none of the 24 training studies"):
        training_batches(marked, ALL, experiment, epoch=0)


def test_a_study_without_slices_is_an_error(cohort):
    studies = cohort.studies.copy()
    studies.loc[7, "slices"] = 0
    broken = Prepared(cohort.path, cohort.info, studies)
    for make in (
        lambda: training_batches(broken, ALL, recipe(), epoch=0),
        lambda: evaluation_batches(broken, ALL, recipe()),
    ):
        with pytest.raises(InputError, match=r"study 0000000000000007 .* has no slices"):
            make()
    assert len(evaluation_batches(broken, ALL[8:], recipe())) == 4


# ------------------------------------------------------------------------------------- the store


def test_kept_studies_are_decoded_once_and_streamed_ones_slice_by_slice(marked):
    sequence = {"policy": "random", "length": 3}

    def decoded(cache: str) -> int:
        experiment = recipe(fit={"cache": cache}, sequence=sequence)
        store = SliceStore(marked, experiment)
        CountingPrepared.decoded = 0
        for epoch in range(3):
            collect(training_batches(marked, ALL, experiment, epoch, store=store))
        return CountingPrepared.decoded

    assert decoded("memory") == marked.studies["slices"].sum()
    assert decoded("none") == 3 * 24 * 3


@pytest.mark.parametrize(
    ("cache", "size", "kept"),
    [("auto", 16, True), ("auto", 512, False), ("memory", 512, True), ("none", 16, False)],
)
def test_auto_keeps_what_fits(marked, cache, size, kept):
    # 189 slices of 512 x 512 bytes are 47 MiB.
    experiment = recipe(fit={"cache": cache, "cache_limit_mib": 40}, input={"size": size})
    assert SliceStore(marked, experiment).in_memory == kept


@pytest.mark.parametrize(("limit", "kept"), [(46, False), (92, False), (93, True)])
def test_a_segmenters_masks_count_too(marked, limit, kept):
    """186 slices of 512 x 512 pixels: 46.5 MiB, and as much again for the masks."""
    fit = {"cache": "auto", "cache_limit_mib": limit}
    settings = {"fit": fit, "input": {"size": 512}}
    segmenter = {"encoder": {"name": "segmenter"}, "aggregator": {"name": "sum"}}
    assert SliceStore(marked, recipe(**settings)).in_memory == (limit > 46)
    masked = recipe(**settings, model=segmenter, loss={"name": "dice_cross_entropy"})
    assert SliceStore(marked, masked).in_memory == kept


def test_why_a_study_could_not_be_read_is_said_once_and_of_no_other_failure(cohort, monkeypatch):
    experiment = recipe()
    store = SliceStore(cohort, experiment)

    def damaged(self, row, indices=None):
        raise InputError(f"study {row:04} is damaged")

    def failing():
        yield 1
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Prepared, "slices", damaged)
        batches = evaluation_batches(cohort, ALL, experiment, store=store)
        with pytest.raises(InputError, match=r"^study \d{4} is damaged$"):
            list(readable(batches, store))
    with pytest.raises(tf.errors.ResourceExhaustedError, match="out of memory"):
        list(readable(failing(), store))
    store.failures.append(InputError("study 0012 is damaged"))
    with pytest.raises(tf.errors.ResourceExhaustedError, match="out of memory"):
        list(readable(failing(), store))
    assert len(list(readable(evaluation_batches(cohort, ALL, experiment), store)))


def test_resizing_shrinks_by_area_and_grows_bilinearly():
    images = random_studies([2], size=16)[0]
    assert resize(images, 16) is images
    for size, method in ((8, cv2.INTER_AREA), (40, cv2.INTER_LINEAR)):
        expected = np.stack(
            [cv2.resize(image, (size, size), None, 0, 0, method) for image in images]
        )
        np.testing.assert_array_equal(resize(images, size), expected)
    quarter = images[0].astype(float).reshape(8, 2, 8, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(images, 8)[0], quarter, atol=0.5)


# ------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("reach", [1, 2])
def test_neighbours_of_the_study_become_channels(marked, cache, reach):
    """Of the study, not of the drawn sequence; at its ends the last slice is repeated."""
    experiment = recipe(
        input={"neighbours": reach},
        sequence={"policy": "random", "length": 3, "order": "shuffled"},
        fit={"cache": cache},
    )
    for inputs, labels in collect(training_batches(marked, ALL, experiment, epoch=1)):
        assert inputs["slices"].shape[2:] == (SIZE, SIZE, 2 * reach + 1)
        for sequence, length, row in zip(
            inputs["slices"], inputs["lengths"], labels[:, 0].astype(int), strict=True
        ):
            marks = np.rint(sequence[:length, 0, 0] * 255).astype(int)
            study = marked.slices(row)
            for slice_, around in zip(sequence[:length], marks, strict=True):
                middle = around[reach]
                expected = [middle + step for step in range(-reach, reach + 1)]
                np.testing.assert_array_equal(around, np.clip(expected, 0, len(study) - 1))
                channels = np.moveaxis(study[around], 0, -1) / 255
                np.testing.assert_allclose(slice_, channels, atol=1e-6)


def test_each_neighbour_brings_all_windows(tmp_path):
    hounsfield = random_studies([3], np.int16)[0]
    prepared = write(tmp_path, [hounsfield])
    windows = [(40.0, 80.0), (500.0, 900.0)]
    experiment = recipe(input={"windows": windows, "neighbours": 1})
    ((inputs, _, _),) = collect(evaluation_batches(prepared, [0], experiment))
    for i, around in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 2)]):
        channels = [
            np.clip((hounsfield[slice_] - (centre - width / 2)) / width, 0, 1)
            for slice_ in around
            for centre, width in windows
        ]
        expected = np.stack(channels, axis=-1)
        np.testing.assert_allclose(inputs["slices"][0, i], expected, atol=1e-6)


def test_neighbours_are_varied_together(marked):
    """A flip turns all channels or none."""
    experiment = recipe({"flip": {"p": 0.5, "per": "slice"}}, input={"neighbours": 1})
    turned = set()
    for inputs, _ in collect(training_batches(marked, ALL, experiment, epoch=0)):
        for sequence, length in zip(inputs["slices"], inputs["lengths"], strict=True):
            for slice_ in sequence[:length]:
                left, right = np.rint(slice_[0, 0] * 255), np.rint(slice_[0, -1] * 255)
                found = left if (np.diff(left) != 0).any() else right
                assert (np.diff(found) >= 0).all()
                turned.add(found is left)
    assert turned == {True, False}


def test_a_whole_study_as_input_is_what_a_batch_of_it_holds(marked):
    experiment = recipe(input={"neighbours": 1}, sequence={"evaluation": {"policy": "all"}})
    store = SliceStore(marked, experiment)
    ((inputs, _, _),) = collect(evaluation_batches(marked, [3], experiment, store=store))
    found = model_input.study_input(store, 3, Augment(), (0, 0))
    np.testing.assert_array_equal(found, inputs["slices"][0])
    store.forget(3)
    np.testing.assert_array_equal(model_input.study_input(store, 3, Augment(), (5, 6)), found)


# ------------------------------------------------------------------------------- 16-bit intensities


def test_ct_windows_become_channels(tmp_path):
    hounsfield = np.linspace(-1000, 3000, 3 * SIZE**2).reshape(3, SIZE, SIZE).astype(np.int16)
    prepared = write(tmp_path, [hounsfield])
    windows = [(40.0, 80.0), (500.0, 3000.0)]
    experiment = recipe(input={"windows": windows})
    ((inputs, _, _),) = collect(evaluation_batches(prepared, [0], experiment))
    assert inputs["slices"].shape == (1, 3, SIZE, SIZE, 2)
    for channel, (centre, width) in enumerate(windows):
        expected = np.clip((hounsfield - (centre - width / 2)) / width, 0, 1)
        np.testing.assert_allclose(inputs["slices"][0, ..., channel], expected, atol=1e-6)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_mri_is_scaled_by_the_percentiles_of_the_whole_study(tmp_path, cache):
    studies = random_studies([9, 5], np.uint16)
    studies[1] = studies[1] * 7 + 100
    prepared = write(tmp_path, studies)
    experiment = recipe(
        input={"percentiles": (0.05, 0.9)},
        sequence={"evaluation": {"length": 2}},
        fit={"cache": cache},
    )
    ((inputs, _, rows),) = collect(evaluation_batches(prepared, [0, 1], experiment))
    for sequence, row in zip(inputs["slices"], rows, strict=True):
        study = studies[row].astype(float)
        low, high = np.quantile(study, [0.05, 0.9])
        chosen = study[[2, 6] if row == 0 else [1, 3]]
        expected = np.clip((chosen - low) / (high - low), 0, 1)
        np.testing.assert_allclose(sequence[..., 0], expected, atol=1e-5)


def test_a_constant_mri_study_is_black_not_nan(tmp_path):
    prepared = write(tmp_path, [np.full((2, SIZE, SIZE), 300, np.uint16)])
    ((inputs, _, _),) = collect(evaluation_batches(prepared, [0], recipe()))
    np.testing.assert_array_equal(inputs["slices"], 0)


def test_windows_and_modality_must_go_together(tmp_path, marked):
    ct = write(tmp_path, random_studies([2], np.int16))
    with pytest.raises(InputError, match=r"input\.windows is null.*HU"):
        SliceStore(ct, recipe())
    with pytest.raises(InputError, match=r"input\.windows is set.*set input\.windows to null"):
        SliceStore(marked, recipe(input={"windows": [(40.0, 80.0)]}))


def test_a_grey_window_is_of_8_bit_slices(tmp_path):
    studies = random_studies([3], np.uint8)
    wanted = recipe(input={"grey_window": (120.0, 80.0), "mean": 0, "std": 1})
    ((inputs, _, _),) = collect(evaluation_batches(write(tmp_path, studies), [0], wanted))
    expected = np.clip((studies[0].astype(float) - 80) / 80, 0, 1)
    np.testing.assert_allclose(inputs["slices"][0, ..., 0], expected, atol=1e-5)
    ct = write(tmp_path / "ct", random_studies([2], np.int16))
    both = {"windows": [(40.0, 80.0)], "grey_window": (120.0, 80.0)}
    with pytest.raises(InputError, match=r"input\.grey_window is set.*to null"):
        SliceStore(ct, recipe(input=both))
