"""Takes studies and a network that is frozen whole; gives the features of their slices.

A frozen network makes the same of a slice in every epoch, run and trial, so it sees each slice
once. Features are kept on disk, one file a study and view of it:

    FOLDER/3f/3f9c...e1     .npy, (L, F) float32 or float16, then the SHA-256 of key and content

The name is the SHA-256 of everything that the numbers depend on: the encoded slices, the input
settings, the augmentation and the seed of its draw, the network and its weights, the dtype and the
versions of what computes it. So an entry can be shared by all and never be stale, and neither names
nor content tell a study or patient. Files are written whole or not at all, and what does not match
its checksum is computed again. How much is kept is bounded: see `cache`.

Training on an augmented study draws on `features.views` variants of it, the plain slices answer for
it in evaluation. A view is augmented as one sequence; what is drawn for it depends on the recipe's
seed, the study's slices, the view's number and the generation (`features.redraw`), nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import platform
import shutil
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf

from medseq_tf import __version__
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation import feature_cache as cache
from medseq_tf.evaluation.feature_cache import cannot_keep, feature_folder
from medseq_tf.files import atomic
from medseq_tf.input.batches import Batch, evaluation_plan, training_plan
from medseq_tf.input.model_input import study_input
from medseq_tf.input.sampling import StudySequence, study_key
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import PretrainedEncoder, SequenceClassifier
from medseq_tf.recipe import Augment, Experiment

__all__ = ["FeatureStore", "feature_folder", "frozen_network", "join", "weights_digest"]

FORMAT_VERSION = 1
"""To be raised with every change to this package's own code that changes features."""

EVALUATION_BATCH = 64
"""Sequences of features that are evaluated at once."""

OVERHEAD = 160
"""Bytes of an entry beside its features."""

LINE_SECONDS = 30.0
"""Between two lines of progress in a log; on a terminal one line is drawn over."""

_VIEWS = 3
"""A random stream of (seed, epoch) besides those of `sequences`."""

Draw = tuple[int, int] | None
"""(generation, view) of an augmented study; None: its plain slices."""

Inputs = dict[str, np.ndarray]


def frozen_network(model: Any) -> Any:
    """Return a model's network of `keras.applications` if it is frozen whole, else None."""
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, PretrainedEncoder) and encoder.network.frozen == "all":
        return encoder.network
    return None


