"""The slices of a prepared data set, decoded and at the recipe's size, and what becomes 0 and 1."""

from __future__ import annotations

import cv2
import numpy as np

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.recipe import Experiment, Input


class SliceStore:
    """The slices of a prepared data set at the recipe's size, kept in memory where they fit.

    To be shared by all epochs, folds and evaluations of a run: each study is decoded once. Without
    room (`fit.cache`), only the slices that are asked for are decoded, every time, and memory does
    not grow with the cohort. Both give the same numbers. Safe from any thread.

    Args:
        prepared: The prepared data set.
        experiment: The recipe, of which `input` and `fit` are read.

    Raises:
        InputError: `input.windows` and the data set's modality do not go together.

    Attributes:
        dtype: NumPy type of the intensities.
        in_memory: Whether decoded slices are kept.
        failures: Why studies could not be read, for those who see only that a batch failed; to be
            taken by `take_failure`.
    """

    def __init__(self, prepared: Prepared, experiment: Experiment):
        self.prepared = prepared
        self.input = experiment.input
        self.dtype = _intensity_dtype(prepared)
        _check_windows(self.input, prepared)
        pixel_bytes = self.dtype.itemsize
        if experiment.segments:
            pixel_bytes += 1  # of its mask
        pixels = int(prepared.studies["slices"].sum()) * self.input.size**2 * prepared.channels
        fits = pixels * pixel_bytes <= experiment.fit.cache_limit_mib * 2**20
        self.in_memory = {"memory": True, "none": False, "auto": fits}[experiment.fit.cache]
        self._studies: dict[int, np.ndarray] = {}
        self._masks: dict[int, np.ndarray] = {}
        self._ranges: dict[int, np.ndarray] = {}
        self.failures: list[InputError] = []

    def slices(self, row: int, indices: np.ndarray) -> np.ndarray:
        """Return (T, size, size) intensities of the slices at `indices` of the study at `row`.

        Of several channels (T, size, size, channels).
        """
        if self.in_memory:
            if row not in self._studies:
                self._studies[row] = resize(self.prepared.slices(row), self.input.size)
            return self._studies[row][indices]
        distinct, places = np.unique(indices, return_inverse=True)
        return resize(self.prepared.slices(row, distinct), self.input.size)[places]

    def slices_among_neighbours(self, row: int, indices: np.ndarray) -> np.ndarray:
        """Return (T, size, size, (1 + 2 * neighbours) * channels): slices among their neighbours.

        The last axis is in scan order, the slice itself in the middle, all channels of one side by
        side. Beyond the ends of the study, or of a series in it, its first or last slice is
        repeated. Without `input.neighbours` a slice stands alone.
        """
        reach, count = self.input.neighbours, len(indices)
        size, channels = self.input.size, self.prepared.channels
        if not reach:
            return self.slices(row, indices).reshape(count, size, size, channels)
        first, last = self._ends(row, np.asarray(indices))
        around = np.asarray(indices)[:, None] + np.arange(-reach, reach + 1)
        around = np.clip(around, first[:, None], last[:, None])
        distinct, places = np.unique(around, return_inverse=True)
        images = self.slices(row, distinct)[places.reshape(around.shape)]
        images = np.moveaxis(images, 1, 3)  # (T, size, size, 1 + 2 * neighbours[, channels])
        return images.reshape(count, size, size, -1)

    def _ends(self, row: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the last slice of the series that each slice is in."""
        series = self.prepared.series_of(row)
        starts = np.flatnonzero(np.diff(series, prepend=series[0] - 1))
        place = np.searchsorted(starts, indices, side="right") - 1
        return starts[place], np.append(starts[1:], len(series))[place] - 1

    def masks(self, row: int, indices: np.ndarray) -> np.ndarray:
        """Return (T, size, size) float32 lesion masks of the slices at `indices`: 1, 0 or nan.

        A study without masks has no lesion where its label is 0; else its masks are not known.
        """
        if self.in_memory:
            if row not in self._masks:
                self._masks[row] = self._decoded_masks(row, None)
            return self._masks[row][indices].astype(np.float32)
        distinct, places = np.unique(indices, return_inverse=True)
        return self._decoded_masks(row, distinct)[places].astype(np.float32)

    def _decoded_masks(self, row: int, indices: np.ndarray | None) -> np.ndarray:
        masks, size = self.prepared.masks(row, indices), self.input.size
        if masks is None:
            every = int(self.prepared.studies["slices"].iat[row])
            count = every if indices is None else len(indices)
            known = self.prepared.labels[row, 0] == 0
            return np.broadcast_to(np.float16(0 if known else np.nan), (count, size, size))
        nearest = cv2.INTER_NEAREST_EXACT
        return np.stack([cv2.resize(mask, (size, size), interpolation=nearest) for mask in masks])

    def take_failure(self, error: Exception) -> InputError | None:
        """Return, once, why a study could not be read, if it is that which an error tells of."""
        for failure in self.failures:
            if str(failure) in str(error):
                self.failures = []
                return failure
        return None

    def forget(self, row: int) -> None:
        """Free a study's decoded slices; they are decoded again when they are asked for."""
        self._studies.pop(row, None)
        self._masks.pop(row, None)

    def intensity_ranges(self, row: int, indices: np.ndarray) -> np.ndarray:
        """Return the intensities of each slice at `indices` that become 0 and 1.

        Returns:
            (T, channels, windows, 2) float32; without windows one range, for MR two quantiles of
            the slice's series in its study.
        """
        channels = self.prepared.channels
        if self.input.windows:
            ranges = [[c - width / 2, c + width / 2] for c, width in self.input.windows]
        elif self.dtype == np.uint8:
            ranges = [list(grey_levels(self.input))]
        else:
            if row not in self._ranges:
                self._ranges[row] = self._quantile_ranges(row)
            return self._ranges[row][indices]
        every = np.array(ranges, np.float32)
        return np.broadcast_to(every, (len(indices), channels, *every.shape))

    def _quantile_ranges(self, row: int) -> np.ndarray:
        """Return (L, channels, 1, 2): those of every slice, by its series."""
        images, series = self.prepared.slices(row), self.prepared.series_of(row)
        images = images.reshape(*images.shape[:3], -1)
        ranges = np.empty((len(images), images.shape[3], 1, 2), np.float32)
        for number in np.unique(series):
            inside = series == number
            for channel in range(images.shape[3]):
                ranges[inside, channel] = quantile_range(
                    images[inside, ..., channel], self.input.percentiles
                )
        return ranges


class SliceStores:
    """The slices of a prepared data set for several recipes, a store for each kind of input.

    Args:
        prepared: The prepared data set.
    """

    def __init__(self, prepared: Prepared):
        self.prepared = prepared
        self._stores: dict[str, SliceStore] = {}

    def of(self, experiment: Experiment) -> SliceStore:
        """Return the slices as a recipe asks for them.

        Raises:
            InputError: See `SliceStore`.
        """
        kind = experiment.input.model_dump_json()
        if kind not in self._stores:
            self._stores[kind] = SliceStore(self.prepared, experiment)
        return self._stores[kind]


def _intensity_dtype(prepared: Prepared) -> np.dtype:
    storage = prepared.info["storage"]
    return np.dtype(np.int16 if storage["offset"] else storage["dtype"])


def _check_windows(settings: Input, prepared: Prepared) -> None:
    modality = prepared.info["modality"]
    if modality == "CT" and not settings.windows:
        raise InputError(
            f"input.windows is null, but {prepared.path} holds CT intensities (HU); give one "
            f"[centre, width] or more, such as [[40, 80]]"
        )
    if modality == "photograph" and settings.windows:
        raise InputError(
            f"input.windows is set, but {prepared.path} holds 8-bit pictures, not HU; set "
            f"input.windows to null, and perhaps input.grey_window"
        )
    if modality != "photograph" and settings.grey_window:
        raise InputError(
            f"input.grey_window is set, but {prepared.path} holds {modality} intensities, not "
            f"8-bit pictures; set input.grey_window to null"
        )


def grey_levels(settings: Input) -> tuple[float, float]:
    """Return the grey levels of 8-bit slices that become 0 and 1."""
    if settings.grey_window is None:
        return 0.0, 255.0
    centre, width = settings.grey_window
    return centre - width / 2, centre + width / 2


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize slices (T, H, W) to (T, size, size): by area to shrink, bilinearly to grow."""
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images
    method = cv2.INTER_AREA if min(height, width) > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (size, size), interpolation=method) for image in images])


def quantile_range(images: np.ndarray, quantiles: tuple[float, float]) -> np.ndarray:
    """Return (1, 2) float32: two quantiles of all intensities of a series, never equal."""
    low, high = np.quantile(images, quantiles)
    return np.array([[low, max(high, low + 1)]], np.float32)
