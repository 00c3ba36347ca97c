"""Takes a run's models and prepared studies; gives what each slice and pixel is worth to them.

Slices are left out exactly, through `lengths`: a shorter sequence, not a blacked-out slice.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tensorflow as tf

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import Diverged, InputError
from medseq_tf.evaluation.explain import slice_values
from medseq_tf.evaluation.explain.explanation import LESION_MAP, PIXEL_METHODS, Explanation, listed
from medseq_tf.input import sampling
from medseq_tf.input.model_input import study_input
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.layers import PerPosition
from medseq_tf.recipe import Augment, Experiment
from medseq_tf.runs.run import Run

AT_ONCE = 64
"""Sequences that pass through the model at once, unless its aggregator has its own number."""
HEAVY_PARTS = 2048
"""Parts that are shown at most where each is as much work as a study."""
STEPS = 32
"""Points on the path of integrated gradients."""


def check_label(label: str | None, prepared: Prepared) -> None:
    """Raise an InputError unless a label is one of the data set's."""
    if label is not None and label not in prepared.label_names:
        raise InputError(f"label = {label!r}: expected one of {', '.join(prepared.label_names)}")


class Explainer:
    """A run's models and the slices of a data set, for several studies in turn.

    Args:
        run: a finished run.
        prepared: a data set with the run's labels.
        studies: ids of the studies to explain.
        seed: of the parts of a study that are drawn.

    Raises:
        InputError: a study is unknown, or the data do not fit the run.
    """

    def __init__(self, run: Run, prepared: Prepared, studies: Sequence[str], seed: int = 0):
        if seed < 0:
            raise InputError(f"seed = {seed}: expected a whole number from 0 up")
        run.require_finished()
        if run.dataset["label_names"] != prepared.label_names:
            raise InputError(
                f"{prepared.path}: has the labels {', '.join(prepared.label_names)}, the run "
                f"{run.path} predicts {', '.join(run.dataset['label_names'])}"
            )
        self.prepared = prepared
        self.row_of = {name: i for i, name in enumerate(prepared.studies["study_id"])}
        for name in studies:
            if name not in self.row_of:
                raise InputError(
                    f"{prepared.path}: has no study {name!r}; its ids are in studies.parquet, such "
                    f"as {next(iter(self.row_of))}"
                )
        self.part_of = self._parts(run, studies)
        self.seed = seed
        self.models: dict[Path, Graphs] = {}
        self.experiment = (run.folds or [run])[0].experiment
        self.store = SliceStore(prepared, self.experiment)

    @staticmethod
    def _parts(run: Run, studies: Sequence[str]) -> dict[str, Run]:
        if not run.folds:
            return dict.fromkeys(studies, run)
        tested_by: dict[str, Run] = {}
        for fold in run.folds:
            for name in fold.splits["test"]:
                tested_by.setdefault(name, fold)  # of repeats, in the first
        for name in studies:
            if name not in tested_by:
                raise InputError(
                    f"{run.path}: no fold tested the study {name}; give one of its folds, such as "
                    f"{run.folds[0].path}"
                )
        return {name: tested_by[name] for name in studies}

    def shown(self, study_id: str) -> ShownStudy:
        """The study as its model reads it."""
        return ShownStudy(self._graphs(study_id), self.store, self.row_of[study_id])

    def readable(self, study_id: str) -> bool:
        """Whether the study's slices can be read."""
        graphs = self._graphs(study_id)
        try:
            ShownStudy(graphs, self.store, self.row_of[study_id])
        except InputError:
            return False
        return True

    def _graphs(self, study_id: str) -> Graphs:
        """The study's model as graphs, loaded once."""
        part = self.part_of[study_id]
        if part.path not in self.models:
            self.models[part.path] = Graphs(part.model(), part.experiment)
        return self.models[part.path]

    def explain(
        self, study_id: str, label: str | None = None, pixels: Sequence[str] | None = None
    ) -> Explanation:
        """Explain one study of those given.

        Args:
            study_id: its id.
            label: None: every label.
            pixels: as `explain.study` takes them.

        Raises:
            InputError: see `check`; or the study cannot be read.
        """
        self.check(label, pixels)
        names = self.prepared.label_names
        labels = names if label is None else [label]
        one, part = self.shown(study_id), self.part_of[study_id]
        if pixels is None:
            pretrained = hasattr(one.model.encoder, "network")
            methods = self.pixel_methods
            pixels = methods[:1] if self.segments or pretrained else ["integrated_gradients"]
        probabilities = one.probabilities()
        table = one.slice_table()
        heat, completeness, notes = {}, {}, []
        bases, base_note = self.base(part)
        numbers = [names.index(name) for name in labels]
        importance = one.importance(np.array([bases[name] for name in labels]), numbers, self.seed)
        table[["importance", "importance_low", "importance_high"]] = np.nan
        ties = {}
        for place, (name, number) in enumerate(zip(labels, numbers, strict=True)):
            values, covariance = importance.values[:, place], importance.covariance[place]
            half = 1.96 * np.sqrt(np.diag(covariance))
            mine = table["label"] == number
            table.loc[mine, "importance"] = values
            table.loc[mine, "importance_low"] = values - half
            table.loc[mine, "importance_high"] = values + half
            near = slice_values.not_told_apart(
                values[one.distinct], covariance[np.ix_(one.distinct, one.distinct)]
            )
            ties[name] = one.distinct[near].tolist()
            if ties[name]:
                first = one.distinct[np.argmax(values[one.distinct])]
                notes.append(
                    f"{name}: slice {first}, the most important, cannot be told apart from "
                    f"{listed(ties[name])}"
                )
        for name in labels:
            number = names.index(name)
            if LESION_MAP in pixels:
                heat[LESION_MAP, name] = one.lesion_map()
            if "grad_cam" in pixels:
                heat["grad_cam", name] = one.grad_cam(number)
            if "integrated_gradients" in pixels:
                gradients, missed = one.integrated_gradients(number)
                heat["integrated_gradients", name] = gradients
                completeness[name] = missed
                mine = table["label"] == number
                table.loc[mine, "gradients"] = gradients.sum(axis=(1, 2))
                if missed > 0.05:
                    notes.append(
                        f"{name}: integrated gradients miss {missed:.0%} of what they add up to"
                    )
        shown = len(one.distinct)
        if shown < one.length:
            notes.append(f"{shown} of {one.length} slices are shown to the model")
        if shown == 1:
            notes.append(
                "the model was shown one slice: its importance is the answer less the base"
            )
        if base_note:
            notes.append(base_note)
        table = table[table["label"].isin([names.index(name) for name in labels])]
        truth = self.prepared.labels[self.row_of[study_id]]
        return Explanation(
            study_id,
            list(labels),
            {name: float(probabilities[names.index(name)]) for name in labels},
            {name: part.thresholds[name] for name in labels},
            {name: float(truth[names.index(name)]) for name in labels},
            table.assign(label=table["label"].map(lambda i: names[i])).reset_index(drop=True),
            one.images(),
            heat,
            completeness,
            notes,
            {name: bases[name] for name in labels},
            ties,
            importance.parts,
        )

    @property
    def segments(self) -> bool:
        """Whether the run's model is a segmenter."""
        return self.experiment.segments

    @property
    def pixel_methods(self) -> tuple[str, ...]:
        """What can mark places in the slices."""
        return (LESION_MAP,) if self.segments else PIXEL_METHODS

    def check(self, label: str | None, pixels: Sequence[str] | None) -> None:
        """Raise an InputError for an unknown label or a method that the model does not have."""
        check_label(label, self.prepared)
        for method in pixels or ():
            if method not in self.pixel_methods:
                expected = " or ".join(self.pixel_methods)
                raise InputError(f"pixels = {method!r}: expected {expected}")

    def base(self, part: Run) -> tuple[dict[str, float], str | None]:
        """What the part of no slice is worth by label, and what is to be said of it, if anything.

        A run without validation studies has the mean over its other predictions.
        """
        table = part.predictions
        table = table[table["probability"].notna()]
        chosen = table[table["split"] == "validation"]
        chosen, note = (chosen, None) if len(chosen) else (
            table,
            "the run has no validation studies: the base is the mean answer to its other studies",
        )  # fmt: skip
        means = chosen.groupby("label")["probability"].mean()
        if not set(self.prepared.label_names) <= set(means.index):
            note = "the run has no predictions of some label: its base is 0.5"
        return {name: float(means.get(name, 0.5)) for name in self.prepared.label_names}, note


