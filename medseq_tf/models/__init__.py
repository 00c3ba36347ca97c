"""Models of a recipe: encoder, aggregator and head, joined in a `SequenceClassifier`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.layers import Layer
from medseq_tf.layers.layer import child_seeds
from medseq_tf.models.aggregator import Aggregator
from medseq_tf.models.aggregators import AGGREGATORS, Recurrent, build_aggregator
from medseq_tf.models.classifier import SequenceClassifier
from medseq_tf.models.covariates import Covariates
from medseq_tf.models.encoders import ENCODERS, ConvFSMStack, Encoder
from medseq_tf.models.handcrafted import HandcraftedFeatures
from medseq_tf.models.head import Head
from medseq_tf.models.hub_network import HubNetwork
from medseq_tf.models.joined import JoinedFeatures
from medseq_tf.models.keras_application import KerasNetwork, PretrainedEncoder
from medseq_tf.models.lesion_area import AreaHead, LesionArea
from medseq_tf.models.segmenters import Segmenter
from medseq_tf.models.series_mark import SeriesMark
from medseq_tf.models.torch_weights import load_torch_weights
from medseq_tf.readers.classes import CLASSES, LABELS, ORDERED
from medseq_tf.recipe import Model as ModelSettings
from medseq_tf.recipe import Segmenter as SegmenterSettings

__all__ = [
    "AGGREGATORS",
    "ENCODERS",
    "Aggregator",
    "AreaHead",
    "ConvFSMStack",
    "Covariates",
    "Encoder",
    "HandcraftedFeatures",
    "Head",
    "HubNetwork",
    "JoinedFeatures",
    "KerasNetwork",
    "LesionArea",
    "PretrainedEncoder",
    "Recurrent",
    "Segmenter",
    "SequenceClassifier",
    "SeriesMark",
    "build",
]


def build(
    settings: ModelSettings,
    input_shape: tuple[int, int, int],
    labels: int,
    seed: int | None = None,
    skip_padding: bool = True,
    outputs: str = LABELS,
    covariates: Mapping[str, Mapping[str, Any]] | None = None,
    series: Sequence[str] = (),
) -> SequenceClassifier:
    """Return a model with its weights made, under the Keras dtype policy that is set.

    Args:
        settings: the recipe's `model`.
        input_shape: `(H, W, C)` of a slice.
        labels: number of labels or classes.
        seed: seed of the initial weights and of dropout: the same seed gives the same model, bit
            for bit; None draws anew.
        skip_padding: whether padded slices are left out of the encoder's computation; False under
            XLA, which needs fixed shapes.
        outputs: what it tells of a study: `labels`, yes or no to each; `classes`, one of them; or
            `ordered`, one of them, the lowest first.
        covariates: the data set's, as `Prepared.covariates`, of which the settings name some.
        series: names of the data set's, whose slices follow one another, for the settings' mark.

    Returns:
        The classifier, built, not compiled.

    Raises:
        InputError: if slices of `input_shape` do not fit the encoder, or if the weights that the
            recipe names cannot be had or do not fit.
    """
    encoder_seed, aggregator_seed, head_seed = child_seeds(seed, 3)
    model = SequenceClassifier(
        ENCODERS[settings.encoder.name](settings.encoder, encoder_seed, skip_padding),
        build_aggregator(settings.aggregator, input_shape, aggregator_seed),
        _head(settings, labels, head_seed, outputs),
        slice_shape=input_shape,
        covariates=_covariates(settings, covariates or {}),
        series_mark=_series_mark(settings, series),
        name="classifier",
    )
    model.build()
    if settings.initial_weights:
        load_torch_weights(settings.initial_weights, model)
    return model


def _covariates(
    settings: ModelSettings, covariates: Mapping[str, Mapping[str, Any]]
) -> Covariates | None:
    if not settings.covariates:
        return None
    categories = [covariates[name].get("categories") for name in settings.covariates]
    return Covariates(settings.covariates, categories, name="covariates")


def _series_mark(settings: ModelSettings, series: Sequence[str]) -> SeriesMark | None:
    if not settings.series_mark:
        return None
    if not series:
        raise InputError(
            "model.series_mark marks the series of a slice, and the data set tells none apart: "
            "prepare with --series-as sequence, or set model.series_mark=false"
        )
    return SeriesMark(series, name="series_mark")


def _head(settings: ModelSettings, labels: int, seed: int | None, outputs: str) -> Layer:
    if not isinstance(settings.encoder, SegmenterSettings):
        if outputs == ORDERED and settings.ordered == "softmax":
            outputs = CLASSES
        arguments = settings.head.model_dump()
        return Head(labels, **arguments, outputs=outputs, seed=seed, name="head")
    if labels != 1:
        names = "" if outputs == LABELS else " classes"
        raise InputError(
            f"a segmenter predicts one label, that of the lesion masks; the data set has "
            f"{labels}{names}: prepare it with that label alone"
        )
    return AreaHead(settings.encoder.even_area, name="head")
