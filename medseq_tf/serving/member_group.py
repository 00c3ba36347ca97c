"""Members of a served model that read slices alike, as one graph: from files to probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from medseq_tf.evaluation.feature_views import weights_digest
from medseq_tf.input.model_input import pad
from medseq_tf.input.slice_store import grey_levels
from medseq_tf.layers import PerPosition, kernels
from medseq_tf.readers.series import NO_SERIES
from medseq_tf.recipe import Experiment
from medseq_tf.serving.description import Description
from medseq_tf.serving.encoded_slices import (
    SLICES_AT_ONCE,
    decode,
    quantile_ranges,
    require_pictures,
    to_input,
)
from medseq_tf.serving.resize import resize, to_square
from medseq_tf.serving.sequences import (
    Sequences,
    evaluation_sequences,
    mean_of_sequences,
    mirror,
)

TOGETHER = 64
"""Slices, or sequences of an encoder with weights per position, that are encoded at once."""


class ServedMember(NamedTuple):
    """One of the models that are served together.

    Attributes:
        model: a `SequenceClassifier`.
        recipe: its own.
        weight: its share of the probability; those of all members add up to 1.
    """

    model: Any
    recipe: Experiment
    weight: float


class Studies(NamedTuple):
    """Studies of a checked request.

    Attributes:
        image_bytes: (B, T).
        lengths: (B,)
        covariates: (B, D) as the description lists them; None: all are missing.
        series: (B, T); None: not known.
    """

    image_bytes: tf.Tensor
    lengths: tf.Tensor
    covariates: tf.Tensor | None = None
    series: tf.Tensor | None = None


class Encoded(NamedTuple):
    """What the models of a group read of studies.

    Attributes:
        chosen: sequences of slices.
        features: theirs (S, n, F), by model.
        told: what each model reads of the sequences besides, by name.
    """

    chosen: Sequences
    features: list[tf.Tensor]
    told: Sequence[Mapping[str, tf.Tensor]]

    def without(self, sequences: tf.Tensor, places: tf.Tensor) -> Encoded:
        """Return some of the sequences (R,), each without its steps of the slice at places (R,)."""
        chosen, kept = self.chosen.some(sequences).without(places)

        def rows(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(values, sequences)

        def steps(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(rows(values), kept, batch_dims=1)

        told = [
            {name: (steps if name == "series" else rows)(value) for name, value in one.items()}
            for one in self.told
        ]
        return Encoded(chosen, [steps(features) for features in self.features], told)


def weighted_mean(values: Sequence[tf.Tensor], weights: Sequence[float]) -> tf.Tensor:
    """Return the mean of tensors of one shape by weights."""
    if len(set(weights)) == 1:
        return tf.add_n(list(values)) / len(values)
    total = sum(weights)
    return tf.add_n([v * (w / total) for v, w in zip(values, weights, strict=True)])


class MemberGroup:
    """Members whose recipes choose and prepare slices alike.

    Args:
        members: the members.
        description: how slices are stored, and what there is besides.
        owners: the model by which each member's slices are encoded: of members with the very same
            backbone the first, so that it runs once, and its weights are there once.

    Attributes:
        weight: of all of them together.
        segments: whether they are segmenters.
        by_position: whether a slice's features depend on its place in the sequence.
    """

    def __init__(
        self, members: Sequence[ServedMember], description: Description, owners: Sequence[Any]
    ):
        self.models, self.owners, self.description = [m.model for m in members], owners, description
        self.recipe = members[0].recipe
        self._weights = [member.weight for member in members]
        self.weight = sum(self._weights)
        self.segments = all(member.recipe.segments for member in members)
        backbones = [model.encoder.backbone for model in self.models]
        self.by_position = any(isinstance(backbone, PerPosition) for backbone in backbones)

    def of_tensors(self, slices: tf.Tensor, lengths: tf.Tensor) -> Encoded:
        """Encode studies that are the models' own input (B, T, H, W, C)."""
        study = tf.range(tf.size(lengths))
        positions = tf.tile(tf.range(tf.shape(slices)[1])[None], (tf.size(study), 1))
        chosen = Sequences(study, positions, lengths)
        if self.recipe.sequence.evaluation.mirrored:
            chosen = chosen.and_mirrored()
            slices = mirror(tf.gather(slices, chosen.study), chosen.mirrored)
        features = self._encoded(lambda model: self._features(model, slices, chosen.lengths))
        return Encoded(chosen, features, [{} for _ in self.models])

    def of_files(self, studies: Studies) -> Encoded:
        """Choose the slices of studies and encode them."""
        lengths, series = studies.lengths, studies.series
        chosen = evaluation_sequences(lengths, self.recipe.sequence)
        start = tf.cumsum(lengths, exclusive=True)
        is_slice = tf.sequence_mask(chosen.lengths, tf.shape(chosen.positions)[1])
        numbers = tf.gather(start, chosen.study)[:, None] + chosen.positions
        slices = tf.reduce_sum(lengths)
        if chosen.mirrored is not None:  # numbered after all others
            numbers += tf.where(chosen.mirrored, slices, 0)[:, None]
        shown, place = tf.unique(tf.boolean_mask(numbers, is_slice))
        if chosen.mirrored is None:
            frames = self._frames(studies, shown)
        else:
            frames = mirror(self._frames(studies, shown % slices), shown >= slices)
        features = self._encoded(lambda model: self._of_frames(model, frames, place, chosen))
        of_slices = None
        if series is not None:
            of_study = tf.gather(series, chosen.study)
            of_slices = tf.gather(of_study, chosen.positions, batch_dims=1)
        told = [self._told(model, chosen, studies.covariates, of_slices) for model in self.models]
        return Encoded(chosen, features, told)

    def whole(self, encoded: Encoded, lengths: tf.Tensor) -> tf.Tensor:
        """Return the mean probability (B, labels) of the studies."""
        sequences = self._mean_of_models(encoded, running=False)
        return tf.math.unsorted_segment_mean(sequences, encoded.chosen.study, tf.size(lengths))

    def running(self, encoded: Encoded, lengths: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        """Return the mean probability (B, T, labels) after each slice."""
        steps = self._mean_of_models(encoded, running=True)
        return mean_of_sequences(steps, encoded.chosen, lengths, width)

    def without_each(self, encoded: Encoded, lengths: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        """Return the mean probability (B, T, labels) of the studies without each of their slices.

        Its steps are left out of the sequences; a sequence of nothing else stays as it is, as all
        do after a study's length. What the models see of it beside a neighbour stays, too.
        """
        count = tf.size(encoded.chosen.lengths)

        def without(pairs: tf.Tensor) -> tf.Tensor:
            return self._mean_of_models(encoded.without(pairs % count, pairs // count), False)

        at_once = min(model.aggregator.at_once for model in self.models)
        labels = self.models[0].head.labels
        of_pairs = kernels.in_chunks(
            without, tf.range(count * width), at_once, (labels,), "float32"
        )
        sequences = tf.transpose(tf.reshape(of_pairs, (width, count, labels)), (1, 0, 2))
        return tf.math.unsorted_segment_mean(sequences, encoded.chosen.study, tf.size(lengths))

    def lesion_map(self, studies: Studies) -> tf.Tensor:
        """Return segmenters' mean probability (N, size, size) that a pixel is lesion.

        It is of all slices of the studies, one after the other, at the size that they are stored.
        """
        frames = self._frames(studies, tf.range(tf.reduce_sum(studies.lengths)))
        logits = self._encoded(lambda model: model.encoder.backbone.lesion(frames[None])[0])
        mean = weighted_mean([tf.sigmoid(one) for one in logits], self._weights)[..., None]
        size = self.description.size
        method = "area" if self.recipe.input.size > size else "bilinear"
        return tf.image.resize(mean, (size, size), method)[..., 0]

    def _mean_of_models(self, encoded: Encoded, running: bool) -> tf.Tensor:
        """Return the models' mean probability for each sequence, or after each of its slices."""
        probabilities = []
        for model, features, told in zip(self.models, encoded.features, encoded.told, strict=True):
            inputs = {"features": features, "lengths": encoded.chosen.lengths, **told}
            logits = model.running(inputs) if running else model(inputs, training=False)
            probabilities.append(tf.sigmoid(logits))
        return weighted_mean(probabilities, self._weights)

    def _told(
        self,
        model: Any,
        chosen: Sequences,
        covariates: tf.Tensor | None,
        series: tf.Tensor | None,
    ) -> dict[str, tf.Tensor]:
        """Return what a model reads of sequences besides slices, where it is told."""
        told = {}
        if covariates is not None and model.covariates is not None:
            known = [covariate["name"] for covariate in self.description.covariates or ()]
            places = [known.index(name) for name in model.covariates.names]
            if places != list(range(len(known))):
                covariates = tf.gather(covariates, places, axis=1)
            told["covariates"] = tf.gather(covariates, chosen.study)
        if series is not None and model.series_mark is not None:
            told["series"] = series
        return told

    def _encoded(self, encode: Callable[[Any], tf.Tensor]) -> list[tf.Tensor]:
        """Return each model's features, made once of those that have the same backbone."""
        features = {
            number: encode(owner)
            for number, owner in {id(owner): owner for owner in self.owners}.items()
        }
        return [features[id(owner)] for owner in self.owners]

    def _of_frames(
        self, model: Any, frames: tf.Tensor, place: tf.Tensor, chosen: Sequences
    ) -> tf.Tensor:
        """Return features (S, n, F) of sequences of frames (N, H, W, C), each encoded once."""
        if isinstance(model.encoder.backbone, PerPosition):
            sequences = pad(tf.gather(frames, place), chosen.lengths)
            return self._features(model, sequences, chosen.lengths)
        features = self._features(
            model, frames[:, None], tf.ones_like(frames[:, 0, 0, 0], tf.int32)
        )
        sequences = pad(tf.gather(features, place)[:, None], chosen.lengths)
        return sequences[:, :, 0, 0]

    def _frames(self, studies: Studies, shown: tf.Tensor) -> tf.Tensor:
        """Return the model's input (N, H, W, C) for the shown slices, numbered over all studies.

        Neighbours and percentiles are of the series (B, T) that a slice is of, in its study.

        Slices beyond a study's length are never looked at. Of the others all have their first bytes
        checked, and those are decoded that are shown, or neighbours of such, or, where a study's
        own percentiles scale its intensities, all of them.
        """
        settings, series = self.recipe.input, studies.series
        image_bytes, lengths = studies.image_bytes, studies.lengths
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


def groups_of(members: Sequence[ServedMember], description: Description) -> list[MemberGroup]:
    """Return members in groups that choose and prepare slices alike, in their order."""
    alike: dict[str, list[int]] = {}
    for number, member in enumerate(members):
        alike.setdefault(_reading(member.recipe), []).append(number)
    owners = _owners([member.model for member in members])
    return [
        MemberGroup([members[i] for i in own], description, [owners[i] for i in own])
        for own in alike.values()
    ]


def variables_of(groups: Sequence[MemberGroup]) -> list[tf.Variable]:
    """Return the variables that the graphs of groups read."""
    variables = []
    for group in groups:
        for model, owner in zip(group.models, group.owners, strict=True):
            unread = [] if owner is model else model.encoder.backbone.variables
            numbers = set(map(id, unread))
            variables += [v.value for v in model.variables if id(v) not in numbers]
    return variables


def _reading(recipe: Experiment) -> str:
    """Return what decides which slices a model is shown when it predicts, and how."""
    sequence = recipe.sequence
    settings = [recipe.input.model_dump_json(), sequence.evaluation.model_dump_json()]
    return json.dumps([*settings, sequence.length, sequence.fill])


def _owners(models: Sequence[Any]) -> list[Any]:
    """Return for each model the first that has the very same backbone, often itself."""
    if len(models) == 1:
        return list(models)
    first: dict[str, Any] = {}
    return [first.setdefault(_backbone_key(model), model) for model in models]


def _backbone_key(model: Any) -> str:
    """Return what two backbones have in common only if they give the same features."""
    backbone = model.encoder.backbone
    config = _without_beginning(keras.saving.serialize_keras_object(backbone))
    about = [list(model.slice_shape), config, weights_digest(backbone)]
    return json.dumps(about, sort_keys=True)


def _without_beginning(config: Any) -> Any:
    """Return a layer's configuration without its name, and the seed of what it began with."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key not in ("seed", "name")}
        return {key: _without_beginning(value) for key, value in kept.items()}
    return [_without_beginning(value) for value in config] if isinstance(config, list) else config


def _ends_of_runs(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return, for each of values (N,), the first and the last place of the run that it is in."""
    is_start = tf.concat([[True], values[1:] != values[:-1]], 0)[: tf.size(values)]
    starts = tf.cast(tf.where(is_start)[:, 0], tf.int32)
    run = tf.cumsum(tf.cast(is_start, tf.int32)) - 1
    ends = tf.concat([starts[1:], [tf.size(values)]], 0) - 1
    return tf.gather(starts, run), tf.gather(ends, run)
