"""Takes the recipe's model settings, gives a built `SequenceClassifier`."""

from __future__ import annotations

import keras

from medseq_tf.errors import InputError
from medseq_tf.layers.seeds import child_seeds
from medseq_tf.models.aggregators import AGGREGATORS, Recurrent
from medseq_tf.models.classifier import SequenceClassifier
from medseq_tf.models.encoders import ENCODERS, ConvFSMStack, Encoder
from medseq_tf.models.head import Head
from medseq_tf.models.keras_application import KerasNetwork, PretrainedEncoder
from medseq_tf.models.lesion_area import AreaHead, LesionArea
from medseq_tf.models.segmenters import Segmenter
from medseq_tf.models.volume import cnn_3d
from medseq_tf.recipe import Cnn3D
from medseq_tf.recipe import Model as ModelSettings
from medseq_tf.recipe import Segmenter as SegmenterSettings

__all__ = [
    "AGGREGATORS",
    "ENCODERS",
    "AreaHead",
    "ConvFSMStack",
    "Encoder",
    "Head",
    "KerasNetwork",
    "LesionArea",
    "PretrainedEncoder",
    "Recurrent",
    "Segmenter",
    "SequenceClassifier",
    "build",
]


def build(
    settings: ModelSettings,
    input_shape: tuple[int, int, int],
    labels: int,
    seed: int | None = None,
    skip_padding: bool = True,
) -> SequenceClassifier:
    """A model with its weights made, under the Keras dtype policy that is set.

    Args:
        settings: the recipe's `model`.
        input_shape: `(height, width, channels)` of a slice.
        labels: number of labels.
        seed: seed of the initial weights and of dropout: the same seed gives the same model, bit
            for bit; None draws anew.
        skip_padding: whether padded slices are left out of the encoder's computation; False under
            XLA, which needs fixed shapes.

    Returns:
        The classifier, built, not compiled.

    Raises:
        InputError: if slices of `input_shape` do not fit the encoder, or if the weights that the
            recipe names cannot be had or do not fit.
    """
    encoder_seed, aggregator_seed, head_seed = child_seeds(seed, 3)
    model = SequenceClassifier(
        ENCODERS[settings.encoder.name](settings.encoder, encoder_seed, skip_padding),
        _aggregator(settings, input_shape, aggregator_seed),
        _head(settings, labels, head_seed),
        slice_shape=input_shape,
        name="classifier",
    )
    model.build()
    return model


def _aggregator(
    settings: ModelSettings, input_shape: tuple[int, int, int], seed: int | None
) -> keras.layers.Layer:
    if isinstance(settings.aggregator, Cnn3D):
        return cnn_3d(settings.aggregator, seed, input_shape)
    return AGGREGATORS[settings.aggregator.name](settings.aggregator, seed)


def _head(settings: ModelSettings, labels: int, seed: int | None) -> keras.layers.Layer:
    if not isinstance(settings.encoder, SegmenterSettings):
        head = settings.head
        return Head(labels, head.units, head.activation, head.dropout, seed, name="head")
    if labels != 1:
        raise InputError(
            f"a segmenter answers for one label, that of the lesion masks; the data set has "
            f"{labels}: prepare it with that label alone"
        )
    return AreaHead(settings.encoder.even_area, name="head")
