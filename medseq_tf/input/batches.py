"""Batches of sequences for training and evaluation, as `tf.data`.

An element is `({"slices": float32 (B, T, H, W, C), "lengths": int32 (B,)}, labels float32 (B,
labels))`: normalised, right-padded with 0 to the longest sequence of the batch; a label is nan
where it is unknown. Beside the slices stand the recipe's `FurtherInputs`. For a segmenter, lesion
masks float32 (B, T, H, W) of 0 and 1 stand in place of the labels, varied as their slices are and
nan where they are unknown, padding included. The sequences of an epoch are planned in NumPy; each
batch is then a function of (seed, epoch, batch index) alone, so that any batch can be made again,
in any process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.input import sampling
from medseq_tf.input.further_inputs import FurtherInputs
from medseq_tf.input.model_input import input_graph, input_signature, mask_graph
from medseq_tf.input.sampling import WHOLE, Part, StudySequence, study_key
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import Augment, Experiment

PREFETCH = 2
"""Finished batches that wait for the model."""

Batch = list[StudySequence]  # with rows of the prepared data set as studies


def training_batches(
    prepared: Prepared,
    rows: Sequence[int] | np.ndarray,
    experiment: Experiment,
    epoch: int,
    first_batch: int = 0,
    store: SliceStore | None = None,
    num_parallel_calls: int = tf.data.AUTOTUNE,
    epochs: int = 1,
    part: Part = WHOLE,
) -> tf.data.Dataset:
    """Make the batches of some epochs of training: shuffled, augmented, bucketed by length.

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
        part: Of every batch, which alone is read; what is drawn for it is that of the whole batch.

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
    further, augmentation = FurtherInputs(prepared, experiment), experiment.augment
    dataset = _dataset(
        store, planned, indices, augmentation, num_parallel_calls, masks, further, part
    )
    return dataset.map(lambda inputs, labels, rows: (inputs, labels)).prefetch(PREFETCH)


def steps_per_epoch(
    prepared: Prepared, rows: Sequence[int] | np.ndarray, experiment: Experiment
) -> int:
    """Count the training batches of an epoch; every epoch has as many."""
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
    """Make the batches that studies are evaluated on: unvaried, sorted by length, always the same.

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
    planned = [(batch, np.zeros(2, np.int32)) for batch in batches].__getitem__
    indices = range(len(batches))
    further, augmentation = FurtherInputs(prepared, experiment), Augment()
    dataset = _dataset(store, planned, indices, augmentation, num_parallel_calls, masks, further)
    return dataset.prefetch(PREFETCH)


def readable(batches: tf.data.Dataset, store: SliceStore) -> Iterator:
    """Yield the batches; a study that cannot be read is the store's own one-line error.

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
    """Plan the batches of one epoch of training: which slices of which rows, in what order."""
    settings = experiment.sequence
    lengths = _slice_counts(prepared, rows)
    study_ids = prepared.studies["study_id"].to_numpy()
    keys = [study_key(study_ids[row]) for row in rows]
    plan = sampling.plan_epoch(lengths, settings, experiment.seed, epoch, keys)
    if not plan:
        raise InputError(
            f"sequence.policy {settings.policy} with sequence.length {settings.length} and "
            f"sequence.over {settings.over} leaves none of the {len(lengths)} training studies"
        )
    plan = [sequence._replace(study=int(rows[sequence.study])) for sequence in plan]
    return sampling.batches(plan, experiment.fit.batch_size, experiment.seed, epoch)


def evaluation_plan(
    prepared: Prepared, rows: Sequence[int] | np.ndarray, experiment: Experiment, batch_size: int
) -> list[Batch]:
    """Plan the batches that the studies at `rows` are evaluated on, sorted by length.

    With `sequence.evaluation.mirrored` each sequence is followed by itself, mirrored.
    """
    lengths = _slice_counts(prepared, rows)
    plan = [
        StudySequence(int(row), slices, number, mirrored)
        for row, length in zip(rows, lengths, strict=True)
        for number, slices in enumerate(
            sampling.evaluation_sequences(int(length), experiment.sequence)
        )
        for mirrored in (False, True)[: 1 + experiment.sequence.evaluation.mirrored]
    ]
    return sampling.batches_by_length(plan, batch_size)


