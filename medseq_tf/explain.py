"""Takes a run and a study; gives which slices mattered for its answer, and where in them.

Slices are left out exactly, through `lengths`: a shorter sequence, not a blacked-out slice. Three
figures say what a slice is worth, all in probability:

- `importance`: the Banzhaf value, which is how much the slice adds to a random part of the others:
  the coefficients of the best linear fit of the answer on which slices are shown, over all parts
  (Hammer and Holzman 1992, theorem 4.2). Up to 8 slices every part is shown to the model, above
  that 256 of them, each with its complement.
- `occlusion`: what the answer loses when this slice alone is left out. Where several slices show
  the same lesion each of them is dispensable, which is why it is not the default.
- `alone`: the answer to this slice by itself.

Pixels: integrated gradients (Sundararajan et al. 2017) from a black study, and Grad-CAM (Selvaraju
et al. 2017) at the encoder's last feature maps. The default is the one that fits the encoder:
Grad-CAM for networks of `keras.applications`, which average their maps, and integrated gradients
for `conv_fsm`, which has few large map pixels and tells places apart, and where they are cheap. A
segmenter is explained by its own map of the lesion.
"""

from __future__ import annotations

if __name__ == "__main__":  # answer --help before TensorFlow is imported
    from medseq_tf.cli import main

    main("explain")

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from medseq_tf import sequences
from medseq_tf.errors import InputError
from medseq_tf.experiment import Augment, Experiment
from medseq_tf.files import atomic, destination
from medseq_tf.layers import PerPosition
from medseq_tf.pipeline import SliceStore, study_input
from medseq_tf.prepared import Prepared
from medseq_tf.runs import Run

PARTS = 256
"""Parts of a study that `importance` shows to the model, where there are more."""
EXACT_UP_TO = 8
AT_ONCE = 64
"""Sequences that pass through the model at once, unless its aggregator has its own number."""
STEPS = 32
"""Points on the path of integrated gradients."""
PIXEL_METHODS = ("grad_cam", "integrated_gradients")
LESION_MAP = "lesion_map"
"""The method of segmenters: the probability that a pixel is lesion."""

HEAT = LinearSegmentedColormap.from_list("heat", [(1, 0.85, 0.2, 0), (1, 0.75, 0.1, 0.55),
                                                  (0.9, 0.1, 0.1, 0.85)])  # fmt: skip


# ------------------------------------------------------------------------------- one study


