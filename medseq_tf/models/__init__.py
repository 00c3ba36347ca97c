"""Takes the recipe's model settings, gives a built `SequenceClassifier`."""

from __future__ import annotations

from medseq_tf.experiment import Model as ModelSettings
from medseq_tf.layers.seeds import child_seeds
from medseq_tf.models.aggregators import AGGREGATORS, Recurrent
from medseq_tf.models.classifier import SequenceClassifier
from medseq_tf.models.encoders import ENCODERS, ConvFSMStack, Encoder
from medseq_tf.models.head import Head
from medseq_tf.models.keras_application import KerasNetwork, PretrainedEncoder

__all__ = [
    "AGGREGATORS",
    "ENCODERS",
    "ConvFSMStack",
    "Encoder",
    "Head",
    "KerasNetwork",
    "PretrainedEncoder",
    "Recurrent",
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
        AGGREGATORS[settings.aggregator.name](settings.aggregator, aggregator_seed),
        Head(
            labels,
            settings.head.units,
            settings.head.activation,
            settings.head.dropout,
            head_seed,
            name="head",
        ),
        slice_shape=input_shape,
        name="classifier",
    )
    model.build()
    return model