def _slice_counts(prepared: Prepared, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    counts = prepared.studies["slices"].to_numpy()[np.asarray(rows, np.int64)]
    if empty := np.flatnonzero(counts < 1).tolist():
        study = prepared.studies["study_id"].iat[rows[empty[0]]]
        raise InputError(
            f"study {study} of {prepared.path} has no slices (one of {len(empty)} such studies); "
            f"every study needs at least one, prepare the data set again"
        )
    return counts


def _of_batch(batch: Batch, read: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what is read of the slices of all sequences, (N, H, W, ...), mirrored where they are.

    `read` gives that of slices of a study.
    """
    parts = [read(one.study, one.slices) for one in batch]
    return np.concatenate(
        [part[:, :, ::-1] if one.mirrored else part for one, part in zip(batch, parts, strict=True)]
    )


def _lengths(batch: Batch) -> np.ndarray:
    return np.array([len(sequence.slices) for sequence in batch], np.int32)


def _dataset(
    store: SliceStore,
    planned: Callable[[int], tuple[Batch, np.ndarray]],
    indices: range,
    augmentation: Augment,
    num_parallel_calls: int,
    masks: bool,
    further: FurtherInputs,
    part: Part = WHOLE,
) -> tf.data.Dataset:
    """Make a dataset of `(inputs, labels or masks, rows)` of what is planned at `indices`."""
    labels, names = store.prepared.labels, list(further.signature)
    make_inputs = input_graph(store.input.model_dump_json(), augmentation.model_dump_json())
    make_masks = mask_graph(augmentation.model_dump_json())

    def read(index):
        whole, seed = planned(int(index))
        mine = part.of(len(whole))
        batch = whole[mine]
        rows = np.array([sequence.study for sequence in batch], np.int32)
        lengths = _lengths(batch)
        shown = batch or whole[:1]  # of which nothing is kept: for the shapes
        try:
            images = _of_batch(shown, store.slices_among_neighbours)
            ranges = np.concatenate(
                [store.intensity_ranges(one.study, one.slices) for one in shown]
            )
            targets = _of_batch(shown, store.masks)[: lengths.sum()] if masks else labels[rows]
        except InputError as error:
            store.failures.append(error)
            raise
        images, ranges = images[: lengths.sum()], ranges[: lengths.sum()]
        told = further.of(batch, int(_lengths(whole).max()))
        around = [_lengths(whole[: mine.start]), _lengths(whole[mine.stop :])]
        others = (*(told[name] for name in names), *around[: len(around_specification)])
        return images, lengths, ranges, seed, targets, rows, *others

    size = store.input.size
    target_shape = (None, size, size) if masks else (None, labels.shape[1])
    around_specification = [] if part == WHOLE else [tf.TensorSpec((None,), tf.int32)] * 2
    specification = (
        *input_signature(store),
        tf.TensorSpec(target_shape, tf.float32),
        tf.TensorSpec((None,), tf.int32),
        *further.signature.values(),
        *around_specification,
    )

    @tf.autograph.experimental.do_not_convert
    def read_in_graph(index):
        values = tf.numpy_function(read, [index], [spec.dtype for spec in specification])
        return tuple(
            tf.ensure_shape(value, spec.shape)
            for value, spec in zip(values, specification, strict=True)
        )

    @tf.autograph.experimental.do_not_convert
    def finish(images, lengths, ranges, seed, targets, rows, *others):
        told, around = others[: len(names)], others[len(names) :]
        inputs = make_inputs(images, lengths, ranges, seed, *around)
        inputs = {**inputs, **dict(zip(names, told, strict=True))}
        return inputs, make_masks(targets, lengths, seed, *around) if masks else targets, rows

    return (
        tf.data.Dataset.range(indices.start, indices.stop)
        .map(read_in_graph, num_parallel_calls=num_parallel_calls, deterministic=True)
        .map(finish, num_parallel_calls=num_parallel_calls, deterministic=True)
    )
