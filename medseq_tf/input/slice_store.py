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
        pixels = int(prepared.studies["slices"].sum()) * self.input.size**2
        fits = pixels * pixel_bytes <= experiment.fit.cache_limit_mib * 2**20
        self.in_memory = {"memory": True, "none": False, "auto": fits}[experiment.fit.cache]
        self._studies: dict[int, np.ndarray] = {}
        self._masks: dict[int, np.ndarray] = {}
        self._ranges: dict[int, np.ndarray] = {}
        self.failures: list[InputError] = []

    def slices(self, row: int, indices: np.ndarray) -> np.ndarray:
        """Return (T, size, size) intensities of the slices at `indices` of the study at `row`."""
        if self.in_memory:
            if row not in self._studies:
                self._studies[row] = resize(self.prepared.slices(row), self.input.size)
            return self._studies[row][indices]
        distinct, places = np.unique(indices, return_inverse=True)
        return resize(self.prepared.slices(row, distinct), self.input.size)[places]

    def slices_among_neighbours(self, row: int, indices: np.ndarray) -> np.ndarray:
        """Return (T, size, size, 1 + 2 * neighbours) intensities: slices among their neighbours.

        The last axis is in scan order, the slice itself in the middle. Beyond the ends of the study
        its first or last slice is repeated. Without `input.neighbours` the last axis has length 1.
        """
        reach = self.input.neighbours
        if not reach:
            return self.slices(row, indices)[..., None]
        last = int(self.prepared.studies["slices"].iat[row]) - 1
        around = np.clip(np.asarray(indices)[:, None] + np.arange(-reach, reach + 1), 0, last)
        distinct, places = np.unique(around, return_inverse=True)
        images = self.slices(row, distinct)[places.reshape(around.shape)]
        return np.moveaxis(images, 1, -1)

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

    def intensity_range(self, row: int) -> np.ndarray:
        """Return (windows, 2) float32, or (1, 2): the intensities that become 0 and 1."""
        if self.input.windows:
            return np.array(
                [[c - width / 2, c + width / 2] for c, width in self.input.windows], np.float32
            )
        if self.dtype == np.uint8:
            return np.array([grey_levels(self.input)], np.float32)
        if row not in self._ranges:
            self._ranges[row] = quantile_range(self.prepared.slices(row), self.input.percentiles)
        return self._ranges[row]


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
    height, width = images.shape[1:]
    if (height, width) == (size, size):
        return images
    method = cv2.INTER_AREA if min(height, width) > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (size, size), interpolation=method) for image in images])


def quantile_range(images: np.ndarray, quantiles: tuple[float, float]) -> np.ndarray:
    """Return (1, 2) float32: two quantiles of a whole study's intensities, never equal."""
    low, high = np.quantile(images, quantiles)
    return np.array([[low, max(high, low + 1)]], np.float32)
