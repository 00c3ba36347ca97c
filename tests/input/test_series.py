"""Series of a study as the model's input: their numbers, their channels, their intensities."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.evaluation.feature_store import join
from medseq_tf.input.batches import evaluation_batches, training_batches
from medseq_tf.input.model_input import scale_intensities
from medseq_tf.input.slice_store import SliceStore


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Eight patients of two series, whose pictures are darker than 100 or not."""
    root, rng = tmp_path_factory.mktemp("series"), np.random.default_rng(0)
    for patient in range(8):
        for series, low in (("dark", 0), ("light", 100)):
            folder = root / "scans" / f"p{patient}" / series
            folder.mkdir(parents=True)
            for number in range(2 + patient % 3):
                picture = low + rng.integers(1, 100, size=(16, 16))
                cv2.imwrite(str(folder / f"{number}.png"), picture.astype(np.uint8))
    rows = "".join(f"p{i},{i % 2}\n" for i in range(8))
    (root / "labels.csv").write_text("patient_id,sick\n" + rows)
    return root


def prepared(scans, tmp_path, read_as):
    options = {"labels": scans / "labels.csv", "series_as": read_as, "series": "dark,light"}
    return prepare(
        "image-folder",
        scans / "scans",
        out=tmp_path / "data",
        size=16,
        workers=1,
        progress=False,
        **options,
    )


def recipe(**overrides):
    settings = {"input.size": 16, "fit.batch_size": 3, "input.mean": 0, "input.std": 1, **overrides}
    return recipes.load("fsm_bilstm", [f"{key}={value}" for key, value in settings.items()])


@pytest.mark.parametrize("policy", ["all", "random"])
def test_every_slice_comes_with_the_number_of_its_series(scans, tmp_path, policy):
    data = prepared(scans, tmp_path, "sequence")
    marked = recipe(
        **{
            "model.series_mark": True,
            "sequence.policy": policy,
            "sequence.length": 5,
            "sequence.over": "thin",
            "sequence.order": "shuffled",
            "augment": "{}",
        }
    )
    seen = set()
    for inputs, _ in training_batches(data, np.arange(8), marked, epoch=0):
        slices, series = inputs["slices"].numpy(), inputs["series"].numpy()
        assert series.dtype == np.int32
        is_light = slices.mean(axis=(2, 3, 4)) > 100 / 255
        for row, length in enumerate(inputs["lengths"].numpy()):
            np.testing.assert_array_equal(series[row, :length], is_light[row, :length])
            np.testing.assert_array_equal(series[row, length:], -1)
            seen |= set(series[row, :length])
    assert seen == {0, 1}


def test_a_recipe_without_the_mark_reads_no_series(scans, tmp_path):
    data = prepared(scans, tmp_path, "sequence")
    inputs, _, _ = next(iter(evaluation_batches(data, np.arange(8), recipe())))
    assert set(inputs) == {"slices", "lengths"}


def test_neighbours_are_of_the_slice_s_own_series(scans, tmp_path):
    data = prepared(scans, tmp_path, "sequence")
    store = SliceStore(data, recipe(**{"input.neighbours": 1}))
    for row in range(8):
        series = data.series_of(row)
        every = np.arange(len(series))
        around, plain = store.slices_among_neighbours(row, every), store.slices(row, every)
        for place, number in enumerate(series):
            inside = np.flatnonzero(series == number)
            for channel, step in enumerate((-1, 0, 1)):
                expected = np.clip(place + step, inside[0], inside[-1])
                np.testing.assert_array_equal(around[place, ..., channel], plain[expected])


def test_channels_are_the_model_s_channels(scans, tmp_path):
    data = prepared(scans, tmp_path, "channels")
    settings = recipe(**{"input.neighbours": 1, "augment": "{}"})
    assert settings.input.slice_shape(data.channels) == (16, 16, 6)
    for inputs, _, rows in evaluation_batches(data, np.arange(8), settings):
        slices = inputs["slices"].numpy()
        assert slices.shape[2:] == (16, 16, 6)
        for images, length, row in zip(slices, inputs["lengths"], rows, strict=True):
            stored = data.slices(int(row)) / np.float32(255)
            for step in (-1, 0, 1):
                at = np.clip(np.arange(length) + step, 0, int(length) - 1)
                shown = images[: int(length), ..., 2 * (step + 1) : 2 * (step + 2)]
                np.testing.assert_allclose(shown, stored[at], atol=1e-6)


def test_intensities_are_scaled_by_channel_and_range(rng):
    images = rng.normal(size=(2, 4, 4, 6)).astype("float32")  # 3 neighbours of 2 channels
    ranges = np.sort(rng.normal(size=(2, 2, 2, 2)).astype("float32"), axis=-1)
    scaled = scale_intensities(images, ranges).numpy()
    assert scaled.shape == (2, 4, 4, 12)
    for picture in range(6):
        for window in range(2):
            low, high = np.moveaxis(ranges[:, picture % 2, window], -1, 0)[..., None, None]
            expected = np.clip((images[..., picture] - low) / (high - low), 0, 1)
            np.testing.assert_allclose(scaled[..., 2 * picture + window], expected, atol=1e-5)


def test_batches_of_features_are_joined_with_their_series(rng):
    batches = [
        (
            {
                "features": rng.normal(size=(2, steps, 3)).astype("float32"),
                "lengths": np.full(2, steps, np.int32),
                "series": np.ones((2, steps), np.int32),
            },
            np.zeros((2, 1), np.float32),
        )
        for steps in (2, 4)
    ]
    inputs, _ = join(batches)
    np.testing.assert_array_equal(inputs["series"], [[1, 1, -1, -1]] * 2 + [[1] * 4] * 2)
