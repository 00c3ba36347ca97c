"""The graph of trained models that is served: from encoded slices to probabilities."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from medseq_tf import recipe as recipes
from medseq_tf.input.model_input import pad
from medseq_tf.input.slice_store import grey_levels
from medseq_tf.layers import kernels
from medseq_tf.readers.series import NO_SERIES
from medseq_tf.runs.run import Run, RunOrPath
from medseq_tf.serving.description import MOST_SLICES, Description
from medseq_tf.serving.encoded_slices import (
    SLICES_AT_ONCE,
    decode,
    quantile_ranges,
    require,
    require_pictures,
    to_input,
)
from medseq_tf.serving.further_inputs import further_names, signature_with
from medseq_tf.serving.resize import resize, to_square
from medseq_tf.serving.sequences import Sequences, evaluation_sequences, mean_of_sequences

TOGETHER = 64
"""Slices, or sequences of an encoder with weights per position, that are encoded at once."""


class ServingModel(tf.Module):
    """An exported model's signatures; dimension 0 is the study everywhere.

    Args:
        models: `SequenceClassifier`s, whose probabilities are averaged.
        recipe: of all of them.
        description: what the model says of itself, and how prepared slices are stored.

    Attributes:
        serving_default: `image_bytes` string (B, T), `lengths` int32 (B,) to `probability` float32
            (B, labels), `running_probability` float32 (B, T, labels). Those of classes add up to 1.
        serve_tensors: `slices` float32 (B, T, H, W, C), the model's own input, and `lengths` to the
            same.
        probability: as `serving_default`, without the running probability, and quicker.
        further: the names of the inputs that it takes besides these, of `covariates`, float32
            (B, D) as its description lists them, NaN where one is missing (without, all of them
            are), and `series`, int32 (B, T), the number of each slice's series, -1 where it is not
            known (without, it is not of any).
        with_covariates: `serving_default` with all of them, called as `signature_with` says; not
            there where there are none.
        probability_with_covariates: the same of `probability`.
        describe: `question` string (B,), whatever it holds, to `description` string (B,): JSON.
    """

    def __init__(self, models: Sequence[Any], recipe: recipes.Experiment, description: Description):
        super().__init__(name="medseq_tf")
        functions = _Signatures(models, recipe, description)
        slice_shape = recipe.input.slice_shape(description.channels)
        slices = tf.TensorSpec((None, None, *slice_shape), tf.float32, "slices")
        lengths = tf.TensorSpec((None,), tf.int32, "lengths")
        image_bytes = tf.TensorSpec((None, None), tf.string, "image_bytes")
        question = tf.TensorSpec((None,), tf.string, "question")
        self.weights = [variable.value for model in models for variable in model.variables]
        self.serving_default = _compiled(functions.running_of(()), image_bytes, lengths)
        self.probability = _compiled(functions.whole_of(()), image_bytes, lengths)
        self.serve_tensors = _compiled(functions.from_tensors, slices, lengths)
        self.describe = _compiled(functions.describe, question)
        self.further = further_names(description)
        if self.further:
            known = {
                "covariates": tf.TensorSpec(
                    (None, len(description.covariates or ())), tf.float32, "covariates"
                ),
                "series": tf.TensorSpec((None, None), tf.int32, "series"),
            }
            inputs = (image_bytes, lengths, *(known[name] for name in self.further))
            for running, answer in ((True, functions.running_of), (False, functions.whole_of)):
                ask = _compiled(answer(self.further), *inputs)
                setattr(self, signature_with(self.further, running), ask)

    @property
    def signatures(self) -> dict[str, Any]:
        """The signatures by name."""
        names = ["serving_default", "serve_tensors", "probability", "describe"]
        if self.further:
            names += [signature_with(self.further, running) for running in (True, False)]
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A finished run in memory.

    Attributes:
        run: its folder.
        recipe: of all its models.
        models: the Keras model, or one a fold of a cross-validated run.
        description: what an export of it says of itself.
    """

    run: Run
    recipe: recipes.Experiment
    models: list[Any]
    description: Description

    @classmethod
    def open(
        cls,
        run: RunOrPath,
        most_slices: int = MOST_SLICES,
        costs: str | os.PathLike | None = None,
    ) -> LoadedRun:
        """Load the models of a run; an InputError if it is none, or not finished.

        Classes are called by a table of `costs`, where there is one.
        """
        opened = Run.open(run)
        opened.require_finished()
        members = opened.folds or [opened]
        recipe = members[0].experiment
        models = [member.model() for member in members]
        description = Description.of_run(opened, most_slices)
        if costs is not None:
            description = description.with_costs(costs)
        return cls(opened, recipe, models, description)

    def serving_model(self) -> ServingModel:
        """Build the graph."""
        return ServingModel(self.models, self.recipe, self.description)


