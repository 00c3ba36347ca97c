"""Takes trained models and their recipe; gives a `tf.Module` that answers from encoded slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from medseq_tf import recipe as recipes
from medseq_tf.input.model_input import pad
from medseq_tf.input.slice_store import grey_levels
from medseq_tf.layers import kernels
from medseq_tf.serving import graph as serving_graph
from medseq_tf.serving.graph import Sequences, Stored, require
from medseq_tf.serving.wire import Description

TOGETHER = 64
"""Slices, or sequences of an encoder with weights per position, that are encoded at once."""


class ServingModel(tf.Module):
    """The signatures of an exported model; dimension 0 is the study everywhere.

    Args:
        models: `SequenceClassifier`s, whose probabilities are averaged.
        recipe: of all of them.
        description: what the model says of itself, and how prepared slices are stored.

    Attributes:
        serving_default: `image_bytes` string (B, T), `lengths` int32 (B,) to `probability` float32
            (B, labels), `running_probability` float32 (B, T, labels).
        serve_tensors: `slices` float32 (B, T, H, W, C), the model's own input, and `lengths` to the
            same.
        probability: as `serving_default`, without the running probability, and quicker.
        describe: `question` string (B,), whatever it holds, to `description` string (B,): JSON.
    """

    def __init__(self, models: Sequence[Any], recipe: recipes.Experiment, description: Description):
        super().__init__(name="medseq_tf")
        answers = _Answers(models, recipe, description)
        size, channels = recipe.input.size, recipe.input.channels
        slices = tf.TensorSpec((None, None, size, size, channels), tf.float32, "slices")
        lengths = tf.TensorSpec((None,), tf.int32, "lengths")
        image_bytes = tf.TensorSpec((None, None), tf.string, "image_bytes")
        question = tf.TensorSpec((None,), tf.string, "question")
        self.weights = [variable.value for model in models for variable in model.variables]
        self.serving_default = _graph(answers.from_bytes, image_bytes, lengths)
        self.probability = _graph(answers.probability, image_bytes, lengths)
        self.serve_tensors = _graph(answers.from_tensors, slices, lengths)
        self.describe = _graph(answers.describe, question)

    @property
    def signatures(self) -> dict[str, Any]:
        """The signatures by name."""
        names = ("serving_default", "serve_tensors", "probability", "describe")
        return {name: getattr(self, name) for name in names}


def _graph(function: Any, *specification: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=specification, autograph=False)


def _finite(**answers: tf.Tensor) -> dict[str, tf.Tensor]:
    """Predictions (B, ...) as they are; a request of which one is no number gets an error."""
    each = [
        tf.reduce_all(tf.math.is_finite(values), axis=tuple(range(1, len(values.shape))))
        for values in answers.values()
    ]
    is_finite = tf.reduce_all(tf.stack(each), axis=0)
    first = tf.argmin(tf.cast(is_finite, tf.int32), output_type=tf.int32)
    says = ("the model's probability of study ", first, " is no number")
    with tf.control_dependencies([require(tf.reduce_all(is_finite), *says)]):
        return {name: tf.identity(values) for name, values in answers.items()}


class _Answers:
    """The functions behind the signatures."""

    def __init__(self, models, recipe, description: Description):
        self.models = models
        self.recipe = recipe
        self.description = description
        self.stored = Stored(
            description.size, description.aspect, description.offset, description.bits
        )
        encoder = recipe.model.encoder
        self.is_per_position = getattr(encoder, "weights", "") == "per_position"

    def describe(self, question):
        return {"description": tf.fill(tf.shape(question), self.description.to_json())}

    def from_tensors(self, slices, lengths):
        """The models' answers to their own input."""
        checks = self._checks(slices, lengths, "slices")
        with tf.control_dependencies(checks):
            width = tf.shape(slices)[1]
            real = tf.sequence_mask(lengths, width)[:, :, None, None, None]
        slices = tf.where(real, slices, 0.0)
        is_finite = tf.reduce_all(tf.math.is_finite(slices))
        with tf.control_dependencies([require(is_finite, "slices hold values that are no number")]):
            slices = tf.identity(slices)
        study = tf.range(tf.size(lengths))
        positions = tf.tile(tf.range(width)[None], (tf.size(study), 1))
        chosen = Sequences(study, positions, lengths)
        features = [self._features(model, slices, lengths) for model in self.models]
        return self._running(features, chosen, lengths, width)

    def from_bytes(self, image_bytes, lengths):
        """The models' answers, and those after each slice, to the slices that the recipe picks."""
        lengths, chosen, features = self._read(image_bytes, lengths)
        return self._running(features, chosen, lengths, tf.shape(image_bytes)[1])

    def probability(self, image_bytes, lengths):
        """The models' answers to the slices that the recipe picks of each study."""
        lengths, chosen, features = self._read(image_bytes, lengths)
        answers = [
            tf.sigmoid(model({"features": given, "lengths": chosen.lengths}, training=False))
            for model, given in zip(self.models, features, strict=True)
        ]
        answers = tf.add_n(answers) / len(answers)
        studies = tf.size(lengths)
        return _finite(probability=tf.math.unsorted_segment_mean(answers, chosen.study, studies))

    def _running(self, features, chosen: Sequences, lengths, width):
        answers = [
            tf.sigmoid(model.running({"features": given, "lengths": chosen.lengths}))
            for model, given in zip(self.models, features, strict=True)
        ]
        steps = tf.add_n(answers) / len(answers)
        running = serving_graph.mean_of_sequences(steps, chosen, lengths, width)
        whole = tf.gather(running, lengths - 1, axis=1, batch_dims=1)
        return _finite(probability=whole, running_probability=running)

    def _read(self, image_bytes, lengths):
        """Checks a request; gives its lengths, its sequences and each model's features of them."""
        with tf.control_dependencies(self._checks(image_bytes, lengths, "image_bytes")):
            lengths = tf.identity(lengths)
        chosen = serving_graph.evaluation_sequences(lengths, self.recipe.sequence)
        start = tf.cumsum(lengths, exclusive=True)
        real = tf.sequence_mask(chosen.lengths, tf.shape(chosen.positions)[1])
        numbers = tf.gather(start, chosen.study)[:, None] + chosen.positions
        slices, place = tf.unique(tf.boolean_mask(numbers, real))
        frames = self._frames(image_bytes, lengths, start, slices)
        return lengths, chosen, [self._of_frames(m, frames, place, chosen) for m in self.models]

    def _of_frames(self, model, frames, place, chosen: Sequences):
        """The encoder's features (S, n, F) of sequences of frames (N, H, W, C), each read once."""
        if self.is_per_position:
            sequences = pad(tf.gather(frames, place), chosen.lengths)
            return self._features(model, sequences, chosen.lengths)
        features = self._features(
            model, frames[:, None], tf.ones_like(frames[:, 0, 0, 0], tf.int32)
        )
        sequences = pad(tf.gather(features, place)[:, None], chosen.lengths)
        return sequences[:, :, 0, 0]

    def _checks(self, values, lengths, name: str) -> list[tf.Operation]:
        """What a request may not be, in words."""
        batch, width = tf.shape(values)[0], tf.shape(values)[1]
        count = tf.size(lengths)
        longest = tf.argmax(tf.concat([lengths, [0]], 0), output_type=tf.int32)
        shortest = tf.argmin(tf.concat([lengths, [tf.int32.max]], 0), output_type=tf.int32)
        most = tf.reduce_max(tf.concat([lengths, [0]], 0))
        limit = self.description.most_slices
        says = ("lengths[", longest, "] = ", most)
        one_each = require(
            tf.equal(batch, count),
            "lengths has ",
            count,
            f" values, {name} has ",
            batch,
            " studies",
        )
        with tf.control_dependencies([one_each]):
            return [
                require(batch > 0, "the request holds no study"),
                require(
                    tf.reduce_all(lengths > 0),
                    *("lengths[", shortest, "] is below 1; every study has a slice or more"),
                ),
                require(most <= width, *says, f", but {name} holds ", width, " slices a study"),
                require(most <= limit, *says, f"; at most {limit} slices of a study are read"),
            ]

    def _frames(self, image_bytes, lengths, start, slices):
        """The model's input (N, H, W, C) of some slices, numbered over all studies.

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
        encoded = serving_graph.require_pictures(encoded, names, self.stored.bits)

        reach = tf.range(-settings.neighbours, settings.neighbours + 1)
        own, first = tf.gather(study, slices), tf.gather(start, tf.gather(study, slices))
        last = first + tf.gather(lengths, own) - 1
        around = tf.clip_by_value(slices[:, None] + reach, first[:, None], last[:, None])
        by_percentiles = not settings.windows and self.stored.bits == 16
        if by_percentiles:
            images = self._decoded(encoded, names)
            count = tf.size(lengths)
            ranges = serving_graph.quantile_ranges(images, study, count, settings.percentiles)
            ranges = tf.gather(ranges, own)
        else:
            wanted, around_wanted = tf.unique(tf.reshape(around, [-1]))
            images = self._decoded(tf.gather(encoded, wanted), tf.gather(names, wanted))
            around = tf.reshape(around_wanted, tf.shape(around))
            ranges = tf.constant(self._fixed_ranges(), tf.float32)[None]
        stored = self.stored.size
        images = serving_graph.resize(images, stored, stored, settings.size, self.stored)
        images = tf.transpose(tf.gather(images, around), (0, 2, 3, 1))
        width = 2 * settings.neighbours + 1
        images = tf.ensure_shape(images, (None, settings.size, settings.size, width))
        return serving_graph.to_input(images, ranges, settings)

    def _fixed_ranges(self) -> list[list[float]]:
        if self.recipe.input.windows:
            return [[c - width / 2, c + width / 2] for c, width in self.recipe.input.windows]
        return [list(grey_levels(self.recipe.input))]

    def _decoded(self, encoded, names):
        """Intensities float32 (N, size, size) of slices as they are stored."""

        def one(item):
            image = serving_graph.decode(*item, self.stored)
            return serving_graph.to_square(image, self.stored)

        size = self.stored.size
        return tf.map_fn(
            one,
            (encoded, names),
            fn_output_signature=tf.TensorSpec((size, size), tf.float32),
            parallel_iterations=serving_graph.SLICES_AT_ONCE,
        )

    def _features(self, model, slices, lengths):
        """The encoder's features (B, T, F) of padded slices, a portion of the studies at a time."""
        shape = model.encoder.backbone.compute_output_shape((None, None, *model.slice_shape))

        def some(numbers):
            part = model.extract(tf.gather(slices, numbers), tf.gather(lengths, numbers))
            return tf.cast(part, tf.float32)

        numbers = tf.range(tf.size(lengths))
        width = slices.shape[1]
        return kernels.in_chunks(some, numbers, TOGETHER, (width, shape[-1]), "float32")
