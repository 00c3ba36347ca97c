"""The whole model: padded sequences of slices in, one logit for each study and label out.

A logit is the log-odds of its label; of its class, where a study has one class of several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from medseq_tf.layers import kernels
from medseq_tf.layers.layer import Layer, Shape, Tensor
from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.models.aggregator import Aggregator
from medseq_tf.models.covariates import Covariates
from medseq_tf.models.head import log_odds
from medseq_tf.models.series_mark import SeriesMark

PARTS = ("encoder", "aggregator", "head", "covariates", "series_mark")


@keras.saving.register_keras_serializable(package="medseq_tf")
class SequenceClassifier(keras.Model):
    """An encoder, an aggregator and a head; padding changes no logit.

    encoder: `(slices, lengths)` to features of each slice, its `backbone` first, which knows one
    slice at a time, then `finish`; aggregator: `(features, lengths)` to one vector of each study;
    head: vector to logits. An aggregator `of_scores` stands after the head, which then scores every
    slice, and pools the scores; those of classes are then scaled to add up to 1. Covariates join
    the vectors that the head takes, of studies or of slices; the mark of a slice's series is added
    to its features before the aggregator. The model is built by its
    constructor's caller through `build()` without arguments: the shape of a slice is part of the
    configuration, batch and steps are free.

    `variables`, not `weights`, holds the whole state: the weights, the moving statistics and the
    state of every dropout's seed. Restoring it continues a training bit for bit.

    Args:
        encoder: a layer called with `(slices, lengths, training)`.
        aggregator: an `Aggregator`.
        head: a layer called with `(vectors, training)`.
        slice_shape: `(H, W, C)`.
        covariates: what makes features of covariates; None: the model takes none.
        series_mark: what marks the slices of each series; None: nothing does.

    Call arguments:
        inputs: {"slices": float `(B, T, H, W, C)`, right-padded;
            "lengths": int `(B,)`, each from 1 to steps}; or, in place of the slices,
            "features": float `(B, T, F)`, as `extract` gives them. With "covariates": float32
            `(B, D)`, NaN where missing; without, all of them are. With "series": int `(B, T)`, the
            number of each slice's series, -1 where it is not known; without, none is.
        training: whether to drop and to learn batch statistics.

    Returns:
        `(B, labels)` float32 logits, of classes `(B, classes)`.
    """

    def __init__(
        self,
        encoder: Layer,
        aggregator: Aggregator,
        head: Layer,
        slice_shape: Shape,
        covariates: Covariates | None = None,
        series_mark: SeriesMark | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.aggregator = aggregator
        self.head = head
        self.slice_shape = tuple(slice_shape)
        self.covariates = covariates
        self.series_mark = series_mark
        if covariates is not None:
            self.autocast = False  # which would round them to 16 bits; every part casts by itself

    def build(self, input_shape: Shape | None = None) -> None:
        """Build the parts, for slices of `slice_shape`."""
        shape: Shape = (None, None, *self.slice_shape)
        if self.covariates is not None and not self.covariates.built:
            self.covariates.build((None, len(self.covariates.names)))
        for part in (self.encoder, *self._after_the_encoder):
            if part is self.head and self.covariates is not None:
                shape = (*shape[:-1], shape[-1] + self.covariates.width)
            if not part.built:
                part.build(shape)
            shape = part.compute_output_shape(shape)
            if part is self.encoder and self.series_mark and not self.series_mark.built:
                self.series_mark.build(shape)

    @property
    def _after_the_encoder(self) -> tuple[Layer, Layer]:
        scores_first = self.aggregator.of_scores
        return (self.head, self.aggregator) if scores_first else (self.aggregator, self.head)

    def input_signature(self, kind: str = "slices") -> dict[str, keras.KerasTensor]:
        """Return shape and dtype of all that the call takes, by name.

        Args:
            kind: `slices`, or `features` in their place.
        """
        shape: Shape = (None, None, *self.slice_shape)
        if kind == "features":
            shape = self.encoder.backbone.compute_output_shape(shape)
        signature = {
            kind: keras.KerasTensor(shape, "float32", name=kind),
            "lengths": keras.KerasTensor((None,), "int32", name="lengths"),
        }
        if self.covariates is not None:
            shape = (None, len(self.covariates.names))
            signature["covariates"] = keras.KerasTensor(shape, "float32", name="covariates")
        if self.series_mark is not None:
            signature["series"] = keras.KerasTensor((None, None), "int32", name="series")
        return signature

    def call(self, inputs: Mapping[str, Tensor], training: bool = False) -> Tensor:
        """Return the logits of every study."""
        return self.classify(self._features(inputs, training), inputs, training=training)

    def _features(self, inputs: Mapping[str, Tensor], training: bool = False) -> Tensor:
        lengths = inputs["lengths"]
        if "features" in inputs:
            features = self.encoder.finish(inputs["features"], lengths, training=training)
        else:
            features = self.encode(inputs["slices"], lengths, training=training)
        return self.marked(features, inputs)

    def marked(self, features: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features `(B, T, F)` with the marks of their series, where the model has some."""
        if self.series_mark is None or "series" not in inputs:
            return features
        return self.series_mark(features, inputs["series"])

    def encode(self, slices: Tensor, lengths: Tensor, training: bool = False) -> Tensor:
        """Return features `(B, T, F)` of padded slices, which `marked` makes the aggregator's."""
        return self.encoder(slices, lengths, training=training)

    def extract(self, slices: Tensor, lengths: Tensor) -> Tensor:
        """Return the backbone's features `(B, T, F)`, which the call takes for slices."""
        return self.encoder.backbone(slices, lengths=lengths, training=False)

    def classify(
        self, features: Tensor, inputs: Mapping[str, Tensor], training: bool = False
    ) -> Tensor:
        """Return logits `(B, labels)` of features `(B, T, F)` and what else the call takes."""
        lengths = inputs["lengths"]
        if self.aggregator.of_scores:
            logits = self.aggregator(self._logits(features, inputs, training), lengths)
            # Means of probabilities add up to 1; maxima and log-sum-exps by class do not.
            return log_odds(ops.log_sigmoid(logits)) if self.head.exclusive else logits
        vectors = self.aggregator(features, lengths, training=training)
        return self._logits(vectors, inputs, training)

    def vectors(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what the head takes of each study, `(B, V)`, covariates included; as in the call.

        An aggregator `of_scores` gives none.
        """
        features = self._features(inputs)
        return self._joined(self.aggregator(features, inputs["lengths"], training=False), inputs)

    def _logits(
        self, vectors: Tensor, inputs: Mapping[str, Tensor], training: bool = False
    ) -> Tensor:
        """Return the logits of vectors `(B, F)` or `(B, T, F)`, joined by the covariates."""
        return self.head(self._joined(vectors, inputs), training=training)

    def _joined(self, vectors: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        if self.covariates is None:
            return vectors
        shape = ops.shape(vectors)
        values = inputs.get("covariates")
        if values is None:
            values = ops.full((shape[0], len(self.covariates.names)), math.nan, "float32")
        joined = ops.cast(self.covariates(values), vectors.dtype)
        if len(shape) == 3:
            joined = ops.repeat(ops.expand_dims(joined, 1), shape[1], axis=1)
        return ops.concatenate([vectors, joined], axis=-1)

    def examples(self, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a training step compares, in training mode: logits and their labels.

        Args:
            inputs: as in the call.
            labels: `(B, labels)`, NaN where unknown.

        Returns:
            Logits and labels, both `(B, labels)`; where the aggregator `learns_from_slices`,
            both `(B, T, labels)`: each slice's logits, and its study's labels, which are
            unknown where the study has ended. Of a segmenter, whose `labels` are lesion masks
            `(B, T, H, W)`, these and the logits of the same pixels.
        """
        if hasattr(self.encoder.backbone, "lesion"):
            slices, lengths = inputs["slices"], inputs["lengths"]
            return self.encoder.backbone.lesion(slices, lengths, training=True), labels
        if not self.aggregator.learns_from_slices:
            return self(inputs, training=True), labels
        features = self._features(inputs, training=True)
        mask = sequence_mask(inputs["lengths"], ops.shape(features)[1])
        labels = ops.where(mask[..., None], ops.expand_dims(labels, 1), math.nan)
        return self._logits(features, inputs, training=True), labels

    def running(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction after each slice: P(y | x1..xt) for every t, as logits (paper 2).

        Every slice passes through the encoder once. A causal aggregator gives all of them in one
        pass, any other one reads all beginnings of the studies side by side.

        Args:
            inputs: as in the call.

        Returns:
            `(B, T, labels)` float32: at t the logits of the study's first t + 1 slices
            alone, zeros where it has ended.
        """
        lengths = inputs["lengths"]
        features = self._features(inputs)
        if self.aggregator.causal:
            vectors = self.aggregator.steps(features, lengths, training=False)
            logits = self._logits(vectors, inputs)
        else:
            logits = self._of_prefixes(features, inputs)
        return zero_padding(logits, sequence_mask(lengths, ops.shape(features)[1]))

    def _of_prefixes(self, features: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        batch, steps, _ = ops.shape(features)
        slices = ("slices", "features", "lengths", "series")
        further = {name: value for name, value in inputs.items() if name not in slices}

        def logits(numbers: Tensor) -> Tensor:
            study = numbers // steps
            told = {name: ops.take(value, study, axis=0) for name, value in further.items()}
            beginnings = ops.take(features, study, axis=0)
            return self.classify(beginnings, {**told, "lengths": numbers % steps + 1})

        numbers = ops.arange(batch * steps, dtype="int32")
        at_once, row = self.aggregator.at_once, (self.head.labels,)
        of_all = kernels.in_chunks(logits, numbers, at_once, row, "float32")
        return ops.reshape(of_all, (batch, steps, self.head.labels))

    def compute_output_shape(self, input_shape: Mapping[str, Shape]) -> Shape:
        """Return the logits' shape."""
        return (input_shape["slices"][0], self.head.labels)

    def get_config(self) -> dict[str, Any]:
        """Return the parts' configurations and the shape of a slice."""
        parts = {
            part: _to_be_built(keras.saving.serialize_keras_object(getattr(self, part)))
            for part in PARTS
            if getattr(self, part) is not None
        }
        return {**super().get_config(), **parts, "slice_shape": list(self.slice_shape)}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> SequenceClassifier:
        """Return the model that has this configuration, to be built."""
        parts = {
            part: keras.saving.deserialize_keras_object(config[part], custom_objects)
            for part in PARTS
            if part in config
        }
        return cls(**{**config, **parts})

    def get_build_config(self) -> dict[str, Any]:
        """Return nothing to build by: the shape of a slice is part of the configuration."""
        return {"input_shape": None}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build a loaded model."""
        self.build()


def _to_be_built(config: Any) -> Any:
    """Return a configuration without shapes to build by at once.

    So `build` gives weights the paths in a loaded model that they have in a new one.
    """
    if isinstance(config, dict):
        return {k: _to_be_built(v) for k, v in config.items() if k != "build_config"}
    return config
