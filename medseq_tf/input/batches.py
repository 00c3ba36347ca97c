"""Takes a prepared data set, rows of its studies and a recipe; gives tf.data batches of slices.

An element is `({"slices": float32 (B, T, H, W, C), "lengths": int32 (B,)}, labels float32 (B,
labels))`: normalised, right-padded with 0 to the longest sequence of the batch; a label is nan
where it is unknown. For a segmenter, lesion masks float32 (B, T, H, W) of 0 and 1 stand in place
of the labels, varied as their slices are and nan where they are unknown, padding included. The
sequences of an epoch are planned in NumPy; each batch is then a function
of (seed, epoch, batch index) alone, so that any batch can be made again, in any process.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import tensorflow as tf

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.input import sampling as sequences
from medseq_tf.input.augment import augment
from medseq_tf.input.sampling import StudySequence
from medseq_tf.recipe import Augment, Experiment, Input

PREFETCH = 2
"""Finished batches that wait for the model."""

Inputs = dict[str, tf.Tensor]
Batch = list[StudySequence]  # with rows of the prepared data set as studies


# ------------------------------------------------------------------------------- studies to slices


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
        """Gives (T, size, size) intensities of the slices at `indices` of the study at `row`."""
        if self.in_memory:
            if row not in self._studies:
                self._studies[row] = self._resized(self.prepared.slices(row))
            return self._studies[row][indices]
        distinct, places = np.unique(indices, return_inverse=True)
        return self._resized(self.prepared.slices(row, distinct))[places]

    def slices_among_neighbours(self, row: int, indices: np.ndarray) -> np.ndarray:
        """Gives (T, size, size, 1 + 2 * neighbours) intensities: slices among those of the study.

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
        """Gives (T, size, size) float32 lesion masks of the slices at `indices`: 1, 0 or nan.

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
        """Gives, once, why a study could not be read, if it is that which an error tells of."""
        for failure in self.failures:
            if str(failure) in str(error):
                self.failures = []
                return failure
        return None

    def forget(self, row: int) -> None:
        """Frees a study's decoded slices; they are decoded again when they are asked for."""
        self._studies.pop(row, None)
        self._masks.pop(row, None)

    def intensity_range(self, row: int) -> np.ndarray:
        """Gives (windows, 2) float32, or (1, 2): the intensities that become 0 and 1."""
        if self.input.windows:
            return np.float32([[c - width / 2, c + width / 2] for c, width in self.input.windows])
        if self.dtype == np.uint8:
            return np.float32([grey_levels(self.input)])
        if row not in self._ranges:
            self._ranges[row] = quantile_range(self.prepared.slices(row), self.input.percentiles)
        return self._ranges[row]

    def _resized(self, images: np.ndarray) -> np.ndarray:
        return resize(images, self.input.size)


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
    """Gives the grey levels of 8-bit slices that become 0 and 1."""
    if settings.grey_window is None:
        return 0.0, 255.0
    centre, width = settings.grey_window
    return centre - width / 2, centre + width / 2


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes slices (T, H, W) to (T, size, size): by area to shrink, bilinearly to grow."""
    height, width = images.shape[1:]
    if (height, width) == (size, size):
        return images
    method = cv2.INTER_AREA if min(height, width) > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (size, size), interpolation=method) for image in images])


def quantile_range(images: np.ndarray, quantiles: tuple[float, float]) -> np.ndarray:
    """Gives (1, 2) float32: two quantiles of a whole study's intensities, never equal."""
    low, high = np.quantile(images, quantiles)
    return np.float32([[low, max(high, low + 1)]])


# ---------------------------------------------------------------------------------- slices to input


def scale_intensities(images: tf.Tensor, ranges: tf.Tensor) -> tf.Tensor:
    """Scales intensities to [0, 1], each slice by all ranges; what lies outside is clipped.

    Args:
        images: (N, H, W, K), any numeric type: K neighbouring slices, or one.
        ranges: float32 (N, R, 2), the intensities that become 0 and 1.

    Returns:
        float32 (N, H, W, K * R): the first slice by every range, then the next.
    """
    low, high = ranges[:, None, None, None, :, 0], ranges[:, None, None, None, :, 1]
    _, height, width, slices = images.shape
    images = tf.cast(images, tf.float32)[..., None]
    scaled = tf.clip_by_value((images - low) / (high - low), 0.0, 1.0)
    return tf.reshape(scaled, (-1, height, width, slices * ranges.shape[1]))