def weights_digest(network: Any) -> str:
    """Return the SHA-256 of a network's weights: their shapes, dtypes and bytes, in order."""
    digest = hashlib.sha256()
    for variable in network.weights:
        values = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{values.dtype.str} {values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()


def join(batches: Sequence[tuple[Inputs, np.ndarray]]) -> tuple[Inputs, np.ndarray]:
    """Join batches of features, each padded by itself, to one.

    Args:
        batches: `({"features": (B, T, F), "lengths": (B,)}, labels (B, labels))`.
    """
    steps = max(inputs["features"].shape[1] for inputs, _ in batches)
    features = [
        np.pad(inputs["features"], ((0, 0), (0, steps - inputs["features"].shape[1]), (0, 0)))
        for inputs, _ in batches
    ]
    lengths = np.concatenate([inputs["lengths"] for inputs, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return {"features": np.concatenate(features), "lengths": lengths}, labels


# --------------------------------------------------------------------------------------- the files


class _Files:
    """Entries on disk, by key: arrays (L, F) of one width and dtype."""

    def __init__(self, folder: Path, width: int, dtype: np.dtype):
        self.folder, self.width, self.dtype = folder, width, dtype

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def read(self, key: str, length: int) -> np.ndarray | None:
        """Return an entry, or None if there is none or it is not what was written."""
        try:
            content = self.path(key).read_bytes()
            body, checksum = content[:-32], content[-32:]
            if _checksum(key, body) != checksum:
                return None
            array = np.load(io.BytesIO(body), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if array.shape != (length, self.width) or array.dtype != self.dtype:
            return None
        cache.touch(self.path(key))
        return array

    def mapped(self, key: str) -> np.ndarray | None:
        """Return an entry as memory of the file, read when it is used; None if it is gone."""
        try:
            return np.load(self.path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def write(self, key: str, array: np.ndarray) -> None:
        """Write an entry, whole or not at all, whoever else writes it."""
        body = io.BytesIO()
        np.save(body, array, allow_pickle=False)
        try:
            try:
                self._write(key, body.getbuffer())
            except FileNotFoundError:  # the folder was taken away meanwhile
                cache.make_folder(self.folder)
                self._write(key, body.getbuffer())
        except OSError as error:
            raise cannot_keep(self.folder, error) from None

    def _write(self, key: str, body: memoryview) -> None:
        # Who may read and write the folder may do so with all in it, and nobody else.
        mode = stat.S_IMODE(self.folder.stat().st_mode)
        if not self.path(key).parent.is_dir():
            self.path(key).parent.mkdir(exist_ok=True)
            self.path(key).parent.chmod(mode)
        with atomic(self.path(key)) as temporary, open(temporary, "wb") as file:
            os.chmod(temporary, mode & 0o666)
            file.write(body)
            file.write(_checksum(key, body))
            file.flush()
            os.fsync(file.fileno())


def _checksum(key: str, body: bytes | memoryview) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + body).digest()


# --------------------------------------------------------------------------------------- the store


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
        self._labels = slices.prepared.labels
        self.width = int(network.compute_output_shape((None, *model.slice_shape))[-1])
        self.dtype = np.dtype(experiment.features.dtype)
        self.computed = 0
        self._files = None if folder is None else _Files(folder, self.width, self.dtype)
        self._common = self._key_material(network, model.slice_shape)
        self._contents: dict[int, bytes] = {}
        self._held: dict[tuple[int, Draw], np.ndarray] = {}
        self._checked: set[tuple[int, Draw]] = set()
        self._room = self._memory()
        self._generation: int | None = None
        self._in_use = None if folder is None else self._use(folder)
        self._above_limit = False

        @tf.function(
            input_signature=[tf.TensorSpec((None, *model.slice_shape), tf.float32)], autograph=False
        )
        def compute(images: tf.Tensor) -> tf.Tensor:
            return tf.cast(network(images, training=False), tf.float32)

        self._compute = compute

    def _use(self, folder: Path) -> Path:
        """Keep the folder's entries that this store uses until it ends; return the file for it."""
        held = contextlib.ExitStack()
        try:
            file = held.enter_context(cache.in_use(folder))
        except OSError as error:
            raise cannot_keep(folder, error) from None
        weakref.finalize(self, _leave, held, folder)
        return file

    def _memory(self) -> float:
        """Return how many bytes of features may be held in memory."""
        fit = self.experiment.fit
        if self._files is None or fit.cache == "memory":
            return math.inf
        return fit.cache_limit_mib * 2**20 if fit.cache == "auto" else 0

    def _key_material(self, network: Any, slice_shape: tuple[int, ...]) -> str:
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        tf32 = on_gpu and tf.config.experimental.tensor_float_32_execution_enabled()
        return json.dumps(
            {
                "format": FORMAT_VERSION,
                "versions": [
                    __version__,
                    tf.__version__,
                    keras.__version__,
                    cv2.__version__,
                    np.__version__,
                ],
                "machine": [
                    platform.machine(),
                    on_gpu,
                    tf32,
                    os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""),
                ],
                "storage": self.slices.prepared.info["storage"],
                "input": self.experiment.input.model_dump(mode="json"),
                "network": [network.application, network.output_name, list(slice_shape)],
                "precision": network.dtype_policy.name,
                "weights": weights_digest(network),
                "dtype": self.dtype.name,
            },
            sort_keys=True,
        )

    # ------------------------------------------------------------------------------------- views

    @property
    def _augmented(self) -> bool:
        return self.experiment.augment != Augment()

    def generation(self, epoch: int) -> int:
        """Return which draw of the views an epoch belongs to."""
        redraw = self.experiment.features.redraw
        return epoch // redraw if redraw else 0

    def draw(self, epoch: int, sequence: StudySequence) -> Draw:
        """Return the view that a sequence shows in an epoch, drawn for it alone."""
        if not self._augmented:
            return None
        study = study_key(self.slices.prepared.studies["study_id"].iat[sequence.study])
        rng = np.random.default_rng([self.experiment.seed, epoch, _VIEWS, study, sequence.number])
        return self.generation(epoch), int(rng.integers(self.experiment.features.views))

    def _seed(self, row: int, draw: Draw) -> np.ndarray:
        """Return the seed, int32 (2,), of all that is drawn for a view."""
        if draw is None:
            return np.zeros(2, np.int32)
        study = int.from_bytes(self._content(row), "big")
        words = np.random.SeedSequence([self.experiment.seed, *draw, study])
        return words.generate_state(2).view(np.int32)

    def _content(self, row: int) -> bytes:
        """Return the SHA-256 of a study's encoded slices."""
        if row not in self._contents:
            digest = hashlib.sha256()
            for png in self.slices.prepared.encoded_slices(row):
                digest.update(len(png).to_bytes(8, "big"))
                digest.update(png)
            self._contents[row] = digest.digest()
        return self._contents[row]

    def key(self, row: int, draw: Draw = None) -> str:
        """Return the name of the features of the study at `row`, in one view or plain."""
        view = None
        if draw is not None:
            augment = self.experiment.augment.model_dump_json()
            view = [augment, self._seed(row, draw).tolist()]
        material = f"{self._common}\n{json.dumps(view)}\n".encode() + self._content(row)
        return hashlib.sha256(material).hexdigest()

    # --------------------------------------------------------------------------------- computing

    def prepare_training(
        self,
        rows: Sequence[int] | np.ndarray,
        epoch: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compute what is missing of all that will be drawn from `epoch` to the next redraw.

        Args:
            rows: rows of the prepared data set to train on.
            epoch: number of the epoch, from 0.
            stopped: asked after every study.

        Raises:
            InputError: a study cannot be read, or a feature not be kept.
            Stopped: `stopped` said so; what is on disk stays there.
        """
        generation = self.generation(epoch)
        if generation == self._generation:
            return
        self._forget(lambda draw: draw is not None and draw[0] != generation)
        if self._files is not None:
            cache.touch(self._in_use)
            for pair in self._checked:
                cache.touch(self._files.path(self.key(*pair)))
        self.prepare(self._wanted(rows, epoch), stopped)
        self._generation = generation

    def _wanted(self, rows: Sequence[int] | np.ndarray, epoch: int) -> set[tuple[int, Draw]]:
        settings, wanted = self.experiment.features, set()
        end = self.experiment.fit.epochs
        if settings.redraw:
            end = min(end, (self.generation(epoch) + 1) * settings.redraw)
        views = settings.views if self._augmented else 1
        for number in range(epoch, end):
            plan = training_plan(self.slices.prepared, rows, self.experiment, number)
            shown = [sequence for batch in plan for sequence in batch]
            wanted |= {(sequence.study, self.draw(number, sequence)) for sequence in shown}
            if len(wanted) == views * len({sequence.study for sequence in shown}):
                break  # each view of each study
        return wanted

    def prepare(
        self,
        wanted: Iterable[tuple[int, Draw]],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compute what is missing of some (row, draw), each written as soon as it is there.

        Raises:
            InputError: a study cannot be read, or a feature not be kept.
            Stopped: `stopped` said so; what is on disk stays there.
        """
        wanted = sorted(set(wanted) - self._checked, key=lambda pair: (pair[0], pair[1] or ()))
        progress = _Progress(len({row for row, _ in wanted}), len(wanted), self.verbose)
        missing = []
        for pair in wanted:
            if not self._find(pair):
                missing.append(pair)
            if stopped():
                raise Stopped(f"stopped at {progress}")
        progress.show(len(wanted) - len(missing))
        self._make_room_on_disk(missing)
        # The next study is decoded and augmented while the network is at work on this one.
        with ThreadPoolExecutor(max_workers=1) as thread:
            studies = self._inputs(missing)
            ahead = thread.submit(next, studies, None)
            while (item := ahead.result()) is not None:
                ahead = thread.submit(next, studies, None)
                pair, images = item
                if not self._find(pair):  # another process may have been here
                    self._keep(pair, self._features(pair, images))
                progress.show()
                if stopped():
                    raise Stopped(f"stopped at {progress}")

    def _make_room_on_disk(self, missing: list[tuple[int, Draw]]) -> None:
        """Remove what is neither in use nor fits beside what is missing.

        Raises:
            InputError: the disk has no room for what is missing.
        """
        if self._files is None or not missing:
            return
        folder, limit = self._files.folder, cache.limit_of(self._files.folder)
        lengths = self.slices.prepared.studies["slices"].to_numpy()
        size = self.width * self.dtype.itemsize
        needed = sum(int(lengths[row]) * size + OVERHEAD for row, _ in missing)
        try:
            cache.make_folder(folder)  # which may have been taken away
            left, _ = cache.make_room(folder, limit.bytes - needed)
            free = shutil.disk_usage(folder).free
            if needed > free:
                cache.make_room(folder, left - (needed - free))
                free = shutil.disk_usage(folder).free
        except OSError as error:
            raise cannot_keep(folder, error) from None
        if needed > free:
            raise InputError(
                f"{folder}: {needed / 2**30:.1f} GiB of features are to be kept there, "
                f"{free / 2**30:.1f} GiB are free; name another folder with --features, or set "
                "fewer features.views or features.dtype=float16"
            )
        if left + needed > limit.bytes and self.verbose and not self._above_limit:
            self._above_limit = True
            print(
                f"features: {cache.size_text(left + needed)} are in use, above the limit of "
                f"{cache.size_text(limit.bytes)} ({limit.source}), which holds again when the run "
                "is over",
                flush=True,
            )

    def _inputs(
        self, pairs: list[tuple[int, Draw]]
    ) -> Iterator[tuple[tuple[int, Draw], tf.Tensor]]:
        for row, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            for _, draw in group:
                augmentation = self.experiment.augment if draw else Augment()
                yield (
                    (row, draw),
                    study_input(self.slices, row, augmentation, self._seed(row, draw)),
                )
            self.slices.forget(row)

    def _features(self, pair: tuple[int, Draw], images: tf.Tensor) -> np.ndarray:
        features = self._compute(images).numpy()
        self.computed += 1
        with np.errstate(over="ignore"):
            kept = features.astype(self.dtype)
        if not np.isfinite(kept).all():
            study = self.slices.prepared.studies["study_id"].iat[pair[0]]
            if np.isfinite(features).all():
                raise InputError(
                    f"study {study}: the network's features are too large for {self.dtype}; set "
                    "features.dtype=float32"
                )
            raise InputError(
                f"study {study}: the network's features are no finite numbers; set another "
                f"model.encoder.weights, or fit.precision (now {self.experiment.fit.precision})"
            )
        return kept

    def _find(self, pair: tuple[int, Draw]) -> bool:
        """Whether an entry is on disk, whole; then it is held in memory where there is room."""
        if self._files is None:
            return False
        length = int(self.slices.prepared.studies["slices"].iat[pair[0]])
        found = self._files.read(self.key(*pair), length)
        if found is None:
            return False
        self._hold(pair, found)
        return True

    def _keep(self, pair: tuple[int, Draw], features: np.ndarray) -> None:
        if self._files is not None:
            self._files.write(self.key(*pair), features)
        self._hold(pair, features)

    def _hold(self, pair: tuple[int, Draw], features: np.ndarray) -> None:
        self._checked.add(pair)
        if features.nbytes <= self._room:
            self._held[pair] = features
            self._room -= features.nbytes

    def _forget(self, unwanted: Callable[[Draw], bool]) -> None:
        for pair in [pair for pair in self._checked if unwanted(pair[1])]:
            self._checked.discard(pair)
            if pair in self._held:
                self._room += self._held.pop(pair).nbytes

    # ----------------------------------------------------------------------------------- reading

    def of(self, row: int, draw: Draw = None) -> np.ndarray:
        """Return the features (L, F) of the study at `row`, in one view or plain.

        Raises:
            InputError: the study cannot be read, or its features not be kept.
        """
        pair = (row, draw)
        if pair not in self._checked:
            self.prepare([pair])
        if pair in self._held:
            return self._held[pair]
        found = self._files.mapped(self.key(row, draw))
        if found is None:  # taken away since
            self._checked.discard(pair)
            return self.of(row, draw)
        return found

    def training_batches(
        self,
        rows: Sequence[int] | np.ndarray,
        epoch: int,
        first_batch: int = 0,
        together: int = 1,
    ) -> Iterator[tuple[Inputs, np.ndarray]]:
        """Yield one epoch of training: the sequences of `batches.training_batches` as features.

        Args:
            rows: rows of the prepared data set to train on.
            epoch: number of the epoch, from 0.
            first_batch: where to start.
            together: batches that are joined to one.

        Yields:
            `({"features": float32 (B, T, F), "lengths": int32 (B,)}, labels float32 (B, labels))`,
            padded with 0.
        """
        plan = training_plan(self.slices.prepared, rows, self.experiment, epoch)
        for start in range(first_batch, len(plan), together):
            batch = [sequence for part in plan[start : start + together] for sequence in part]
            inputs, labels, _ = self._batch(batch, [self.draw(epoch, s) for s in batch])
            yield inputs, labels

    def evaluation_batches(
        self, rows: Sequence[int] | np.ndarray, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[tuple[Inputs, np.ndarray, np.ndarray]]:
        """Yield the sequences of `batches.evaluation_batches` as features of plain slices.

        Yields:
            As `training_batches`, and rows int32 (B,), the study of each sequence.
        """
        self.prepare((int(row), None) for row in rows)
        for batch in evaluation_plan(self.slices.prepared, rows, self.experiment, batch_size):
            yield self._batch(batch, [None] * len(batch))

    def _batch(self, batch: Batch, draws: list[Draw]) -> tuple[Inputs, np.ndarray, np.ndarray]:
        rows = np.array([sequence.study for sequence in batch], np.int32)
        lengths = np.array([len(sequence.slices) for sequence in batch], np.int32)
        features = np.zeros((len(batch), lengths.max(), self.width), np.float32)
        for place, (sequence, draw) in enumerate(zip(batch, draws, strict=True)):
            features[place, : lengths[place]] = self.of(sequence.study, draw)[sequence.slices]
        return {"features": features, "lengths": lengths}, self._labels[rows], rows


def _leave(held: contextlib.ExitStack, folder: Path) -> None:
    """Let the folder's entries go, and bring it back to its limit."""
    with contextlib.suppress(OSError, InputError):
        held.close()
        cache.make_room(folder, cache.limit_of(folder).bytes)


class _Progress:
    """A line that counts studies, or the views of them, that are there."""

    def __init__(self, studies: int, total: int, verbose: bool):
        self.what = "studies" if studies == total else f"views of {studies} studies"
        self.total, self.done, self.cached = total, 0, 0
        self.verbose = verbose and total > 0
        self.said = time.monotonic()

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
        if sys.stdout.isatty() or "ipykernel" in sys.modules:
            print(f"\r{self}", end="\n" if ended else "", flush=True)
        elif ended or now - self.said >= LINE_SECONDS:
            print(self, flush=True)
            self.said = now
