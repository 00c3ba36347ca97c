"""One study before one model: what the model predicts for it, for some of its slices, and so far.

Slices are left out exactly, through `lengths`: a shorter sequence, not a blacked-out slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import tensorflow as tf

from medseq_tf.errors import Diverged
from medseq_tf.evaluation.explain import slice_values
from medseq_tf.evaluation.explain.graphs import ModelGraphs, Told
from medseq_tf.input import sampling
from medseq_tf.input.further_inputs import FurtherInputs
from medseq_tf.input.model_input import study_input
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import Augment

AT_ONCE = 64
"""Sequences that pass through the model at once, unless its aggregator has its own number."""

MOST_COSTLY_SUBSETS = 2048
"""Subsets that are shown at most where each is as much work as a study."""

SLICE_COLUMNS = ("occlusion", "alone", "running", "attention")


class ShownStudy:
    """One study as one model sees it.

    Attributes:
        study: its id.
        inputs: all slices of the study, (slices, height, width, channels), as the model takes them.
        mirrored: whether it is shown them mirrored too; all probabilities are means over both.
        told: what the model reads of it besides slices, one row; their series are of each slice.
        sequences: positions of the slices of each sequence that the study is predicted by.
        distinct: positions of the slices that stand in any of them.
    """

    def __init__(self, graphs: ModelGraphs, store: SliceStore, row: int):
        self.graphs, self.model = graphs, graphs.model
        self.settings = graphs.experiment.input
        self.inputs = study_input(store, row, Augment(), np.zeros(2, np.int32))
        self._shown, self.mirrored = [self.inputs], graphs.experiment.sequence.evaluation.mirrored
        if self.mirrored:
            self._shown.append(tf.reverse(self.inputs, [2]))
        whole = sampling.StudySequence(row, np.arange(len(self.inputs)))
        self.told = FurtherInputs(store.prepared, graphs.experiment).of([whole])
        self._series = self.told.pop("series", None)
        self._channels = store.prepared.channels
        self.study = store.prepared.studies["study_id"].iat[row]
        self.length = int(self.inputs.shape[0])
        self.sequences = sampling.evaluation_sequences(self.length, graphs.experiment.sequence)
        self.distinct = np.unique(np.concatenate(self.sequences))
        self.black = (0.0 - self.settings.mean) / self.settings.std
        self._features: dict[int, tf.Tensor] = {}

    @property
    def heaviest(self) -> ShownStudy:
        """The study as the model sees it that maps are of: this one."""
        return self

    @property
    def covariates(self) -> dict[str, str]:
        """What the model is told of each covariate that it reads, in words, by name."""
        layer = self.model.covariates
        if layer is None:
            return {}
        words = {}
        for name, categories, value in zip(
            layer.names, layer.categories, self.told["covariates"][0], strict=True
        ):
            words[name] = "missing" if np.isnan(value) else f"{value:g}"
            if categories and not np.isnan(value):
                words[name] = categories[int(value)]
        return words

    def probabilities_without(self, covariate: str) -> np.ndarray:
        """Return the study's probabilities (labels,) where a covariate is missing."""
        without = self.told["covariates"].copy()
        without[0, [*self.covariates].index(covariate)] = np.nan
        told = {**self.told, "covariates": without}
        return self.probabilities_of(self.sequences, told).mean(axis=0)

    def images(self) -> np.ndarray:
        """Return the slices in [0, 1], (slices, height, width), at the first window of several.

        Of several series in a slice the first is shown.
        """
        windows = len(self.settings.windows or [0])
        channel = self.settings.neighbours * self._channels * windows
        shown = self.inputs[..., channel].numpy() * self.settings.std + self.settings.mean
        return np.clip(shown, 0, 1).astype(np.float32)

    def told_of(self, positions: np.ndarray, told: Told | None = None) -> Told:
        """Return what the model reads of sequences of positions (sequences, steps) besides slices.

        `told` stands in place of the study's own.
        """
        told = self.told if told is None else told
        return told if self._series is None else {**told, "series": self._series[0][positions]}

    def probabilities(self) -> np.ndarray:
        """Return the study's probabilities (labels,)."""
        return self.probabilities_of(self.sequences).mean(axis=0)

    def probabilities_of(
        self, sequences: Sequence[np.ndarray], told: Told | None = None
    ) -> np.ndarray:
        """Return the probabilities (sequences, labels) of sequences of positions of slices.

        `told` stands in place of the study's own.
        """
        lengths = np.array([len(sequence) for sequence in sequences], np.int32)
        order = np.argsort(lengths, kind="stable")
        probabilities = np.empty((len(sequences), self.model.head.labels), np.float32)
        for start in range(0, len(sequences), self._at_once):
            chunk = order[start : start + self._at_once]
            padded = np.zeros((len(chunk), lengths[chunk].max()), np.int32)
            for place, number in enumerate(chunk):
                padded[place, : lengths[number]] = sequences[number]
            sequence = (padded, lengths[chunk], self.told_of(padded, told))
            each = [tf.sigmoid(self._logits(*sequence, view)) for view in range(len(self._shown))]
            probabilities[chunk] = _mean(each)
        if not np.isfinite(probabilities).all():
            raise Diverged(f"study {self.study}: the model's probabilities are no numbers")
        return probabilities

    @property
    def _at_once(self) -> int:
        """How many sequences pass through the model at once."""
        return getattr(self.model.aggregator, "at_once", AT_ONCE)

    def _logits(
        self, positions: np.ndarray, lengths: np.ndarray, told: Told, view: int
    ) -> tf.Tensor:
        """Return the logits (sequences, labels) of padded positions (sequences, steps).

        View 0 are the slices as they are, 1 mirrored. An encoder that sees slices one by one
        encodes each of them once, for all sequences.
        """
        shown = self._shown[view]
        if self.graphs.by_position:
            return self.graphs.slice_logits(tf.gather(shown, positions), lengths, told)
        if view not in self._features:
            self._features[view] = self.graphs.features(shown)
        features = tf.gather(self._features[view], positions)
        return self.graphs.feature_logits(features, lengths, told)

    def importance(
        self,
        base_values: np.ndarray,
        labels: Sequence[int],
        seed: int = 0,
        decisive: int | None = None,
    ) -> slice_values.SliceValues:
        """Return the slices' Banzhaf values, a mean over the sequences; nan if not shown.

        The subset of no slice is worth `base_values` (labels,); `labels` are numbers, of which the
        first `decisive` (None: all) are told apart.
        """
        total = np.zeros((self.length, len(labels)))
        covariance = np.zeros((len(labels), self.length, self.length))
        count, subsets = np.zeros(self.length), 0
        cheap = self._at_once == AT_ONCE and not self.graphs.by_position
        most = slice_values.MOST_SUBSETS if cheap else MOST_COSTLY_SUBSETS
        for number, sequence in enumerate(self.sequences):
            slices = np.unique(sequence)

            def game(
                shown: np.ndarray, sequence: np.ndarray = sequence, slices: np.ndarray = slices
            ) -> np.ndarray:
                subsequences = [only(sequence, slices[subset]) for subset in shown]
                return self.probabilities_of(subsequences)[:, labels]

            rng = np.random.default_rng([seed, number, len(slices)])
            banzhaf = slice_values.banzhaf(
                game, len(slices), base_values, rng, most // len(self.sequences), decisive
            )
            total[slices] += banzhaf.values
            covariance[:, slices[:, None], slices] += banzhaf.covariance
            count[slices] += 1
            subsets += banzhaf.subsets
        with np.errstate(invalid="ignore"):
            values = total / count[:, None]
            return slice_values.SliceValues(values, covariance / np.outer(count, count), subsets)

    def slice_table(self) -> pd.DataFrame:
        """Return one row a label (by its number) and slice, with columns of `Explanation.slices`.

        Occlusion, alone, running and attention are means over the sequences that show a slice.
        """
        labels = self.model.head.labels
        sums = {name: np.zeros((self.length, labels)) for name in SLICE_COLUMNS}
        counts = {name: np.zeros((self.length, 1)) for name in SLICE_COLUMNS}
        for sequence in self.sequences:
            slices = np.unique(sequence)
            measured = {
                "occlusion": self.occlusion(sequence),
                "alone": self.probabilities_of([np.array([i]) for i in slices]),
                "attention": self.attention(sequence),
            }
            for name, values in measured.items():
                if values is not None:
                    sums[name][slices] += values
                    counts[name][slices] += 1
        if len(self.sequences) == 1:
            sequence = self.sequences[0]
            sums["running"][sequence] = self.running(sequence)
            counts["running"][sequence] = 1
        shown = np.bincount(np.concatenate(self.sequences), minlength=self.length)
        with np.errstate(invalid="ignore"):
            means = {name: sums[name] / counts[name] for name in SLICE_COLUMNS}
        columns = [name for name in SLICE_COLUMNS if name == "occlusion" or counts[name].any()]
        tables = [
            pd.DataFrame(
                {"label": label, "slice": np.arange(self.length), "shown": shown}
                | {name: means[name][:, label] for name in columns}
            )
            for label in range(labels)
        ]
        table = pd.concat(tables, ignore_index=True)
        return table.reindex(columns=[*table.columns, *({"running"} - set(table))])

    def occlusion(self, sequence: np.ndarray) -> np.ndarray | None:
        """Return what the probability loses without each distinct slice, (slices, labels)."""
        slices = np.unique(sequence)
        if len(slices) == 1:
            return None
        without = [sequence[sequence != left_out] for left_out in slices]
        probabilities = self.probabilities_of([sequence, *without])
        return probabilities[0] - probabilities[1:]

    def attention(self, sequence: np.ndarray) -> np.ndarray | None:
        """Return the aggregator's weight of each distinct slice, (slices, 1), if it has any."""
        attention_weights = getattr(self.model.aggregator, "attention_weights", None)
        if attention_weights is None:
            return None
        lengths = np.array([len(sequence)], np.int32)
        each = []
        for inputs in self._shown:
            features = self.model.encode(tf.gather(inputs, sequence)[None], lengths)
            features = self.model.marked(features, self.told_of(sequence[None]))
            each.append(np.asarray(attention_weights(features, lengths)).reshape(len(sequence)))
        weights = _mean(each)
        slices, places = np.unique(sequence, return_inverse=True)
        return np.bincount(places, weights, len(slices))[:, None]

    def running(self, sequence: np.ndarray) -> np.ndarray:
        """Return the probabilities (steps, labels) of the first slice, the first two, and so on."""
        lengths, told = np.array([len(sequence)], np.int32), self.told_of(sequence[None])
        each = []
        for shown in self._shown:
            inputs = {"slices": tf.gather(shown, sequence)[None], "lengths": lengths, **told}
            each.append(tf.sigmoid(self.model.running(inputs)[0]))
        return _mean(each)


def _mean(each: Sequence[np.ndarray | tf.Tensor]) -> np.ndarray:
    return np.mean([np.asarray(one) for one in each], axis=0)


def only(sequence: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Return the steps of a sequence that show one of these slices."""
    return sequence[np.isin(sequence, slices)]