def pad(images: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Lays out flat slices (N, H, W, C) as (B, T, H, W, C), with zeros after each sequence."""
    return tf.RaggedTensor.from_row_lengths(images, lengths, validate=False).to_tensor()


@functools.lru_cache(maxsize=16)
def _make_inputs(input_json: str, augment_json: str) -> Callable[..., Inputs]:
    """Gives the graph from intensities to inputs, traced once for all epochs, folds and stores."""
    settings = Input.model_validate_json(input_json)
    augmentation = Augment.model_validate_json(augment_json)

    @tf.function(autograph=False)
    def make_inputs(images, lengths, ranges, seed):
        sequence_ids = tf.repeat(tf.range(tf.size(lengths)), lengths)
        images = scale_intensities(images, tf.gather(ranges, sequence_ids))
        images = augment(images, sequence_ids, seed, augmentation, settings.mean, settings.std)
        return {"slices": pad(images, lengths), "lengths": lengths}

    return make_inputs


GEOMETRIC = ("rotation", "resized_crop", "flip", "grid_distortion", "optical_distortion")
"""The augmentations that move pixels, masks included."""


@functools.lru_cache(maxsize=16)
def _make_masks(augment_json: str) -> Callable[..., tf.Tensor]:
    """Gives the graph from stored masks to padded ones, moved as the slices of the same seed."""
    augmentation = Augment.model_validate_json(augment_json)
    still = {name: None for name, _ in augmentation if name not in GEOMETRIC}
    augmentation = augmentation.model_copy(update=still)

    @tf.function(autograph=False)
    def make_masks(masks, lengths, seed):
        sequence_ids = tf.repeat(tf.range(tf.size(lengths)), lengths)
        moved = augment(masks[..., None], sequence_ids, seed, augmentation, 0.0, 1.0)[..., 0]
        masks = tf.where(tf.math.is_nan(moved), moved, tf.cast(moved >= 0.5, tf.float32))
        ragged = tf.RaggedTensor.from_row_lengths(masks, lengths, validate=False)
        return ragged.to_tensor(default_value=np.nan)

    return make_masks


def study_input(
    store: SliceStore, row: int, augmentation: Augment, seed: Sequence[int] | np.ndarray
) -> tf.Tensor:
    """Gives a whole study as the model's input, varied as one sequence.

    Args:
        store: The prepared data set's slices.
        row: Row of the study.
        augmentation: What to vary; `Augment()` for nothing.
        seed: int32 (2,), of all that is drawn.

    Returns:
        float32 (L, H, W, C), normalised, in scan order.

    Raises:
        InputError: The study cannot be read.
    """
    length = int(store.prepared.studies["slices"].iat[row])
    images = store.slices_among_neighbours(row, np.arange(length))
    values = (images, [length], store.intensity_range(row)[None], seed)
    signature = _signature(store)
    make_inputs = _make_inputs(store.input.model_dump_json(), augmentation.model_dump_json())
    tensors = [tf.constant(v, spec.dtype) for v, spec in zip(values, signature, strict=True)]
    return make_inputs.get_concrete_function(*signature)(*tensors)["slices"][0]


def _signature(store: SliceStore) -> tuple[tf.TensorSpec, ...]:
    """Gives what goes into inputs: slices, lengths, ranges of intensities and a seed."""
    size, settings = store.input.size, store.input
    return (
        tf.TensorSpec((None, size, size, 1 + 2 * settings.neighbours), store.dtype),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, len(settings.windows or [0]), 2), tf.float32),
        tf.TensorSpec((2,), tf.int32),
    )


# ---------------------------------------------------------------------------------------- batches


def training_batches(
    prepared: Prepared,
    rows: Sequence[int] | np.ndarray,
    experiment: Experiment,
    epoch: int,
    first_batch: int = 0,
    store: SliceStore | None = None,
    num_parallel_calls: int = tf.data.AUTOTUNE,
    epochs: int = 1,
) -> tf.data.Dataset:
    """Gives epochs of training: shuffled, augmented, bucketed by length.

    Args:
        prepared: The prepared data set.
        rows: Rows of `prepared.studies` to train on.
        experiment: The recipe.
        epoch: Number of the epoch, from 0. With `experiment.seed` it decides everything drawn.
        first_batch: Where to start: the batches from there are the same, bit for bit.
        store: Shares decoded slices with other calls; default: a new one.
        num_parallel_calls: Batches that are made at once; changes no number.
        epochs: How many, one after the other; the next one's first batches are made while the
            last of one are used.

    Returns:
        A dataset of known length (`len`) of `(inputs, labels)`; for a segmenter masks in place of
        the labels.

    Raises:
        InputError: A study has no slices, or the `sequence` settings leave no study.
    """
    store = store or SliceStore(prepared, experiment)
    plan = functools.lru_cache(maxsize=2)(
        lambda number: training_plan(prepared, rows, experiment, number)
    )
    steps = len(plan(epoch))  # of every epoch

    def planned(index: int) -> tuple[Batch, np.ndarray]:
        number, place = divmod(index, steps)
        seed = np.random.SeedSequence([experiment.seed, epoch + number, place])
        return plan(epoch + number)[place], seed.generate_state(2).view(np.int32)

    indices = range(first_batch, epochs * steps)
    masks = experiment.segments
    dataset = _dataset(store, planned, indices, experiment.augment, num_parallel_calls, masks)
    return dataset.map(lambda inputs, labels, rows: (inputs, labels)).prefetch(PREFETCH)


def steps_per_epoch(
    prepared: Prepared, rows: Sequence[int] | np.ndarray, experiment: Experiment
) -> int:
    """Gives the number of training batches of an epoch, the same for every epoch."""
    return len(training_plan(prepared, rows, experiment, epoch=0))


def evaluation_batches(
    prepared: Prepared,
    rows: Sequence[int] | np.ndarray,
    experiment: Experiment,
    batch_size: int | None = None,
    store: SliceStore | None = None,
    num_parallel_calls: int = tf.data.AUTOTUNE,
    masks: bool = False,
) -> tf.data.Dataset:
    """Gives the sequences that answer for each study: unvaried, sorted by length, always the same.

    Args:
        prepared: The prepared data set.
        rows: Rows of `prepared.studies` to evaluate.
        experiment: The recipe.
        batch_size: Sequences a batch; default: `experiment.fit.batch_size`.
        store: Shares decoded slices with other calls; default: a new one.
        num_parallel_calls: Batches that are made at once; changes no number.
        masks: Whether masks stand in place of the labels.

    Returns:
        A dataset of known length of `(inputs, labels, rows)`; rows int32 (B,) tells which study
        of `prepared.studies` each sequence belongs to.

    Raises:
        InputError: A study has no slices.
    """
    store = store or SliceStore(prepared, experiment)
    batches = evaluation_plan(prepared, rows, experiment, batch_size or experiment.fit.batch_size)
    unused = np.zeros(2, np.int32)
    planned = lambda index: (batches[index], unused)  # noqa: E731
    indices = range(len(batches))
    dataset = _dataset(store, planned, indices, Augment(), num_parallel_calls, masks)
    return dataset.prefetch(PREFETCH)


def readable(batches: tf.data.Dataset, store: SliceStore) -> Iterator:
    """Yields the batches; a study that cannot be read is the store's own one-line error.

    Raises:
        InputError: A study of the prepared data set cannot be read.
    """
    try:
        yield from batches
    except tf.errors.OpError as error:
        failure = store.take_failure(error)
        if failure is None:
            raise
        raise failure from None


def training_plan(
    prepared: Prepared, rows: Sequence[int] | np.ndarray, experiment: Experiment, epoch: int
) -> list[Batch]:
    """Gives the batches of one epoch of training: which slices of which rows, in what order.

    Raises:
        InputError: A study has no slices, or the `sequence` settings leave no study.
    """
    settings = experiment.sequence
    lengths = _slice_counts(prepared, rows)
    study_ids = prepared.studies["study_id"].to_numpy()
    keys = [study_key(study_ids[row]) for row in rows]
    plan = sequences.plan_epoch(lengths, settings, experiment.seed, epoch, keys)
    if not plan:
        raise InputError(
            f"sequence.policy {settings.policy} with sequence.length {settings.length} and "
            f"sequence.over {settings.over} leaves none of the {len(lengths)} training studies"
        )
    plan = [sequence._replace(study=int(rows[sequence.study])) for sequence in plan]
    return sequences.batches(plan, experiment.fit.batch_size, experiment.seed, epoch)


def evaluation_plan(
    prepared: Prepared,
    rows: Sequence[int] | np.ndarray,
    experiment: Experiment,
    batch_size: int,
) -> list[Batch]:
    """Gives the batches that answer for the studies at `rows`, sorted by length.

    Raises:
        InputError: A study has no slices.
    """
    lengths = _slice_counts(prepared, rows)
    plan = [
        StudySequence(int(row), slices, number)
        for row, length in zip(rows, lengths, strict=True)
        for number, slices in enumerate(
            sequences.evaluation_sequences(int(length), experiment.sequence)
        )
    ]
    return sequences.batches_by_length(plan, batch_size)


def _slice_counts(prepared: Prepared, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    counts = prepared.studies["slices"].to_numpy()[np.asarray(rows, np.int64)]
    if empty := np.flatnonzero(counts < 1).tolist():
        study = prepared.studies["study_id"].iat[rows[empty[0]]]
        raise InputError(
            f"study {study} of {prepared.path} has no slices (one of {len(empty)} such studies); "
            f"every study needs at least one, prepare the data set again"
        )
    return counts


def study_key(study_id: str) -> int:
    """Gives a study's own number, the same in every cohort that it is part of."""
    return int.from_bytes(hashlib.blake2b(study_id.encode(), digest_size=8).digest(), "big")


def _dataset(
    store: SliceStore,
    planned: Callable[[int], tuple[Batch, np.ndarray]],
    indices: range,
    augmentation: Augment,
    num_parallel_calls: int,
    masks: bool,
) -> tf.data.Dataset:
    """Gives `(inputs, labels or masks, rows)` of the batches and seeds planned at `indices`."""
    labels = store.prepared.labels
    make_inputs = _make_inputs(store.input.model_dump_json(), augmentation.model_dump_json())
    make_masks = _make_masks(augmentation.model_dump_json())

    def read(index):
        batch, seed = planned(int(index))
        rows = np.array([sequence.study for sequence in batch], np.int32)
        lengths = np.array([len(sequence.slices) for sequence in batch], np.int32)
        try:
            images = np.concatenate(
                [store.slices_among_neighbours(row, slices) for row, slices, _ in batch]
            )
            ranges = np.stack([store.intensity_range(sequence.study) for sequence in batch])
            judged = labels[rows]
            if masks:
                judged = np.concatenate([store.masks(row, slices) for row, slices, _ in batch])
        except InputError as error:
            store.failures.append(error)
            raise
        return images, lengths, ranges, seed, judged, rows

    size = store.input.size
    judged_shape = (None, size, size) if masks else (None, labels.shape[1])
    specification = (
        *_signature(store),
        tf.TensorSpec(judged_shape, tf.float32),
        tf.TensorSpec((None,), tf.int32),
    )

    @tf.autograph.experimental.do_not_convert
    def read_in_graph(index):
        values = tf.numpy_function(read, [index], [spec.dtype for spec in specification])
        return tuple(
            tf.ensure_shape(value, spec.shape)
            for value, spec in zip(values, specification, strict=True)
        )

    @tf.autograph.experimental.do_not_convert
    def finish(images, lengths, ranges, seed, judged, rows):
        inputs = make_inputs(images, lengths, ranges, seed)
        return inputs, make_masks(judged, lengths, seed) if masks else judged, rows

    return (
        tf.data.Dataset.range(indices.start, indices.stop)
        .map(read_in_graph, num_parallel_calls=num_parallel_calls, deterministic=True)
        .map(finish, num_parallel_calls=num_parallel_calls, deterministic=True)
    )