@dataclass(frozen=True)
class Explanation:
    """What `study` found.

    Attributes:
        study: the study's id.
        labels: the labels explained.
        probabilities: the model's answer by label, for the slices that it was shown.
        thresholds: by label.
        truth: by label; nan where unknown.
        slices: one row a label and slice of the study: `slice` (from 0), `shown` (in how many of
            the sequences that answer for the study it stands), `importance`, `occlusion`, `alone`,
            `attention` (where the aggregator has weights), `running` (the answer to the slices up
            to this one) and, if asked for, `gradients` (integrated gradients, summed over the
            slice; a share of the logit). nan where a slice is not shown, or cannot be left out
            because it is the only one.
        images: the slices as the model sees them, (slices, height, width) in [0, 1].
        heat: by (method, label), (slices, height, width); nan where a slice is not shown.
        completeness: by label, by how much integrated gradients miss the difference of the logits
            that they are to add up to, as a share of it.
        notes: what is to be said of them.
    """

    study: str
    labels: list[str]
    probabilities: dict[str, float]
    thresholds: dict[str, float]
    truth: dict[str, float]
    slices: pd.DataFrame
    images: np.ndarray = field(repr=False)
    heat: dict[tuple[str, str], np.ndarray] = field(repr=False)
    completeness: dict[str, float]
    notes: list[str]

    def of(self, label: str | None = None) -> pd.DataFrame:
        """The rows of one label (default: the first) for slices that the model was shown."""
        rows = self.slices[self.slices["label"] == (label or self.labels[0])]
        return rows[rows["shown"] > 0].reset_index(drop=True)

    def top(self, count: int = 3, label: str | None = None) -> pd.DataFrame:
        """The slices that spoke most for the label."""
        rows = self.of(label).sort_values("importance", ascending=False, kind="stable")
        return rows.head(count).reset_index(drop=True)

    def curves(self, label: str | None = None) -> Figure:
        """Importance of each slice as bars, and the running probability."""
        label = label or self.labels[0]
        rows = self.of(label)
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        axis = figure.subplots()
        place = np.arange(len(rows))
        colors = np.where(rows["importance"] >= 0, "#c4622d", "#5c8aa8")
        axis.bar(place, rows["importance"].fillna(0), color=colors, width=0.8)
        axis.axhline(0, color="#8a97a3", linewidth=0.6)
        axis.set(xlabel="slice", ylabel="importance")
        every = max(1, -(-len(rows) // 20))
        axis.set_xticks(place[::every], rows["slice"][::every])
        if rows["running"].notna().any():
            other = axis.twinx()
            other.plot(place, rows["running"], color="#0b6e99", marker=".", markersize=4)
            other.axhline(self.thresholds[label], color="#0b6e99", linestyle=":", linewidth=0.8)
            other.set(ylim=(0, 1), ylabel="probability so far")
            other.yaxis.label.set_color("#0b6e99")
        return figure

    def sheet(
        self, label: str | None = None, method: str | None = None, columns: int = 8
    ) -> Figure:
        """Contact sheet: each slice shown, its heat, and a bar for its importance.

        Args:
            label: default: the first.
            method: of `PIXEL_METHODS`, default: the first there is; what speaks for the label,
                smoothed over 2% of the side.
            columns: slices in a line.
        """
        label = label or self.labels[0]
        rows = self.of(label)
        heat = self._smooth_heat(label, method)
        columns = min(columns, len(rows))
        lines = -(-len(rows) // columns)
        figure = Figure(figsize=(1.25 * columns, 1.5 * lines), layout="constrained")
        figure.patch.set_facecolor("white")
        axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
        most = max(float(np.nanmax(np.abs(rows["importance"].to_numpy(float)), initial=0)), 1e-6)
        brightest = heat.max() if heat is not None else 0
        for axis in axes:
            axis.axis("off")
        for axis, row in zip(axes, rows.itertuples(), strict=False):
            height, width = self.images.shape[1:]
            axis.imshow(self.images[row.slice], cmap="gray", vmin=0, vmax=1)
            if brightest > 0:
                axis.imshow(
                    heat[row.slice] / brightest, cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear"
                )
            share = 0.0 if np.isnan(row.importance) else row.importance / most
            color = "#c4622d" if share >= 0 else "#5c8aa8"
            band = height * 0.08
            axis.set(xlim=(-0.5, width - 0.5), ylim=(height + 1.6 * band, -0.5))
            axis.barh(height + band * 0.8, width, band, left=-0.5, color="#e6ebef")
            axis.barh(height + band * 0.8, abs(share) * width, band, left=-0.5, color=color)
            axis.set_title(str(row.slice), fontsize=7, pad=2)
        return figure

    def _smooth_heat(self, label: str, method: str | None) -> np.ndarray | None:
        """Heat that speaks for the label, (slices, height, width), or None."""
        found = [of for of in self.heat if of[1] == label and method in (None, of[0])]
        if not found:
            return None
        blur = max(0.5, 0.02 * self.images.shape[1])
        heat = np.maximum(np.nan_to_num(self.heat[found[0]]), 0)
        return np.stack([cv2.GaussianBlur(part, (0, 0), blur) for part in heat])

    def alternative(self, label: str | None = None) -> str:
        """What the contact sheet shows, in words."""
        label = label or self.labels[0]
        best = ", ".join(map(str, self.top(3, label)["slice"]))
        return (
            f"{len(self.of(label))} slices of study {self.study} with heat overlays; those that "
            f"spoke most for {label}: {best}; probability {self.probabilities[label]:.2f}"
        )

    def _repr_html_(self) -> str:
        return self.slices[self.slices["shown"] > 0].to_html(index=False)


def study(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    study_id: str,
    label: str | None = None,
    pixels: Sequence[str] | None = None,
) -> Explanation:
    """Explain the answer of a run's best model for one study.

    A study that is read as several sequences gets the mean over them. Of a cross-validated run the
    model is that of the fold that tested the study.

    Args:
        run: a run folder.
        data: a prepared data set that holds the study.
        study_id: as in its `studies.parquet`.
        label: None: every label.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.

    Raises:
        InputError: the study, label or method is unknown, or the data do not fit the run.
    """
    prepared = data if isinstance(data, Prepared) else Prepared.load(data)
    return _Explainer(Run.load(run), prepared, [study_id]).explain(study_id, label, pixels)


def studies(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    pairs: Sequence[tuple[str, str]],
    pixels: Sequence[str] | None = None,
) -> list[Explanation]:
    """Explain several studies, as `study` does; a study that cannot be read is left out.

    Args:
        run: a run folder.
        data: a prepared data set that holds the studies.
        pairs: id and label of each.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.
    """
    prepared = data if isinstance(data, Prepared) else Prepared.load(data)
    explainer = _Explainer(Run.load(run), prepared, list(dict.fromkeys(s for s, _ in pairs)))
    found = []
    for name, label in pairs:
        with contextlib.suppress(InputError):
            found.append(explainer.explain(name, label, pixels))
    return found


def _check_label(label: str | None, prepared: Prepared) -> None:
    if label is not None and label not in prepared.label_names:
        raise InputError(f"label = {label!r}: expected one of {', '.join(prepared.label_names)}")


class _Explainer:
    """A run's models and the slices of a data set, for several studies in turn."""

    def __init__(self, run: Run, prepared: Prepared, studies: Sequence[str]):
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
        self.models: dict[Path, _Network] = {}
        self.store = SliceStore(prepared, (run.folds or [run])[0].experiment)

    @staticmethod
    def _parts(run: Run, studies: Sequence[str]) -> dict[str, Run]:
        if not run.folds:
            return dict.fromkeys(studies, run)
        tested_by = {name: fold for fold in run.folds for name in fold.splits["test"]}
        for name in studies:
            if name not in tested_by:
                raise InputError(
                    f"{run.path}: no fold tested the study {name}; give one of its folds, such as "
                    f"{run.folds[0].path}"
                )
        return {name: tested_by[name] for name in studies}

    def reader(self, study_id: str) -> _Reader:
        """The study as its model reads it."""
        part = self.part_of[study_id]
        if part.path not in self.models:
            self.models[part.path] = _Network(part.model(), part.experiment)
        return _Reader(self.models[part.path], self.store, self.row_of[study_id])

    def explain(
        self, study_id: str, label: str | None = None, pixels: Sequence[str] | None = None
    ) -> Explanation:
        names = self.prepared.label_names
        _check_label(label, self.prepared)
        labels = names if label is None else [label]
        reader, part = self.reader(study_id), self.part_of[study_id]
        methods = (LESION_MAP,) if reader.segments else PIXEL_METHODS
        for method in pixels or ():
            if method not in methods:
                raise InputError(f"pixels = {method!r}: expected {' or '.join(methods)}")
        if pixels is None:
            pretrained = hasattr(reader.model.encoder, "network")
            pixels = methods[:1] if reader.segments or pretrained else ["integrated_gradients"]
        probabilities = reader.probabilities()
        table = reader.slice_table()
        heat, completeness, notes = {}, {}, []
        for name in labels:
            number = names.index(name)
            if LESION_MAP in pixels:
                heat[LESION_MAP, name] = reader.lesion_map()
            if "grad_cam" in pixels:
                heat["grad_cam", name] = reader.grad_cam(number)
            if "integrated_gradients" in pixels:
                gradients, missed = reader.integrated_gradients(number)
                heat["integrated_gradients", name] = gradients
                completeness[name] = missed
                mine = table["label"] == number
                table.loc[mine, "gradients"] = gradients.sum(axis=(1, 2))
                if missed > 0.05:
                    notes.append(
                        f"{name}: integrated gradients miss {missed:.0%} of what they add up to"
                    )
        shown = len(reader.distinct)
        if shown < reader.length:
            notes.append(f"{shown} of {reader.length} slices are shown to the model")
        if shown == 1:
            notes.append("the model was shown one slice, which cannot be left out")
        table = table[table["label"].isin([names.index(name) for name in labels])]
        truth = self.prepared.labels[self.row_of[study_id]]
        return Explanation(
            study_id,
            list(labels),
            {name: float(probabilities[names.index(name)]) for name in labels},
            {name: part.thresholds[name] for name in labels},
            {name: float(truth[names.index(name)]) for name in labels},
            table.assign(label=table["label"].map(lambda i: names[i])).reset_index(drop=True),
            reader.images(),
            heat,
            completeness,
            notes,
        )


class _Network:
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


class _Reader:
    """One study before one model.

    Attributes:
        inputs: all slices of the study, (slices, height, width, channels), as the model takes them.
        sequences: positions of the slices of each sequence that answers for the study.
        distinct: positions of the slices that stand in any of them.
    """

    def __init__(self, network: _Network, store: SliceStore, row: int):
        self.network, self.model = network, network.model
        self.settings = network.experiment.input
        self.inputs = study_input(store, row, Augment(), np.zeros(2, np.int32))
        self.length = int(self.inputs.shape[0])
        self.sequences = sequences.evaluation_sequences(self.length, network.experiment.sequence)
        self.distinct = np.unique(np.concatenate(self.sequences))
        self.black = (0.0 - self.settings.mean) / self.settings.std
        self._features = None

    @property
    def segments(self) -> bool:
        """Whether the model is a segmenter."""
        return self.network.experiment.segments

    def images(self) -> np.ndarray:
        """The slices in [0, 1], (slices, height, width): the first window where there are more."""
        windows = len(self.settings.windows or [0])
        channel = self.settings.neighbours * windows
        shown = self.inputs[..., channel].numpy() * self.settings.std + self.settings.mean
        return np.clip(shown, 0, 1).astype(np.float32)

    # ------------------------------------------------------------------------ whole answers

    def answers(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The probabilities (parts, labels) of sequences of slices, each given by positions."""
        lengths = np.array([len(part) for part in parts], np.int32)
        order = np.argsort(lengths, kind="stable")
        found = np.empty((len(parts), self.model.head.labels), np.float32)
        at_once = getattr(self.model.aggregator, "at_once", AT_ONCE)
        for start in range(0, len(parts), at_once):
            chunk = order[start : start + at_once]
            padded = np.zeros((len(chunk), lengths[chunk].max()), np.int32)
            for i, part in enumerate(chunk):
                padded[i, : lengths[part]] = parts[part]
            found[chunk] = tf.sigmoid(self._logits(padded, lengths[chunk])).numpy()
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
        columns = ("importance", "occlusion", "alone", "running", "attention")
        labels = self.model.head.labels
        sums = {name: np.zeros((self.length, labels)) for name in columns}
        counts = {name: np.zeros((self.length, 1)) for name in columns}
        for sequence in self.sequences:
            found = {
                "importance": self._banzhaf(sequence),
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
        tables = [
            pd.DataFrame(
                {"label": label, "slice": np.arange(self.length), "shown": shown}
                | {name: means[name][:, label] for name in columns if counts[name].any()}
            )
            for label in range(labels)
        ]
        table = pd.concat(tables, ignore_index=True)
        return table.reindex(columns=[*table.columns, *({"running"} - set(table))])

    def _banzhaf(self, sequence: np.ndarray) -> np.ndarray | None:
        """What each distinct slice adds to a random part of the others, (slices, labels)."""
        slices = np.unique(sequence)
        if len(slices) == 1:
            return None
        shown = parts_of(len(slices))
        answers = self.answers([_keep(sequence, slices[row]) for row in shown])
        design = np.concatenate([shown, np.ones((len(shown), 1))], axis=1)
        return np.linalg.lstsq(design, answers, rcond=None)[0][:-1]

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


def parts_of(count: int, most: int = PARTS) -> np.ndarray:
    """Which of `count` slices are shown in each part, (parts, count) bool, none of them empty.

    Every part up to 8 slices; above that random halves, each with its complement, at least four
    times as many as there are slices. The same count gives the same parts.
    """
    if count <= EXACT_UP_TO:
        numbers = np.arange(1, 2**count)
        return (numbers[:, None] >> np.arange(count)) % 2 == 1
    halves = np.random.default_rng(count).random((max(most, 4 * count) // 2, count)) < 0.5
    parts = np.concatenate([halves, ~halves])
    return parts[parts.any(axis=1)]


def _keep(sequence: np.ndarray, slices: np.ndarray) -> np.ndarray:
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


# --------------------------------------------------------------------------------- quality


@dataclass(frozen=True)
class Quality:
    """What `quality` found.

    Attributes:
        table: one row a method, means over the studies: `slice_hit` (the slice of the greatest
            value shows the lesion), `top_k` (share of lesion slices among the k of greatest value,
            k being their number), `deletion` (mean probability while slices are left out from the
            greatest value down: low is good), `pixel_hit` (the brightest pixel of a lesion slice
            lies in the lesion; mean over its slices), `studies`. The row `random` is what chance
            gives.
        deletion: one row a method and share of the slices left out: mean `probability`.
    """

    table: pd.DataFrame
    deletion: pd.DataFrame

    def text(self) -> str:
        """The table for a terminal."""
        names = ("slice_hit", "top_k", "deletion", "pixel_hit")
        lines = [f"{'method':<22}" + "".join(f"{name:>11}" for name in names)]
        for row in self.table.to_dict(orient="records"):
            values = ("-" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in names)
            lines.append(f"{row['method']:<22}" + "".join(f"{value:>11}" for value in values))
        return "\n".join([*lines, f"{self.table['studies'].max()} studies with a lesion"])

    def figure(self) -> Figure:
        """The deletion curves."""
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axis = figure.subplots()
        for method, part in self.deletion.groupby("method", sort=False):
            style = ":" if method == "random" else "-"
            axis.plot(part["left_out"], part["probability"], style, label=method)
        axis.set(xlabel="share of slices left out", ylabel="mean probability", ylim=(0, 1.02))
        axis.legend(frameon=False)
        return figure

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda v: f"{v:.3f}")


SLICE_METHODS = ("importance", "occlusion", "alone", "attention", "gradients")
GRID = np.linspace(0, 1, 21)
RANDOM_ORDERS = 5


def quality(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    split: str = "test",
    label: str | None = None,
    pixels: Sequence[str] | None = PIXEL_METHODS,
) -> Quality:
    """Measure explanations against lesion masks that the model never saw, and against chance.

    Args:
        run: a run folder.
        data: the prepared data set of the run, with masks.
        split: `validation` or `test`: studies of that split that are positive and of which a
            lesion is in sight in at least one, and not all, of the slices that the model is shown.
        label: the label that the masks are of; default: the first.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.

    Raises:
        InputError: there are no masks, or no such study.
    """
    run = Run.load(run)
    prepared = data if isinstance(data, Prepared) else Prepared.load(data)
    _check_label(label, prepared)
    label = prepared.label_names[0] if label is None else label
    splits = [fold.splits for fold in run.folds] or [run.splits]
    known = set(prepared.studies["study_id"])
    studies = [name for part in splits for name in part[split] if name in known]
    explainer = _Explainer(run, prepared, studies)
    if pixels == PIXEL_METHODS and (run.folds or [run])[0].experiment.segments:
        pixels = None
    number = prepared.label_names.index(label)
    rows, curves = [], []
    for name in studies:
        row = explainer.row_of[name]
        masks = prepared.masks(row) if prepared.labels[row, number] == 1 else None
        if masks is None:
            continue
        found = explainer.explain(name, label, pixels)
        shown = found.of()
        lesion = masks[shown["slice"]].any(axis=(1, 2))
        if lesion.any() and not lesion.all():
            reader = explainer.reader(name)
            for method, figures, curve in _judged(found, reader, masks, lesion, number):
                rows.append({"study": name, "method": method, **figures})
                curves.append(pd.DataFrame({"method": method, "left_out": GRID, "p": curve}))
    if not rows:
        raise InputError(
            f"{prepared.path}: has no positive {split} study with a lesion mask that some of the "
            "slices show and others do not"
        )
    table = pd.DataFrame(rows)
    order = list(dict.fromkeys(table["method"]))
    means = table.groupby("method").agg(
        slice_hit=("slice_hit", "mean"),
        top_k=("top_k", "mean"),
        deletion=("deletion", "mean"),
        pixel_hit=("pixel_hit", "mean"),
        studies=("study", "nunique"),
    )
    curve = pd.concat(curves).groupby(["method", "left_out"])["p"].mean().rename("probability")
    return Quality(
        means.loc[order].reset_index(),
        curve.reindex(order, level="method").reset_index(),
    )


def _judged(
    found: Explanation, reader: _Reader, masks: np.ndarray, lesion: np.ndarray, label: int
) -> Iterator[tuple[str, dict[str, float], np.ndarray]]:
    """Yield each method's name, its figures for one study and its deletion curve on `GRID`."""
    rows = found.of()
    slices = rows["slice"].to_numpy()
    nothing = np.full(len(GRID), np.nan)
    for method in SLICE_METHODS:
        if method not in rows or rows[method].isna().any():
            continue
        values = rows[method].to_numpy(float)
        best = np.argsort(-values, kind="stable")
        curve = _deletion(reader, slices[best], label)
        figures = {
            "slice_hit": float(lesion[best[0]]),
            "top_k": float(lesion[best[: lesion.sum()]].mean()),
            "deletion": float(np.trapezoid(curve, GRID)),
        }
        yield method, figures, curve
    rng = np.random.default_rng(0)
    orders = [rng.permutation(slices) for _ in range(RANDOM_ORDERS)]
    curve = np.mean([_deletion(reader, order, label) for order in orders], axis=0)
    area = float(np.trapezoid(curve, GRID))
    share = float(lesion.mean())
    yield (
        "random",
        {"slice_hit": share, "top_k": share, "deletion": area}
        | {"pixel_hit": float(np.mean([_small(masks[i], found).mean() for i in slices[lesion]]))},
        curve,
    )
    for (method, _), heat in found.heat.items():
        hits = [float(_small(masks[i], found).ravel()[np.argmax(heat[i])]) for i in slices[lesion]]
        yield method, {"pixel_hit": float(np.mean(hits))}, nothing


def _deletion(reader: _Reader, order: np.ndarray, label: int) -> np.ndarray:
    """The probability on `GRID` while slices are left out in this order, down to the last one."""
    sequence = reader.sequences[0]
    rests = (_keep(sequence, order[i:]) for i in range(len(order)))
    parts = [rest for rest in rests if len(rest)]
    answers = reader.answers(parts)[:, label]
    return np.interp(GRID, np.arange(len(parts)) / max(len(parts) - 1, 1), answers)


def _small(mask: np.ndarray, found: Explanation) -> np.ndarray:
    """A mask at the size of the model's input."""
    height, width = found.images.shape[1:]
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) > 0


# --------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class Explained:
    """What `explain` found: explanations of studies, the files written, and their quality."""

    studies: list[Explanation]
    files: list[Path]
    quality: Quality | None = None

    def text(self) -> str:
        """For a terminal: each study's answer and the slices that spoke most for it."""
        lines = []
        for found in self.studies:
            for label in found.labels:
                truth = found.truth[label]
                known = "" if np.isnan(truth) else f", truth {truth:.0f}"
                called = found.probabilities[label] >= found.thresholds[label]
                lines.append(
                    f"study {found.study}  {label}: {found.probabilities[label]:.3f} "
                    f"({'positive' if called else 'negative'}{known})"
                )
                best = found.top(5, label)
                lines += [
                    f"    slice {row.slice:<4} importance {row.importance:+.3f}   alone "
                    f"{row.alone:.3f}"
                    for row in best.itertuples()
                ]
            lines += [f"    {note}" for note in found.notes]
        if self.quality is not None:
            lines.append(self.quality.text())
        return "\n".join(lines + [str(file) for file in self.files])


def explain(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    study: str | None = None,
    label: str | None = None,
    out: str | os.PathLike | None = None,
    pixels: Sequence[str] | None = None,
    with_quality: bool = False,
) -> Explained:
    """Explain one study, or the surest wrong ones and a right one of each class.

    Args:
        run: a run folder.
        data: a prepared data set that holds the studies.
        study: a study's id.
        label: None: every label, and the studies are chosen by the first.
        out: a folder for a contact sheet and curves (PNG, with the patient's images) and the table
            (CSV) of each study; None: nothing is written.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.
        with_quality: measure against the data set's lesion masks.

    Raises:
        InputError: see `study` and `quality`.
    """
    run = Run.load(run)
    prepared = data if isinstance(data, Prepared) else Prepared.load(data)
    _check_label(label, prepared)
    chosen = [study] if study else choose(run.predictions, label)
    if not chosen:
        raise InputError(f"{run.path}: has no study of known label to choose; name one: --study")
    explainer = _Explainer(run, prepared, chosen)
    found = [explainer.explain(name, label, pixels) for name in chosen]
    files = [] if out is None else [file for one in found for file in _write(one, Path(out))]
    measured = quality(run, prepared, label=label, pixels=pixels) if with_quality else None
    return Explained(found, files, measured)


def choose(predictions: pd.DataFrame, label: str | None = None, wrong: int = 3) -> list[str]:
    """Choose studies worth a look: the surest wrong ones, then the surest right one of each class.

    Args:
        predictions: of a run; test studies are taken where there are any.
        label: which label; default: the first.
        wrong: how many of the wrong ones.
    """
    if predictions.empty:
        return []
    split = "test" if (predictions["split"] == "test").any() else "validation"
    label = predictions["label"].iloc[0] if label is None else label
    part = predictions[
        (predictions["split"] == split)
        & (predictions["label"] == label)
        & predictions["truth"].notna()
    ]
    part = part.assign(
        right=part["positive"] == (part["truth"] == 1),
        distance=(part["probability"] - part["threshold"]).abs(),
    ).sort_values(["distance", "study"], ascending=[False, True])
    chosen = part[~part["right"]].head(wrong)["study"].tolist()
    for truth in (1, 0):
        chosen += part[part["right"] & (part["truth"] == truth)].head(1)["study"].tolist()
    return chosen


def _write(found: Explanation, out: Path) -> Iterator[Path]:
    out = destination(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{found.study}.csv"
    with atomic(path) as temporary:
        found.slices.to_csv(temporary, index=False)
    yield path
    for label in found.labels:
        figures = {"curves": found.curves(label)}
        figures |= {method: found.sheet(label, method) for method, of in found.heat if of == label}
        for name, figure in figures.items():
            label_name = "".join(c if c.isalnum() else "_" for c in label)
            path = out / f"{found.study}_{label_name}_{name}.png"
            with atomic(path) as temporary:
                figure.savefig(temporary, dpi=130, metadata={"Software": None})
            yield path