class Graphs:
    """A model as graphs, each traced once for all lengths, with a gradient in any case.

    A network that is frozen whole has no gradient inside its model, so it is called by itself.

    Attributes:
        model: a `SequenceClassifier`.
        experiment: its recipe.
    """

    def __init__(self, model: Any, experiment: Experiment):
        self.model, self.experiment = model, experiment
        slices = tf.TensorSpec((None, None, *model.slice_shape), tf.float32)
        lengths = tf.TensorSpec((None,), tf.int32)
        label = tf.TensorSpec((), tf.int32)
        self.of_slices = self._graph(self._of_slices, slices, lengths)
        self.whole = self._graph(self._whole, slices)
        self.gradient = self._graph(self._gradient, slices, label)
        one_study = tf.TensorSpec(slices.shape[1:], tf.float32)
        self.features = self._graph(self._encode, one_study)
        self.lesion = self._graph(self._lesion, one_study)
        self.maps_and_gradient = self._graph(self._maps_and_gradient, one_study, label)

    @staticmethod
    def _graph(function: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., Any]:
        return tf.function(function, input_signature=signature, autograph=False)

    @property
    def by_position(self) -> bool:
        """Whether a slice's features depend on its place in the sequence."""
        return isinstance(self.model.encoder.backbone, PerPosition)

    @functools.cached_property
    def of_features(self) -> Callable[..., tf.Tensor]:
        """Logits of `features` (sequences, steps, features) and lengths."""
        width = self.model.encoder.compute_output_shape((None, None, *self.model.slice_shape))[-1]
        features = tf.TensorSpec((None, None, width), tf.float32)
        return self._graph(self.model.classify, features, tf.TensorSpec((None,), tf.int32))

    def _of_slices(self, slices: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return self.model({"slices": slices, "lengths": lengths}, training=False)

    def _encode(self, slices: tf.Tensor) -> tf.Tensor:
        """Features (slices, features) of the slices of one study."""
        features = self.model.encode(slices[None], tf.shape(slices)[:1], training=False)
        return tf.cast(features[0], tf.float32)

    def _lesion(self, slices: tf.Tensor) -> tf.Tensor:
        """A segmenter's probability of every pixel, (slices, height, width), of one study."""
        return tf.sigmoid(self.model.encoder.backbone.lesion(slices[None])[0])

    def _whole(self, slices: tf.Tensor) -> tf.Tensor:
        """Logits (sequences, labels) of whole sequences, all of one length."""
        shape = tf.shape(slices)
        lengths = tf.fill(shape[:1], shape[1])
        network = getattr(self.model.encoder, "network", None)
        if network is None:
            return self._of_slices(slices, lengths)
        images = tf.reshape(slices, (-1, *slices.shape[2:]))
        if images.shape[-1] == 1:
            images = tf.repeat(images, 3, axis=-1)
        features = network.model(network.preprocess(255.0 * images), training=False)
        features = tf.reshape(features, (shape[0], shape[1], features.shape[-1]))
        return self.model({"features": features, "lengths": lengths}, training=False)

    def moved_back(self, heat: np.ndarray, slices: tf.Tensor) -> np.ndarray:
        """Heat (N, H, W) over upright slices, where the encoder turns them, over those given."""
        mirror = getattr(getattr(self.model.encoder.backbone, "layer", None), "mirror", None)
        if mirror is None:
            return heat
        heat = tf.constant(heat[..., None], tf.float32)
        return mirror.back(heat, slices).numpy()[..., 0]

    def _gradient(self, slices: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """The gradient of each sequence's logit in its slices, of their shape."""
        with tf.GradientTape() as tape:
            tape.watch(slices)
            logit = tf.reduce_sum(tf.gather(self._whole(slices), label, axis=1))
        return tape.gradient(logit, slices)

    def _maps_and_gradient(self, slices: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The last feature maps of one sequence, and the gradient of its logit in them."""
        with _outputs(_last_maps(self.model.encoder)) as recorded, tf.GradientTape() as tape:
            tape.watch(slices)
            logit = tf.gather(self._whole(slices[None])[0], label)
        maps = recorded[-1]
        return tf.cast(maps, tf.float32), tf.cast(tape.gradient(logit, maps), tf.float32)


class ShownStudy:
    """One study before one model.

    Attributes:
        study: its id.
        inputs: all slices of the study, (slices, height, width, channels), as the model takes them.
        sequences: positions of the slices of each sequence that answers for the study.
        distinct: positions of the slices that stand in any of them.
    """

    def __init__(self, network: Graphs, store: SliceStore, row: int):
        self.network, self.model = network, network.model
        self.settings = network.experiment.input
        self.inputs = study_input(store, row, Augment(), np.zeros(2, np.int32))
        self.study = store.prepared.studies["study_id"].iat[row]
        self.length = int(self.inputs.shape[0])
        self.sequences = sampling.evaluation_sequences(self.length, network.experiment.sequence)
        self.distinct = np.unique(np.concatenate(self.sequences))
        self.black = (0.0 - self.settings.mean) / self.settings.std
        self._features = None

    def images(self) -> np.ndarray:
        """The slices in [0, 1], (slices, height, width): the first window where there are more."""
        windows = len(self.settings.windows or [0])
        channel = self.settings.neighbours * windows
        shown = self.inputs[..., channel].numpy() * self.settings.std + self.settings.mean
        return np.clip(shown, 0, 1).astype(np.float32)

    # ------------------------------------------------------------------------ whole answers

    @property
    def _at_once(self) -> int:
        """How many sequences pass through the model at once."""
        return getattr(self.model.aggregator, "at_once", AT_ONCE)

    def answers(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The probabilities (parts, labels) of sequences of slices, each given by positions."""
        lengths = np.array([len(part) for part in parts], np.int32)
        order = np.argsort(lengths, kind="stable")
        found = np.empty((len(parts), self.model.head.labels), np.float32)
        for start in range(0, len(parts), self._at_once):
            chunk = order[start : start + self._at_once]
            padded = np.zeros((len(chunk), lengths[chunk].max()), np.int32)
            for i, part in enumerate(chunk):
                padded[i, : lengths[part]] = parts[part]
            found[chunk] = tf.sigmoid(self._logits(padded, lengths[chunk])).numpy()
        if not np.isfinite(found).all():
            raise Diverged(f"study {self.study}: the model's probabilities are no numbers")
        return found

    def _logits(self, positions: np.ndarray, lengths: np.ndarray) -> tf.Tensor:
        """Logits (sequences, labels) of padded positions (sequences, steps).

        An encoder that sees slices one by one reads each of them once, for all sequences.
        """
        if self.network.by_position:
            return self.network.of_slices(tf.gather(self.inputs, positions), lengths)
        if self._features is None:
            self._features = self.network.features(self.inputs)
        return self.network.of_features(tf.gather(self._features, positions), lengths)

    def probabilities(self) -> np.ndarray:
        """The study's probabilities (labels,)."""
        return self.answers(self.sequences).mean(axis=0)

    # --------------------------------------------------------------------------- slices

    def slice_table(self) -> pd.DataFrame:
        """One row a label (by its number) and slice of the study, as `Explanation.slices`."""
        columns = ("occlusion", "alone", "running", "attention")
        labels = self.model.head.labels
        sums = {name: np.zeros((self.length, labels)) for name in columns}
        counts = {name: np.zeros((self.length, 1)) for name in columns}
        for sequence in self.sequences:
            found = {
                "occlusion": self._occlusion(sequence),
                "alone": self.answers([[i] for i in np.unique(sequence)]),
                "attention": self._attention(sequence),
            }
            slices = np.unique(sequence)
            for name, values in found.items():
                if values is not None:
                    sums[name][slices] += values
                    counts[name][slices] += 1
        if len(self.sequences) == 1:
            sequence = self.sequences[0]
            sums["running"][sequence] = self._running(sequence)
            counts["running"][sequence] = 1
        shown = np.bincount(np.concatenate(self.sequences), minlength=self.length)
        with np.errstate(invalid="ignore"):
            means = {name: sums[name] / counts[name] for name in columns}
        kept = {"occlusion", *(name for name in columns if counts[name].any())}
        tables = [
            pd.DataFrame(
                {"label": label, "slice": np.arange(self.length), "shown": shown}
                | {name: means[name][:, label] for name in columns if name in kept}
            )
            for label in range(labels)
        ]
        table = pd.concat(tables, ignore_index=True)
        return table.reindex(columns=[*table.columns, *({"running"} - set(table))])

    def importance(
        self, base: np.ndarray, labels: Sequence[int], seed: int = 0
    ) -> slice_values.SliceValues:
        """The Banzhaf values of the study's slices, a mean over the sequences; nan if not shown.

        Args:
            base: (labels,), what the part of no slice is worth.
            labels: the labels' numbers.
            seed: of the parts that are drawn.
        """
        total = np.zeros((self.length, len(labels)))
        covariance = np.zeros((len(labels), self.length, self.length))
        count, parts = np.zeros(self.length), 0
        light = self._at_once == AT_ONCE and not self.network.by_position
        most = (slice_values.MOST_PARTS if light else HEAVY_PARTS) // len(self.sequences)
        for number, sequence in enumerate(self.sequences):
            slices = np.unique(sequence)

            def game(shown: np.ndarray, sequence=sequence, slices=slices) -> np.ndarray:
                return self.answers([keep(sequence, slices[row]) for row in shown])[:, labels]

            rng = np.random.default_rng([seed, number, len(slices)])
            found = slice_values.banzhaf(game, len(slices), base, rng, most)
            total[slices] += found.values
            covariance[:, slices[:, None], slices] += found.covariance
            count[slices] += 1
            parts += found.parts
        with np.errstate(invalid="ignore"):
            values = total / count[:, None]
            return slice_values.SliceValues(values, covariance / np.outer(count, count), parts)

    def _occlusion(self, sequence: np.ndarray) -> np.ndarray | None:
        """What the answer loses without each distinct slice, (slices, labels)."""
        slices = np.unique(sequence)
        if len(slices) == 1:
            return None
        without = [sequence[sequence != left_out] for left_out in slices]
        answers = self.answers([sequence, *without])
        return answers[0] - answers[1:]

    def _attention(self, sequence: np.ndarray) -> np.ndarray | None:
        """The aggregator's weight of each distinct slice, (slices, 1), if it has any."""
        weigh = getattr(self.model.aggregator, "attention_weights", None)
        if weigh is None:
            return None
        lengths = np.array([len(sequence)], np.int32)
        features = self.model.encode(tf.gather(self.inputs, sequence)[None], lengths)
        weights = np.asarray(weigh(features, lengths)).reshape(len(sequence))
        slices, places = np.unique(sequence, return_inverse=True)
        return np.bincount(places, weights, len(slices))[:, None]

    def _running(self, sequence: np.ndarray) -> np.ndarray:
        """The answers (steps, labels) to the first slice, the first two, and so on."""
        inputs = {
            "slices": tf.gather(self.inputs, sequence)[None],
            "lengths": np.array([len(sequence)], np.int32),
        }
        return tf.sigmoid(self.model.running(inputs)[0]).numpy()

    # --------------------------------------------------------------------------- pixels

    def lesion_map(self) -> np.ndarray:
        """The probability that a pixel is lesion, (slices, height, width)."""

        def heat(sequence: np.ndarray) -> np.ndarray:
            return self.network.lesion(tf.gather(self.inputs, sequence)).numpy()

        return self._mean_heat(heat)

    def grad_cam(self, label: int) -> np.ndarray:
        """Grad-CAM of a label's logit, (slices, height, width), at least 0.

        The weight of a feature map is the mean of its gradient over the slice, each slice by
        itself (Selvaraju et al. 2017, equations 1 and 2).
        """

        def heat(sequence: np.ndarray) -> np.ndarray:
            slices = tf.gather(self.inputs, sequence)
            maps, gradient = (
                self._by_slice(part, len(sequence))
                for part in self.network.maps_and_gradient(slices, label)
            )
            weights = gradient.mean(axis=(1, 2), keepdims=True)
            found = np.maximum((weights * maps).sum(axis=-1), 0)
            found = np.stack([_resized(part, self.inputs.shape[1:3]) for part in found])
            return self.network.moved_back(found, slices)

        return self._mean_heat(heat)

    def _by_slice(self, maps: tf.Tensor, steps: int) -> np.ndarray:
        """Maps as (steps, height, width, channels), also of positions side by side in channels."""
        maps = maps.numpy()
        if not self.network.by_position:
            return maps
        _, height, width, packed = maps.shape
        positions = self.model.encoder.backbone.positions
        maps = maps.reshape(height, width, positions, packed // positions)
        return np.moveaxis(maps, 2, 0)[:steps]

    def integrated_gradients(self, label: int, steps: int = STEPS) -> tuple[np.ndarray, float]:
        """Integrated gradients of a label's logit on the path from a black study.

        Args:
            label: its number.
            steps: points on the path, spaced and weighted after Gauss and Legendre.

        Returns:
            (slices, height, width), summed over the channels; and by how much their sum misses
            the difference of the two logits, as a share of it.
        """
        missed = []

        def heat(sequence: np.ndarray) -> np.ndarray:
            gradients, share = self._integrated_gradients(sequence, label, steps)
            missed.append(share)
            return gradients

        return self._mean_heat(heat), float(np.mean(missed))

    def _integrated_gradients(
        self, sequence: np.ndarray, label: int, steps: int
    ) -> tuple[np.ndarray, float]:
        slices = tf.gather(self.inputs, sequence)
        black = tf.fill(tf.shape(slices), tf.cast(self.black, slices.dtype))
        points, weights = np.polynomial.legendre.leggauss(steps)
        total = tf.zeros_like(slices)
        at_once = max(1, AT_ONCE // len(sequence))
        for start in range(0, steps, at_once):
            share = (points[start : start + at_once].astype(np.float32) + 1) / 2
            path = black + (slices - black) * share[:, None, None, None, None]
            weight = weights[start : start + at_once].astype(np.float32) / 2
            gradient = self.network.gradient(path, label)
            total += tf.reduce_sum(gradient * weight[:, None, None, None, None], axis=0)
        found = ((slices - black) * total).numpy()
        ends = self.network.whole(tf.stack([slices, black]))[:, label].numpy()
        difference = float(ends[0] - ends[1])
        missed = abs(float(found.sum()) - difference) / max(abs(difference), 1e-6)
        return found.sum(axis=-1), missed

    def _mean_heat(self, of_sequence: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The mean over the sequences, at the slices of the study; nan where none is shown."""
        height, width = self.inputs.shape[1:3]
        total, count = np.zeros((self.length, height, width)), np.zeros(self.length)
        for sequence in self.sequences:
            np.add.at(total, sequence, of_sequence(sequence))
            np.add.at(count, np.unique(sequence), 1)
        with np.errstate(invalid="ignore"):
            return (total / count[:, None, None]).astype(np.float32)


def keep(sequence: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """The steps of a sequence that show one of these slices."""
    return sequence[np.isin(sequence, slices)]


def _resized(heat: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    height, width = shape
    return cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def _last_maps(encoder: Any) -> Any:
    """The layer that gives an encoder's last feature maps.

    Of `keras.applications` that is the last one with maps of several pixels that is no pooling.
    """
    network = getattr(encoder, "network", None)
    if network is None:
        stack = encoder.backbone.layer
        if not hasattr(stack, "stages"):
            raise InputError(
                "model.encoder pixels has no feature maps for grad_cam; use integrated_gradients"
            )
        return stack.fsm or stack.stages[-1]
    for layer in reversed(network.model.layers):
        shape = getattr(layer.output, "shape", ())
        if len(shape) == 4 and shape[1] > 1 and "Pooling" not in type(layer).__name__:
            return layer
    raise InputError(f"{network.application}: has no feature maps for Grad-CAM")


@contextlib.contextmanager
def _outputs(layer: Any) -> Iterator[list[tf.Tensor]]:
    """Yield a list that takes what the layer gives in the block."""
    call, recorded = layer.call, []

    def recording(*args: Any, **kwargs: Any) -> Any:
        recorded.append(call(*args, **kwargs))
        return recorded[-1]

    object.__setattr__(layer, "call", recording)
    try:
        yield recorded
    finally:
        object.__delattr__(layer, "call")
