"""Features of slices from a network that is frozen whole, computed once and kept.

A frozen network makes the same of a slice in every epoch, run and trial, so it sees each slice
once. Features are kept on disk, one file a study and view of it:

    FOLDER/3f/3f9c...e1     .npy, (L, F) float32 or float16, then the SHA-256 of key and content

The name tells all that the features depend on (`feature_views`). So an entry can be shared by all
and never be stale, and neither names nor content tell a study or patient. Files are written whole
or not at all, and what does not match its checksum is computed again. How much is kept is bounded:
see `feature_folder`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from medseq_tf.errors import InputError, Stopped, is_interactive
from medseq_tf.evaluation.feature_folder import FeatureFiles
from medseq_tf.evaluation.feature_views import MIRRORED, Draw, FeatureViews, View, frozen_network
from medseq_tf.input.batches import Batch, evaluation_plan, training_plan
from medseq_tf.input.further_inputs import FurtherInputs
from medseq_tf.input.model_input import study_input
from medseq_tf.input.sampling import WHOLE, Part
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import SequenceClassifier
from medseq_tf.readers.series import NO_SERIES
from medseq_tf.recipe import Experiment

EVALUATION_BATCH = 64
"""Sequences of features that are evaluated at once."""

LINE_SECONDS = 30.0
"""Between two lines of progress in a log; on a terminal one line is drawn over."""

Inputs = dict[str, np.ndarray]


def join(batches: Sequence[tuple[Inputs, np.ndarray]]) -> tuple[Inputs, np.ndarray]:
    """Join batches as of `FeatureStore.training_batches`, each padded by itself, to one."""
    steps = max(inputs["features"].shape[1] for inputs, _ in batches)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in batches[0][0]}
    for inputs, _ in batches:
        for name, values in inputs.items():
            padding = [(0, 0)] * values.ndim
            if name in ("features", "series"):
                padding[1] = (0, steps - values.shape[1])
            beyond = NO_SERIES if name == "series" else 0
            parts[name].append(np.pad(values, padding, constant_values=beyond))
    labels = np.concatenate([labels for _, labels in batches])
    return {name: np.concatenate(values) for name, values in parts.items()}, labels


def no_numbers(study: str, experiment: Experiment) -> InputError:
    """Return the error of a study whose features are NaN or infinite."""
    return InputError(
        f"study {study}: the network's features are no finite numbers; set another "
        f"model.encoder.weights, or fit.precision (now {experiment.fit.precision})"
    )


class FeatureStore:
    """The features of a prepared data set, by study and view, computed when they are first needed.

    They are held in memory as `fit.cache` says (auto: as far as `fit.cache_limit_mib` goes), the
    rest is read from disk as it is used. A study's slices pass through the network by themselves,
    in even chunks: its features never depend on which other studies are computed.

    Args:
        model: a `SequenceClassifier` whose network is frozen whole.
        slices: the prepared data set's slices.
        experiment: the recipe.
        folder: where features are kept, as `feature_folder` gives it; None: in memory alone,
            computed anew by every store.
        verbose: show progress.

    Attributes:
        views: which views there are, and the names of their features; of joined ones, of the
            first part's.
        computed: number of studies and views that this store has computed.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        slices: SliceStore,
        experiment: Experiment,
        folder: Path | None = None,
        verbose: bool = False,
    ):
        network = frozen_network(model)
        self.slices, self.experiment, self.verbose = slices, experiment, verbose
        self.dtype = np.dtype(experiment.features.dtype)
        self._parts = [
            _Part(layer, slices, experiment, model.slice_shape, folder)
            for layer in getattr(network, "parts", (network,))
        ]
        self.views = self._parts[0].views
        self.width = sum(part.width for part in self._parts)
        self.computed = 0
        self._labels = slices.prepared.labels
        self._further = FurtherInputs(slices.prepared, experiment)
        self._on_disk = folder is not None
        self._held: dict[View, np.ndarray] = {}
        self._checked: set[View] = set()
        self._room = self._memory()
        self._generation: int | None = None
        self._above_limit = False

    @property
    def made_by(self) -> list[str]:
        """What the names of the features are made of, see `FeatureViews`, part by part."""
        return [part.views.made_by for part in self._parts]

    @property
    def mark(self) -> Path | None:
        """A file that is in the folder while this store uses it."""
        files = self._parts[0].files
        return None if files is None else files.mark

    # ------------------------------------------------------------------------------- batches

    def of(self, row: int, draw: Draw = None) -> np.ndarray:
        """Return the features (L, F) of the study at `row`, in one view or plain.

        They are of the slices that the recipe ever shows, see `FeatureViews.shown`.

        Raises:
            InputError: the study cannot be read, or its features not be kept.
        """
        view = (row, draw)
        if view not in self._checked:
            self.prepare([view])
        if view in self._held or not self._on_disk:
            return self._held[view]
        features = _joined(part.mapped(view) for part in self._parts)
        if features is None:  # taken away since
            self._checked.discard(view)
            return self.of(row, draw)
        return features

    def training_batches(
        self,
        rows: Sequence[int] | np.ndarray,
        epoch: int,
        first_batch: int = 0,
        together: int = 1,
        part: Part = WHOLE,
    ) -> Iterator[tuple[Inputs, np.ndarray]]:
        """Yield one epoch of training: the sequences of `batches.training_batches` as features.

        It starts at `first_batch`; each `together` batches are joined to one, of which `part` alone
        is given.

        Yields:
            `({"features": float32 (B, T, F), "lengths": int32 (B,)}, labels float32 (B, labels))`,
            padded with 0; with `FurtherInputs` beside the features.
        """
        plan = training_plan(self.slices.prepared, rows, self.experiment, epoch)
        for start in range(first_batch, len(plan), together):
            batch = list(itertools.chain.from_iterable(plan[start : start + together]))
            longest = max(len(sequence.slices) for sequence in batch)
            batch = batch[part.of(len(batch))]
            draws = [self.views.draw(epoch, sequence) for sequence in batch]
            inputs, labels, _ = self._batch(batch, draws, longest)
            yield inputs, labels

    def evaluation_batches(
        self,
        rows: Sequence[int] | np.ndarray,
        batch_size: int = EVALUATION_BATCH,
        experiment: Experiment | None = None,
    ) -> Iterator[tuple[Inputs, np.ndarray, np.ndarray]]:
        """Yield the sequences of `batches.evaluation_batches` as features, of no augmented view.

        They are chosen as `experiment` says, where it is not the store's own.

        Yields:
            As `training_batches`, and rows int32 (B,), the study of each sequence.
        """
        experiment = experiment or self.experiment
        self.prepare(self.views.of_evaluation(rows, experiment))
        for batch in evaluation_plan(self.slices.prepared, rows, experiment, batch_size):
            yield self._batch(batch, [MIRRORED if one.mirrored else None for one in batch])

    def _batch(
        self, batch: Batch, draws: Sequence[Draw], longest: int | None = None
    ) -> tuple[Inputs, np.ndarray, np.ndarray]:
        rows = np.array([sequence.study for sequence in batch], np.int32)
        lengths = np.array([len(sequence.slices) for sequence in batch], np.int32)
        longest = int(lengths.max()) if longest is None else longest
        features = np.zeros((len(batch), longest, self.width), np.float32)
        for place, (sequence, draw) in enumerate(zip(batch, draws, strict=True)):
            shown = self.views.shown(sequence.study)
            if not np.isin(sequence.slices, shown).all():
                raise ValueError("a sequence shows slices that the store's recipe does not")
            places = np.searchsorted(shown, sequence.slices)
            features[place, : lengths[place]] = self.of(sequence.study, draw)[places]
        inputs = {"features": features, "lengths": lengths, **self._further.of(batch, longest)}
        return inputs, self._labels[rows], rows

    # ----------------------------------------------------------------------------- computing

    def prepare_training(
        self,
        rows: Sequence[int] | np.ndarray,
        epoch: int,
        stopped: Callable[[], bool] = lambda: False,
        part: Part = WHOLE,
        alike: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        """Compute what is missing of all that will be drawn from `epoch` to the next redraw.

        Of several processes each computes its `part` first; when all have, it reads those of the
        others, or computes them, where the folder is not one that all see. `alike` does each of the
        two, and comes back when all have, or all are stopped.

        It raises what `prepare` raises.
        """
        generation = self.views.generation(epoch)
        if generation == self._generation:
            return
        self._forget_other_generations(generation)
        views = sorted(self.views.of_generation(rows, epoch), key=_place)
        alike(lambda: self.prepare(views[part.number :: part.count], stopped))
        alike(lambda: self.prepare(views, stopped))
        self._generation = generation

    def prepare(self, views: Iterable[View], stopped: Callable[[], bool] = lambda: False) -> None:
        """Compute what is missing of some views, each written as soon as it is there.

        Raises:
            InputError: a study cannot be read, or a feature not be kept.
            Stopped: `stopped`, asked after every study, said so; what is on disk stays there.
        """
        wanted = sorted(set(views) - self._checked, key=_place)
        progress = _Progress(len({row for row, _ in wanted}), len(wanted), self.verbose)
        missing = []
        for view in wanted:
            if not self._find(view):
                missing.append(view)
            if stopped():
                raise Stopped(f"stopped at {progress}")
        progress.show(len(wanted) - len(missing))
        self._make_room_on_disk(missing)
        with contextlib.closing(self._computed(missing)) as computed:
            for view, features in computed:
                self._hold(view, features)
                progress.show()
                if stopped():
                    raise Stopped(f"stopped at {progress}")

    def _computed(self, views: Sequence[View]) -> Generator[tuple[View, np.ndarray]]:
        """Compute views that are sorted by study; yield each when it is on disk."""
        return self.computed_here(views)

    def computed_here(self, views: Iterable[View]) -> Generator[tuple[View, np.ndarray]]:
        """Compute views that are sorted by study in this process, which does not hold them.

        Yields:
            Each view with its features (L, F), when they are on disk.
        """
        # The next study is decoded and augmented while the network is at work on this one.
        with ThreadPoolExecutor(max_workers=1) as thread:
            inputs = self._inputs(views)
            ahead = thread.submit(next, inputs, None)
            while (item := ahead.result()) is not None:
                ahead = thread.submit(next, inputs, None)
                view, images = item
                features = self._stored(view)
                if features is None:  # else another process has been here
                    features = self._features(view, images)
                yield view, features

    def _make_room_on_disk(self, missing: Sequence[View]) -> None:
        """Remove features that are not in use and do not fit beside what is missing."""
        lengths = [self._length(view) for view in missing]
        for part in self._parts:
            if part.files is None or not missing:
                continue
            above_limit = part.files.make_room(lengths)
            if above_limit and self.verbose and not self._above_limit:
                self._above_limit = True
                print(above_limit, flush=True)

    def _inputs(self, views: Iterable[View]) -> Iterator[tuple[View, tf.Tensor]]:
        """Yield the network's inputs of views that are sorted by study."""
        for row, views_of_study in itertools.groupby(views, key=lambda view: view[0]):
            for _, draw in views_of_study:
                augmentation, seed = self.views.augmentation(draw), self.views.seed(row, draw)
                images = study_input(self.slices, row, augmentation, seed)
                yield (row, draw), tf.gather(images, self.views.shown(row))
            self.slices.forget(row)

    def _features(self, view: View, images: tf.Tensor) -> np.ndarray:
        """Compute the features of a view, in the dtype that they are kept in, and keep them."""
        self.computed += 1
        return np.concatenate([self._of_part(part, view, images) for part in self._parts], axis=1)

    def _of_part(self, part: _Part, view: View, images: tf.Tensor) -> np.ndarray:
        """Return one part of a view's features, which another recipe may have left on disk."""
        found = part.read(view, self._length(view)) if len(self._parts) > 1 else None
        if found is not None:
            return found
        computed = part.compute(images).numpy()
        with np.errstate(over="ignore"):
            features = computed.astype(self.dtype)
        if not np.isfinite(features).all():
            study = self.slices.prepared.studies["study_id"].iat[view[0]]
            if np.isfinite(computed).all():
                raise InputError(
                    f"study {study}: the network's features are too large for {self.dtype}; set "
                    "features.dtype=float32"
                )
            raise no_numbers(study, self.experiment)
        if part.files is not None:
            part.files.write(part.views.key(*view), features)
        return features

    # ---------------------------------------------------------------------- disk and memory

    def _length(self, view: View) -> int:
        return len(self.views.shown(view[0]))

    def _find(self, view: View) -> bool:
        """Return whether an entry is on disk, whole; then hold it where there is memory."""
        features = self._stored(view)
        if features is None:
            return False
        self._hold(view, features)
        return True

    def _stored(self, view: View) -> np.ndarray | None:
        """Return the features of a view if they are on disk, whole."""
        return _joined(part.read(view, self._length(view)) for part in self._parts)

    def _hold(self, view: View, features: np.ndarray) -> None:
        """Note that a view is there, and hold its features where there is memory."""
        self._checked.add(view)
        if features.nbytes <= self._room:
            self._held[view] = features
            self._room -= features.nbytes

    def _memory(self) -> float:
        """Return how many bytes of features may be held in memory."""
        fit = self.experiment.fit
        if not self._on_disk or fit.cache == "memory":
            return math.inf
        return fit.cache_limit_mib * 2**20 if fit.cache == "auto" else 0

    def _forget_other_generations(self, generation: int) -> None:
        """Let go of views of other generations, in memory and on disk."""
        for view in list(self._checked):
            _, draw = view
            if draw is not None and draw != MIRRORED and draw[0] != generation:
                self._checked.discard(view)
                if view in self._held:
                    self._room += self._held.pop(view).nbytes
        for part in self._parts:
            if part.files is not None:
                part.files.keep_only(part.views.key(*view) for view in self._checked)


class _Part:
    """A layer that makes features by itself, alone or beside others, and what is kept of them.

    Args:
        layer: that is frozen whole.
        slices, experiment, folder: as of `FeatureStore`.
        slice_shape: of its input.
    """

    def __init__(
        self,
        layer: Any,
        slices: SliceStore,
        experiment: Experiment,
        slice_shape: Sequence[int],
        folder: Path | None,
    ):
        self.views = FeatureViews(slices.prepared, experiment, layer, slice_shape)
        self.width = int(layer.compute_output_shape((None, *slice_shape))[-1])
        dtype = np.dtype(experiment.features.dtype)
        self.files = None if folder is None else FeatureFiles(folder, self.width, dtype)

        @tf.function(
            input_signature=[tf.TensorSpec((None, *slice_shape), tf.float32)], autograph=False
        )
        def compute(images: tf.Tensor) -> tf.Tensor:
            return tf.cast(layer(images, training=False), tf.float32)

        self.compute = compute

    def read(self, view: View, length: int) -> np.ndarray | None:
        """Return features (L, F) that are on disk, whole, or None."""
        return None if self.files is None else self.files.read(self.views.key(*view), length)

    def mapped(self, view: View) -> np.ndarray | None:
        """Return features as memory of their file; None if they are gone."""
        return None if self.files is None else self.files.mapped(self.views.key(*view))


def _joined(parts: Iterable[np.ndarray | None]) -> np.ndarray | None:
    """Return the features of all parts side by side, (L, F); None if one is missing."""
    found = []
    for part in parts:
        if part is None:
            return None
        found.append(part)
    return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


def _place(view: View) -> tuple[int, Any]:
    return view[0], view[1] or ()


class _Progress:
    """A line that counts studies, or the views of them, that are there."""

    def __init__(self, studies: int, total: int, verbose: bool):
        self.what = "studies" if studies == total else f"views of {studies} studies"
        self.total, self.done, self.cached = total, 0, 0
        self.verbose = verbose and total > 0
        self.shown_at = time.monotonic()

    def __str__(self) -> str:
        return f"features: {self.done}/{self.total} {self.what}, {self.cached} cached"

    def show(self, cached: int | None = None) -> None:
        """Count one more, or at the beginning those that were there."""
        if cached is None:
            self.done += 1
        else:
            self.done = self.cached = cached
        if not self.verbose:
            return
        ended, now = self.done == self.total, time.monotonic()
        if is_interactive():
            print(f"\r{self}", end="\n" if ended else "", flush=True)
        elif ended or now - self.shown_at >= LINE_SECONDS:
            print(self, flush=True)
            self.shown_at = now