def _ends_of_runs(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return, for each of values (N,), the first and the last place of the run that it is in."""
    is_start = tf.concat([[True], values[1:] != values[:-1]], 0)[: tf.size(values)]
    starts = tf.cast(tf.where(is_start)[:, 0], tf.int32)
    run = tf.cumsum(tf.cast(is_start, tf.int32)) - 1
    ends = tf.concat([starts[1:], [tf.size(values)]], 0) - 1
    return tf.gather(starts, run), tf.gather(ends, run)


def _compiled(function: Callable, *specification: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=specification, autograph=False)


def _finite(**probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return probabilities (B, ...) as they are; with one that is no number, an error instead."""
    by_output = [
        tf.reduce_all(tf.math.is_finite(values), axis=tuple(range(1, len(values.shape))))
        for values in probabilities.values()
    ]
    is_finite = tf.reduce_all(tf.stack(by_output), axis=0)
    first = tf.argmin(tf.cast(is_finite, tf.int32), output_type=tf.int32)
    message = ("the model's probability of study ", first, " is no number")
    with tf.control_dependencies([require(tf.reduce_all(is_finite), *message)]):
        return {name: tf.identity(values) for name, values in probabilities.items()}


class _Request(NamedTuple):
    """A checked request.

    Attributes:
        lengths: (B,)
        width: T
        chosen: sequences of slices.
        features: theirs (S, n, F), by model.
        told: what the models read of the sequences besides, by name.
    """

    lengths: tf.Tensor
    width: tf.Tensor
    chosen: Sequences
    features: list[tf.Tensor]
    told: Mapping[str, tf.Tensor] = {}


class _Signatures:
    """The functions behind the signatures."""

    def __init__(self, models: Sequence[Any], recipe: recipes.Experiment, description: Description):
        self.models = models
        self.recipe = recipe
        self.description = description
        encoder = recipe.model.encoder
        self.is_per_position = getattr(encoder, "weights", "") == "per_position"

    def describe(self, question: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the description, once for each question (B,)."""
        return {"description": tf.fill(tf.shape(question), self.description.to_json())}

    def from_tensors(self, slices: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """Predict from the models' own input (B, T, H, W, C)."""
        checks = self._checks(slices, lengths, "slices")
        with tf.control_dependencies(checks):
            width = tf.shape(slices)[1]
            is_slice = tf.sequence_mask(lengths, width)[:, :, None, None, None]
        slices = tf.where(is_slice, slices, 0.0)
        is_finite = tf.reduce_all(tf.math.is_finite(slices))
        with tf.control_dependencies([require(is_finite, "slices hold values that are no number")]):
            slices = tf.identity(slices)
        study = tf.range(tf.size(lengths))
        positions = tf.tile(tf.range(width)[None], (tf.size(study), 1))
        chosen = Sequences(study, positions, lengths)
        features = [self._features(model, slices, lengths) for model in self.models]
        return self._running(_Request(lengths, width, chosen, features))

    def running_of(self, further: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        """Return what predicts from files (B, T), after each of the slices that the recipe picks.

        It takes `further` inputs besides, in this order.
        """
        return self._asked(self._running, further)

    def whole_of(self, further: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        """Return what predicts from files (B, T) and `further` inputs."""
        return self._asked(self._whole, further)

    def _asked(
        self, answer: Callable[[_Request], dict[str, tf.Tensor]], further: tuple[str, ...]
    ) -> Callable[..., dict[str, tf.Tensor]]:
        """Return the function of files, lengths and further inputs, whose arguments name them."""

        def plain(image_bytes: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
            return answer(self._read(image_bytes, lengths))

        def with_covariates(
            image_bytes: tf.Tensor, lengths: tf.Tensor, covariates: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            return answer(self._read(image_bytes, lengths, covariates))

        def with_series(
            image_bytes: tf.Tensor, lengths: tf.Tensor, series: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            return answer(self._read(image_bytes, lengths, series=series))

        def with_both(
            image_bytes: tf.Tensor, lengths: tf.Tensor, covariates: tf.Tensor, series: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            return answer(self._read(image_bytes, lengths, covariates, series))

        by_inputs: dict[tuple[str, ...], Callable[..., dict[str, tf.Tensor]]] = {
            (): plain,
            ("covariates",): with_covariates,
            ("series",): with_series,
            ("covariates", "series"): with_both,
        }
        return by_inputs[further]

    def _whole(self, request: _Request) -> dict[str, tf.Tensor]:
        whole = self._mean_of_models(request, running=False)
        studies = tf.size(request.lengths)
        means = tf.math.unsorted_segment_mean(whole, request.chosen.study, studies)
        return _finite(probability=means)

    def _running(self, request: _Request) -> dict[str, tf.Tensor]:
        steps = self._mean_of_models(request, running=True)
        lengths = request.lengths
        running = mean_of_sequences(steps, request.chosen, lengths, request.width)
        whole = tf.gather(running, lengths - 1, axis=1, batch_dims=1)
        return _finite(probability=whole, running_probability=running)

    def _mean_of_models(self, request: _Request, running: bool) -> tf.Tensor:
        """Return the models' mean probability for each sequence, or after each of its slices."""
        probabilities = []
        for model, features in zip(self.models, request.features, strict=True):
            inputs = {"features": features, "lengths": request.chosen.lengths, **request.told}
            logits = model.running(inputs) if running else model(inputs, training=False)
            probabilities.append(tf.sigmoid(logits))
        return tf.add_n(probabilities) / len(probabilities)

    def _read(
        self,
        image_bytes: tf.Tensor,
        lengths: tf.Tensor,
        covariates: tf.Tensor | None = None,
        series: tf.Tensor | None = None,
    ) -> _Request:
        """Check a request, choose its slices and encode them."""
        if covariates is not None:
            covariates = self._checked_covariates(covariates, tf.size(lengths))
        width = tf.shape(image_bytes)[1]
        with tf.control_dependencies(self._checks(image_bytes, lengths, "image_bytes")):
            lengths = tf.identity(lengths)
        if series is not None:
            series = self._checked_series(series, lengths, width)
        chosen = evaluation_sequences(lengths, self.recipe.sequence)
        start = tf.cumsum(lengths, exclusive=True)
        is_slice = tf.sequence_mask(chosen.lengths, tf.shape(chosen.positions)[1])
        numbers = tf.gather(start, chosen.study)[:, None] + chosen.positions
        shown, place = tf.unique(tf.boolean_mask(numbers, is_slice))
        frames = self._frames(image_bytes, lengths, series, shown)
        features = [self._of_frames(model, frames, place, chosen) for model in self.models]
        told = {}
        if covariates is not None:
            told["covariates"] = tf.gather(covariates, chosen.study)
        if series is not None and self.recipe.model.series_mark:
            of_study = tf.gather(series, chosen.study)
            told["series"] = tf.gather(of_study, chosen.positions, batch_dims=1)
        return _Request(lengths, width, chosen, features, told)

    def _checked_series(self, series: tf.Tensor, lengths: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        """Return series (B, T) as they are; stop the graph at one that can be none."""
        shape, wanted = tf.shape(series), tf.stack([tf.size(lengths), width])
        words = ["series holds ", shape[0], " x ", shape[1], " numbers, image_bytes "]
        words += [wanted[0], " x ", wanted[1], " slices"]
        with tf.control_dependencies([require(tf.reduce_all(shape == wanted), *words)]):
            series = tf.identity(series)
        known = self.description.series_in_turn
        count = len(known.names) if known else 0
        is_known = (series >= NO_SERIES) & (series < count)
        wrong = tf.cast(~is_known & tf.sequence_mask(lengths, width), tf.int32)
        study = tf.argmax(tf.reduce_max(wrong, axis=1), output_type=tf.int32)
        place = tf.argmax(wrong[study], output_type=tf.int32)
        may_be = f"no number from 0 to {count - 1}, nor {NO_SERIES}, which says that it is unknown"
        message = ("series[", study, ", ", place, f"] is {may_be}")
        with tf.control_dependencies([require(tf.reduce_sum(wrong) == 0, *message)]):
            return tf.identity(series)

    def _checked_covariates(self, covariates: tf.Tensor, studies: tf.Tensor) -> tf.Tensor:
        """Return covariates (B, D) as they are; stop the graph at one that can be none."""
        rows = tf.shape(covariates)[0]
        words = ("lengths has ", studies, " values, covariates has ", rows, " rows")
        with tf.control_dependencies([require(tf.equal(rows, studies), *words)]):
            covariates = tf.identity(covariates)
        known = self.description.covariates or []
        count = np.array([len(c.get("categories", ())) for c in known], np.float32)
        may_be = [f"a whole number from 0 to {n - 1:.0f}" if n else "a number" for n in count]
        is_place = (covariates == tf.floor(covariates)) & (covariates >= 0) & (covariates < count)
        is_value = tf.where(count > 0, is_place, tf.math.is_finite(covariates))
        is_wrong = tf.cast(~(is_value | tf.math.is_nan(covariates)), tf.int32)
        study = tf.argmax(tf.reduce_max(is_wrong, axis=1), output_type=tf.int32)
        place = tf.argmax(is_wrong[study], output_type=tf.int32)
        wanted = (tf.gather(may_be, place), " nor NaN, which says that it is missing")
        message = ("covariates[", study, ", ", place, "] is neither ", *wanted)
        with tf.control_dependencies([require(tf.reduce_sum(is_wrong) == 0, *message)]):
            return tf.identity(covariates)

    def _of_frames(
        self, model: Any, frames: tf.Tensor, place: tf.Tensor, chosen: Sequences
    ) -> tf.Tensor:
        """Return features (S, n, F) of sequences of frames (N, H, W, C), each encoded once."""
        if self.is_per_position:
            sequences = pad(tf.gather(frames, place), chosen.lengths)
            return self._features(model, sequences, chosen.lengths)
        features = self._features(
            model, frames[:, None], tf.ones_like(frames[:, 0, 0, 0], tf.int32)
        )
        sequences = pad(tf.gather(features, place)[:, None], chosen.lengths)
        return sequences[:, :, 0, 0]

    def _checks(self, values: tf.Tensor, lengths: tf.Tensor, name: str) -> list[tf.Operation]:
        """Return what stops the graph, with words, at a request that cannot be predicted."""
        batch, width = tf.shape(values)[0], tf.shape(values)[1]
        count = tf.size(lengths)
        longest = tf.argmax(tf.concat([lengths, [0]], 0), output_type=tf.int32)
        shortest = tf.argmin(tf.concat([lengths, [tf.int32.max]], 0), output_type=tf.int32)
        most = tf.reduce_max(tf.concat([lengths, [0]], 0))
        limit = self.description.most_slices
        longest_is = ("lengths[", longest, "] = ", most)
        words = ("lengths has ", count, f" values, {name} has ", batch, " studies")
        one_each = require(tf.equal(batch, count), *words)
        with tf.control_dependencies([one_each]):
            return [
                require(batch > 0, "the request holds no study"),
                require(
                    tf.reduce_all(lengths > 0),
                    *("lengths[", shortest, "] is below 1; every study has a slice or more"),
                ),
                require(
                    most <= width, *longest_is, f", but {name} holds ", width, " slices a study"
                ),
                require(
                    most <= limit, *longest_is, f"; at most {limit} slices of a study are read"
                ),
            ]

    def _frames(
        self,
        image_bytes: tf.Tensor,
        lengths: tf.Tensor,
        series: tf.Tensor | None,
        shown: tf.Tensor,
    ) -> tf.Tensor:
        """Return the model's input (N, H, W, C) for the shown slices, numbered over all studies.

        Neighbours and percentiles are of the series (B, T) that a slice is of, in its study.

        Slices beyond a study's length are never looked at. Of the others all have their first bytes
        checked, and those are decoded that are shown, or neighbours of such, or, where a study's
        own percentiles scale its intensities, all of them.
        """
        settings = self.recipe.input
        where = tf.cast(tf.where(tf.sequence_mask(lengths, tf.shape(image_bytes)[1])), tf.int32)
        encoded = tf.gather_nd(image_bytes, where)
        study, position = where[:, 0], where[:, 1]
        numbers = (tf.strings.as_string(study), tf.strings.as_string(position))
        names = tf.strings.join(["image_bytes[", numbers[0], ", ", numbers[1], "]"])
        channels = self.description.channels
        encoded = require_pictures(encoded, names, self.description.bits, channels)
        one_series = study
        if series is not None and (known := self.description.series_in_turn):
            kinds = len(known.names) - NO_SERIES
            one_series = study * kinds + tf.gather_nd(series, where) - NO_SERIES

        reach = tf.range(-settings.neighbours, settings.neighbours + 1)
        first, last = (tf.gather(end, shown)[:, None] for end in _ends_of_runs(one_series))
        around = tf.clip_by_value(shown[:, None] + reach, first, last)
        if not settings.windows and self.description.bits == 16:  # by the study's own percentiles
            images = self._decoded(encoded, names)
            distinct, number = tf.unique(one_series)
            by_channel = [
                quantile_ranges(images[:, c], number, tf.size(distinct), settings.percentiles)
                for c in range(channels)
            ]
            ranges = tf.gather(tf.stack(by_channel, axis=1), tf.gather(number, shown))
        else:
            wanted, around_wanted = tf.unique(tf.reshape(around, [-1]))
            images = self._decoded(tf.gather(encoded, wanted), tf.gather(names, wanted))
            around = tf.reshape(around_wanted, tf.shape(around))
            ranges = tf.constant([[self._fixed_ranges()] * channels], tf.float32)
        side, size = self.description.size, settings.size
        images = tf.reshape(images, (-1, side, side))
        images = resize(images, side, side, size, self.description)
        images = tf.gather(tf.reshape(images, (-1, channels, size, size)), around)
        pictures = (2 * settings.neighbours + 1) * channels
        images = tf.reshape(images, (-1, pictures, size, size))
        return to_input(tf.transpose(images, (0, 2, 3, 1)), ranges, settings)

    def _fixed_ranges(self) -> list[list[float]]:
        if self.recipe.input.windows:
            return [[c - width / 2, c + width / 2] for c, width in self.recipe.input.windows]
        return [list(grey_levels(self.recipe.input))]

    def _decoded(self, encoded: tf.Tensor, names: tf.Tensor) -> tf.Tensor:
        """Return intensities float32 (N, channels, size, size) of slices as they are stored."""

        def decode_one(encoded_and_name: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            encoded, name = encoded_and_name
            return to_square(decode(encoded, name, self.description), self.description)

        size, channels = self.description.size, self.description.channels
        return tf.map_fn(
            decode_one,
            (encoded, names),
            fn_output_signature=tf.TensorSpec((channels, size, size), tf.float32),
            parallel_iterations=SLICES_AT_ONCE,
        )

    def _features(self, model: Any, slices: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Return features (B, T, F) of padded slices, encoding some of the studies at a time."""
        shape = model.encoder.backbone.compute_output_shape((None, None, *model.slice_shape))

        def encode_some(numbers: tf.Tensor) -> tf.Tensor:
            features = model.extract(tf.gather(slices, numbers), tf.gather(lengths, numbers))
            return tf.cast(features, tf.float32)

        numbers = tf.range(tf.size(lengths))
        width = slices.shape[1]
        return kernels.in_chunks(encode_some, numbers, TOGETHER, (width, shape[-1]), "float32")
