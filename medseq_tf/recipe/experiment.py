"""Takes a preset's name, a YAML file or plain values; gives an `Experiment`, the whole recipe.

The recipe says everything about a training run that is not data: how slices become an input, which
slices of a study make a sequence, how they are varied, the model, the loss, the optimizer, the
patient-level split and the fit. It is plain data: no TensorFlow is imported here.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
import yaml
from pydantic import (
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from medseq_tf.errors import InputError
from medseq_tf.recipe.yaml_text import DEEPEST, read_yaml, yaml_values

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Activation = Literal["relu", "selu", "gelu", "elu", "silu", "tanh", "linear"]
Per = Literal["slice", "sequence"]

# No recipe needs more than these; what is far above is a slip of the finger, which would otherwise
# end in the loss of all memory, or never.
Units = Annotated[int, Field(gt=0, le=8192)]
"""Of a layer, as filters of a convolution: twice the widest of `keras.applications`."""
Count = Annotated[int, Field(gt=0, le=1000)]
"""Draws, views and layers' parts of which each costs time or memory of its own."""
Slices = Annotated[int, Field(gt=0, le=4096)]
"""Of a study: whole-body scans have some 2000."""
Layers = Annotated[int, Field(gt=0, le=64)]
Kernel = Annotated[int, Field(gt=0, le=64)]
Padding = Annotated[int, Field(ge=0, le=64)]
Batch = Annotated[int, Field(gt=0, le=65_536)]
Epochs = Annotated[int, Field(gt=0, le=100_000)]
Stages = Field(max_length=16)
"""Layers in a row that are listed one by one."""


class Settings(pydantic.BaseModel):
    """A frozen group of settings: unknown keys are errors, defaults are validated too."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


Range = Annotated[tuple[float, float], pydantic.AfterValidator(_ordered)]


# ------------------------------------------------------------------------------------ the input


class Input(Settings):
    """How a stored slice becomes the model's input, `(size, size, channels)` float32.

    8-bit photographs are scaled to [0, 1], all of 0..255 or a `grey_window` of it; 16-bit
    intensities (HU, MRI) first pass `windows` (one channel each) or, for MRI, the percentiles of
    their study. Then `(x - mean) / std`.
    """

    size: Annotated[int, Field(ge=8, le=1024)] = 64
    mean: float = 0.5
    std: Annotated[float, Field(gt=0)] = 0.3
    windows: (
        Annotated[list[tuple[float, Annotated[float, Field(gt=0)]]], Field(max_length=16)] | None
    ) = None
    """CT windows as (centre, width) in HU, one channel each; null for 8-bit slices."""
    grey_window: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    """(centre, width) in grey levels 0..255, for 8-bit slices; null takes all of them."""
    percentiles: tuple[Probability, Probability] = (0.01, 0.99)
    """The quantiles of an MRI study's intensities that become 0 and 1."""
    neighbours: Annotated[int, Field(ge=0, le=4)] = 0
    """Slices of the study before and after each slice that join it as channels (1: 2.5-D, three
    channels); at the ends of the study the last slice is repeated."""

    @property
    def channels(self) -> int:
        """Channels of the model's input: the slice before, the slice, the slice after; each with
        all its windows."""
        return (2 * self.neighbours + 1) * (len(self.windows) if self.windows else 1)


# --------------------------------------------------------------------------------- the sequence


class Evaluation(Settings):
    """Which slices of a study answer for it when a model is evaluated."""

    policy: Literal["paper", "all", "even"] = "even"
    """`paper`: every sequence of the paper's sampler, their probabilities averaged; `even`: slices
    spread evenly; `all`: every slice, in studies of more than `length` (where it is set) thinned
    evenly. Every study gets an answer, in scan order."""
    length: Slices | None = None
    """Number of slices; null: as in training, for `all` no limit."""


class Sequence(Settings):
    """Which slices of a study make a sequence, and in what order.

    Policies, for a study of L slices and `length` n:
      paper   the paper's sampler: L < n gives n sequences of n sorted draws with replacement, L = n
              the study, L > n the L - n windows of n consecutive slices from 0 .. L-n-1
      all     every slice; a study of more than n is left out, or thinned evenly (`over`)
      window  `per_study` random windows of n neighbouring slices an epoch
      random  `per_study` random draws of n slices without replacement, sorted, an epoch
      even    n slices spread evenly over the study
    A study shorter than n is taken whole by `window`, `random` and `even`, unless `fill` is set:
    then slices are repeated, in order, until there are n.
    """

    policy: Literal["paper", "all", "window", "random", "even"] = "paper"
    length: Slices = 15
    over: Literal["leave_out", "thin"] = "thin"
    per_study: Count = 1
    fill: bool = False
    order: Literal["scan", "shuffled"] = "scan"
    """`shuffled`: a new random order of the slices every epoch of training (paper 2)."""
    evaluation: Evaluation = Evaluation()


# ----------------------------------------------------------------------------- the augmentations


class Rotation(Settings):
    """Rotation about the centre (paper 1: up to 180 degrees, a whole sequence; paper 2: 10)."""

    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    p: Probability = 1.0
    per: Per = "sequence"


class ResizedCrop(Settings):
    """A random crop, brought back to full size (paper 2: zoom in up to 60%).

    `scale` is the share of the side that is kept: (0.4, 1.0) zooms in by up to 60%.
    """

    scale: Annotated[tuple[Probability, Probability], pydantic.AfterValidator(_ordered)] = (
        0.4,
        1.0,
    )
    p: Probability = 1.0
    per: Per = "sequence"

    @field_validator("scale")
    @classmethod
    def _positive(cls, scale):
        if scale[0] <= 0:
            raise ValueError("the smallest share of the side must be above 0")
        return scale


class Flip(Settings):
    """Left-right mirroring."""

    p: Probability = 0.5
    per: Per = "sequence"


class GaussianNoise(Settings):
    """Gaussian noise, its variance drawn from a range on the 0..255 scale (paper 1: 1 to 7)."""

    variance: Range = (1.0, 7.0)
    p: Probability = 0.5
    per: Per = "slice"

    @field_validator("variance")
    @classmethod
    def _not_negative(cls, variance):
        if variance[0] < 0:
            raise ValueError("a variance is not negative")
        return variance


class GaussianBlur(Settings):
    """Gaussian blur, an odd kernel size drawn from a range (paper 1: 1 to 5; OpenCV's sigma)."""

    kernel: tuple[PositiveInt, PositiveInt] = (1, 5)
    p: Probability = 0.5
    per: Per = "slice"

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel):
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise ValueError("kernel sizes are odd")
        if kernel[1] > 31:
            raise ValueError("the largest kernel is 31")
        return _ordered(kernel)


class GridDistortion(Settings):
    """Cells of a `steps` x `steps` grid, stretched by up to `limit` (paper 1: 3 steps, p 0.3)."""

    steps: Annotated[int, Field(ge=1, le=16)] = 3
    limit: Fraction = 0.3
    p: Probability = 0.3
    per: Per = "slice"


class OpticalDistortion(Settings):
    """Barrel or pincushion distortion with a coefficient in ±`limit` (paper 1: p 0.4)."""

    limit: Fraction = 0.05
    p: Probability = 0.4
    per: Per = "slice"


class CoarseDropout(Settings):
    """Square holes filled with 0, after normalisation (paper 1's final choice) or before."""

    holes: Count = 8
    size: Annotated[int, Field(gt=0, le=1024)] = 8
    after_normalisation: bool = True
    p: Probability = 0.5
    per: Per = "slice"


class Augment(Settings):
    """Random changes in training, applied in the order of these fields; null leaves one off."""

    rotation: Rotation | None = None
    resized_crop: ResizedCrop | None = None
    flip: Flip | None = None
    gaussian_noise: GaussianNoise | None = None
    gaussian_blur: GaussianBlur | None = None
    grid_distortion: GridDistortion | None = None
    optical_distortion: OpticalDistortion | None = None
    coarse_dropout: CoarseDropout | None = None


# ------------------------------------------------------------------------------------ the model


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
    batch_norm_momentum: Fraction = 0.9
    batch_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5

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


class KerasApplication(Settings):
    """A network of `keras.applications`, the same for every slice, then dense layers (paper 2).

    One channel is shown to it as three equal ones; three windows or three neighbouring slices stand
    for red, green and blue. It brings its own preprocessing, so `input.mean` is 0 and `input.std`
    is 1.
    """

    name: Literal["keras_application"] = "keras_application"
    network: str = "DenseNet121"
    """Its name in `keras.applications`, such as VGG19, DenseNet121 or EfficientNetV2B0."""
    weights: str = "imagenet"
    """`imagenet` (downloaded by Keras once), `none` (random), or the path of a weights file."""
    output: str = "average"
    """`average` or `max`: the last feature map, pooled; or the name of a layer, such as `fc2`,
    which needs slices of the network's own size (VGG19: 224)."""
    frozen: Literal["all", "none"] | Annotated[int, Field(ge=1, le=10_000)] = "all"
    """How many of its layers, from the first, are never trained: all, none or a number. Frozen
    batch normalisation keeps its own statistics."""
    dense: Annotated[list[Dense], Stages] = []
    dropout: Fraction = 0.0
    """Of the features, after the dense layers."""


class Pixels(Settings):
    """The slices themselves, without a network: for an aggregator that reads pixels (`cnn_3d`)."""

    name: Literal["pixels"] = "pixels"


class Segmenter(Settings):
    """A network that tells for every pixel whether it is lesion; the area that it finds is a
    slice's one feature (paper 1, table 6).

    It learns from lesion masks, by a loss over pixels, and the study's answer rises with the area
    alone: `even_area` makes it a probability of 0.5, the threshold chosen on validation decides.
    `model.head` is not read.
    """

    name: Literal["segmenter"] = "segmenter"
    network: Literal["xnet", "unet", "dunet"] = "xnet"
    """X-Net (Qi et al. 2019), U-Net (Ronneberger et al. 2015), D-UNet (Zhou et al. 2019)."""
    width: Annotated[int, Field(ge=2, le=512)] | None = None
    """Filters of the first of five levels, each of twice the last; null: as published, 64 (D-UNet:
    32)."""
    even_area: Annotated[float, Field(gt=0)] = 0.01
    """As a share of one slice."""


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
        if not self.bidirectional and self.readout in ("last_backward", "concat"):
            raise ValueError(
                f"readout={self.readout} needs bidirectional=true; without: last, mean or max"
            )
        return self


class Pooling(Settings):
    """A fixed summary of the features of all slices, whatever their order."""

    name: Literal["mean", "max", "sum", "log_sum_exp"] = "mean"
    sharpness: Annotated[float, Field(gt=0)] = 5.0
    """Of `log_sum_exp`: near 0 it is the mean, large the maximum; read only there."""


class Attention(Settings):
    """Gated attention: a learned weighted mean of the slices, whatever their order (Ilse et al.
    2018)."""

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
    """`mean`: of the slices' probabilities; `max`; `log_sum_exp`: of their logits."""
    sharpness: Annotated[float, Field(gt=0)] = 5.0
    """Of `log_sum_exp`: near 0 it is the mean, large the maximum; read only there."""
    target: Literal["slice", "study"] = "slice"
    """What the training loss judges: every slice by its study's labels, or the summary alone."""


class Cnn3D(Settings):
    """3-D convolutions over the stack of slices, for studies whose volume is intact (paper 2,
    setting 2); the encoder is `pixels`.

    The stack is resampled to `depth` slices. A stage for each entry of `filters`: a 3 x 3 x 3
    convolution, batch normalisation, ReLU, and the maximum of 2 x 2 x 2.
    """

    name: Literal["cnn_3d"] = "cnn_3d"
    depth: Annotated[int, Field(gt=0, le=1024)] = 16
    filters: Annotated[list[Units], Field(min_length=1, max_length=10)] = [16, 32, 64]
    pooling: Literal["average", "max"] = "average"
    """Over what is left of the volume."""
    batch_norm_momentum: Fraction = 0.9
    batch_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5


class Head(Settings):
    """Dense layers from the aggregator's vector to one logit a label."""

    units: Annotated[list[Units], Stages] = [32]
    activation: Activation = "relu"
    dropout: Fraction = 0.2


def _by_name(tags: dict[str, str]) -> Discriminator:
    """Pick one of several groups of settings by its `name`; without one, the first."""

    def tag(value: Any) -> Any:
        first = next(iter(tags))
        name = (
            value.get("name", first) if isinstance(value, dict) else getattr(value, "name", first)
        )
        return tags.get(name) if isinstance(name, str) else None

    return Discriminator(
        tag,
        custom_error_type="unknown_kind",
        custom_error_message=f"should be one of {', '.join(tags)}",
    )


class Model(Settings):
    """Encoder (one slice -> features), aggregator (features -> one vector), head (-> logits)."""

    encoder: Annotated[
        Annotated[ConvFSM, Tag("conv_fsm")]
        | Annotated[KerasApplication, Tag("keras_application")]
        | Annotated[Pixels, Tag("pixels")]
        | Annotated[Segmenter, Tag("segmenter")],
        _by_name({name: name for name in ("conv_fsm", "keras_application", "pixels", "segmenter")}),
    ] = ConvFSM()
    aggregator: Annotated[
        Annotated[Recurrent, Tag("lstm")]
        | Annotated[Pooling, Tag("mean")]
        | Annotated[Attention, Tag("attention")]
        | Annotated[Transformer, Tag("transformer")]
        | Annotated[SliceScores, Tag("slice_scores")]
        | Annotated[Cnn3D, Tag("cnn_3d")],
        _by_name(
            {
                "lstm": "lstm",
                "gru": "lstm",
                "mean": "mean",
                "max": "mean",
                "sum": "mean",
                "log_sum_exp": "mean",
                "attention": "attention",
                "transformer": "transformer",
                "slice_scores": "slice_scores",
                "cnn_3d": "cnn_3d",
            }
        ),
    ] = Recurrent()
    head: Head = Head()

    @model_validator(mode="after")
    def _a_volume_is_made_of_pixels(self):
        if isinstance(self.aggregator, Cnn3D) and not isinstance(self.encoder, Pixels):
            raise ValueError(
                "aggregator cnn_3d reads the slices themselves, not features of "
                f"{self.encoder.name}; set model.encoder.name=pixels"
            )
        return self


# ---------------------------------------------------------------------------- the pretraining


class SyntheticLesions(Settings):
    """Before the fit, the encoder learns to find lesions that are painted into slices of those
    training studies whose labels are all 0; the encoder is `conv_fsm` with pooling `lesion_map`.

    Sizes are shares of the slice's side, contrasts of the (first) grey-level window.
    """

    steps: Annotated[int, Field(gt=0, le=1_000_000)] = 1000
    studies: Count = 4
    """A step."""
    slices: Slices = 8
    """Neighbouring ones, of each study."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    radius: Range = (0.05, 0.2)
    depth: Range = (0.8, 4.0)
    """Half of the lesion's extent over the slices, in slices."""
    contrast: Range = (0.06, 0.4)
    bright: Probability = 0.15
    """Share of the lesions that are brighter than the tissue, not darker."""
    frozen: bool = True
    """Whether the fit leaves the encoder as the pretraining made it."""

    @field_validator("radius", "depth", "contrast")
    @classmethod
    def _positive(cls, bounds):
        if bounds[0] <= 0:
            raise ValueError("sizes and contrasts are above 0")
        return bounds


# ----------------------------------------------------------------- the loss, optimizer and fit


class Loss(Settings):
    """Cross-entropy on logits, averaged over the labels that are known.

    `weights`: `none`; `chexnet`: -w+ y log p - w- (1-y) log(1-p) with w+ = negatives / all and
    w- = positives / all of the training studies, by label (paper 2); `balanced`: w+ = negatives /
    positives, w- = 1; or one positive weight a label.

    For a segmenter, over pixels: `dice_cross_entropy` is the mean cross-entropy plus 1 - Dice (Qi
    et al. 2019), `dice_focal` the mean focal loss plus 1 - Dice (after Zhou et al. 2019), Dice over
    a batch that shows a lesion; of all these settings `gamma` alone is read.
    """

    name: Literal["binary_cross_entropy", "focal", "dice_cross_entropy", "dice_focal"] = (
        "binary_cross_entropy"
    )
    weights: (
        Literal["none", "chexnet", "balanced"]
        | Annotated[list[Annotated[float, Field(gt=0)]], Field(max_length=1000)]
    ) = "none"
    label_smoothing: Fraction = 0.0
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Focusing exponent of the focal loss (Lin et al. 2017, equation 4)."""


class Optimizer(Settings):
    """The optimizer and its learning-rate schedule (paper 1: AdamW, 1e-3, 0.9, 0.999, 0.01).

    Weight decay is decoupled from the gradient (Loshchilov and Hutter 2019), for `adamw` and `sgd`;
    `adam` and `adamax` have none.
    """

    name: Literal["adamw", "adam", "adamax", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Fraction = 0.0
    """Share of all updates over which the rate rises to its full height."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class Split(Settings):
    """Shares of the patients that are held out, stratified over the labels."""

    test: Fraction = 0.2
    validation: Fraction = 0.2
    """Share of all patients; with folds, of the patients outside the test fold."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    given: bool = True
    """Honour the data set's own split column where it has one."""

    @model_validator(mode="after")
    def _someone_left_to_train(self):
        if self.test + self.validation >= 1:
            raise ValueError(
                f"test {self.test} + validation {self.validation} leave no one to train"
            )
        return self


MONITORS = (
    "auroc",
    "average_precision",
    "accuracy",
    "recall",
    "specificity",
    "precision",
    "f1",
    "balanced_accuracy",
    "recall_macro",
    "precision_macro",
    "f1_macro",
    "brier",
    "loss",
    "dice",
    "iou",
)
"""`dice` and `iou`, of the lesions' pixels, are for segmenters; `loss` is the training loss."""

PIXEL_LOSSES = ("dice_cross_entropy", "dice_focal")


class Features(Settings):
    """Features of a network that is frozen whole, computed once and kept on disk.

    Training then reads features instead of slices. An augmented study has `views` variants; each
    epoch draws one of them for each of its sequences.
    """

    use: Literal["auto", "never"] = "auto"
    """`auto`: wherever the encoder is a network that is frozen whole."""
    views: Count = 8
    """Augmented variants of a study; without augmentation there is one."""
    redraw: Epochs | None = None
    """Epochs after which the variants are drawn anew; null: never."""
    dtype: Literal["float32", "float16"] = "float32"
    """float16 halves the space and changes the features by up to 1 in 2,000."""


class Fit(Settings):
    """How long and in what portions to train."""

    epochs: Epochs = 20
    batch_size: Batch = 16
    """Sequences that pass through the model at once."""
    accumulate: Batch = 1
    """Batches whose gradients make one update: the exact mean over all known labels in them."""
    monitor: Literal[MONITORS] = "auroc"
    """Validation metric that picks the best epoch (ties: the smaller validation loss)."""
    patience: Epochs | None = 5
    """Epochs without a better `monitor` before training stops; null: never."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    jit: bool = False
    """Compile the training step with XLA, anew for every shape of a batch: for a GPU and sequences
    of one length."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Keep decoded slices in memory: always, never, or when they fit in `cache_limit_mib`."""
    cache_limit_mib: Annotated[int, Field(gt=0, le=2**24)] = 2048
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 1.0
    """Save the state for --resume this often inside an epoch, and at the end of each; epochs that
    are quick beside the saving share one save."""


class Requires(Settings):
    """What a recipe needs of the data set that it is trained on; null asks for nothing.

    A data set that is prepared otherwise is refused before a run begins; what it does not say of
    itself is only noted.
    """

    modality: list[Literal["photograph", "CT", "MR"]] | None = None
    """Any of these."""
    unit: str | None = None
    """Of the intensities: `grey level`, `HU` or `arbitrary`."""
    axis: Literal["axial", "coronal", "sagittal", 0, 1, 2] | None = None
    """How volumes are cut."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Side of the stored slices in pixels."""
    aspect: Literal["pad", "stretch"] | None = None
    masks: bool = False
    """Lesion masks, of some study at least."""
    labels: PositiveInt | None = None
    """How many there are."""

    @field_validator("modality", mode="before")
    @classmethod
    def _one_or_several(cls, modality):
        return [modality] if isinstance(modality, str) else modality


class Chosen(Settings):
    """A choice that made the recipe what it is: by a search, or by hand on some cohort.

    It is no setting: it changes nothing of a training, but what may be said of its figures. A
    figure of patients on whom the recipe was chosen is too good.
    """

    by: str
    """Who chose: `search NAME`, or how it was done."""
    cohort: str
    """The patients on whom, in words."""
    score: str = ""
    """What the winner reached there, and among how many."""
    search: str = ""
    """The search's id."""
    fingerprint: str = ""
    """Of the data set that was searched."""
    trials: Annotated[int, Field(ge=0)] = 0
    """Finished ones."""
    patients: Annotated[str, Field(pattern=r"^([0-9a-f]{10}( [0-9a-f]{10})*)?$")] = ""
    """Those on whom candidates were scored, as short hashes of their salted ids and of the content
    of their studies."""


class Experiment(Settings):
    """The whole recipe of a training run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)] = (
        "experiment"
    )
    description: Annotated[str, Field(max_length=20_000)] = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    requires: Requires = Requires()
    input: Input = Input()
    sequence: Sequence = Sequence()
    augment: Augment = Augment()
    model: Model = Model()
    pretraining: SyntheticLesions | None = None
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    split: Split = Split()
    fit: Fit = Fit()
    features: Features = Features()
    chosen: list[Chosen] = []
    """On whom the recipe was chosen, the last choice last."""

    @field_validator("requires", mode="before")
    @classmethod
    def _null_requires_nothing(cls, requires):
        return {} if requires is None else requires

    @property
    def uses_features(self) -> bool:
        """Whether training reads stored features of a frozen network instead of slices."""
        encoder = self.model.encoder
        frozen = isinstance(encoder, KerasApplication) and encoder.frozen == "all"
        return frozen and self.features.use == "auto"

    @property
    def segments(self) -> bool:
        """Whether the model learns from lesion masks in place of labels."""
        return isinstance(self.model.encoder, Segmenter)

    @model_validator(mode="after")
    def _painted_lesions_are_found_on_a_map(self):
        if self.pretraining is None:
            return self
        if getattr(self.model.encoder, "pooling", None) != "lesion_map":
            raise ValueError("pretraining needs model.encoder.pooling=lesion_map (of conv_fsm)")
        if self.input.neighbours:
            raise ValueError("pretraining paints single slices: set input.neighbours=0")
        return self

    @model_validator(mode="after")
    def _segmenters_learn_from_masks(self):
        loss, aggregator, settings = self.loss, self.model.aggregator.name, self.input
        if not self.segments:
            if loss.name in PIXEL_LOSSES or self.fit.monitor in ("dice", "iou"):
                what = f"loss.name={loss.name}" if loss.name in PIXEL_LOSSES else self.fit.monitor
                raise ValueError(f"{what} is for model.encoder.name=segmenter")
            return self
        if loss.name not in PIXEL_LOSSES:
            raise ValueError(
                f"a segmenter's loss is over pixels; set loss.name to one of "
                f"{', '.join(PIXEL_LOSSES)}, got {loss.name}"
            )
        if loss.weights != "none" or loss.label_smoothing:
            raise ValueError("a segmenter's loss has no loss.weights and no loss.label_smoothing")
        if aggregator not in ("sum", "max", "mean"):
            raise ValueError(
                f"a segmenter's areas are joined by model.aggregator sum, max or mean, got "
                f"{aggregator}"
            )
        if settings.size % 16:
            raise ValueError(
                f"a segmenter halves slices four times: input.size has to be a multiple of 16, "
                f"got {settings.size}"
            )
        if self.model.encoder.network == "dunet" and settings.channels != 5:
            raise ValueError(
                "dunet reads two slices before and one after each slice, of one window: set "
                "input.neighbours=2"
            )
        return self

    @model_validator(mode="after")
    def _input_fits_the_network(self):
        if isinstance(self.model.encoder, KerasApplication):
            if (self.input.mean, self.input.std) != (0.0, 1.0):
                raise ValueError(
                    "model.encoder keras_application has its own preprocessing and takes slices "
                    f"in [0, 1]; set input.mean=0 and input.std=1, got {self.input.mean} and "
                    f"{self.input.std}"
                )
            if self.input.channels not in (1, 3):
                raise ValueError(
                    f"model.encoder keras_application takes 1 or 3 channels, input.windows and "
                    f"input.neighbours give {self.input.channels}"
                )
        return self

    @model_validator(mode="after")
    def _fixed_length_where_weights_are_per_position(self):
        encoder, sequence = self.model.encoder, self.sequence
        if isinstance(encoder, ConvFSM) and encoder.weights == "per_position":
            longest = max(sequence.length, sequence.evaluation.length or 0)
            endless = sequence.evaluation.policy == "all" and not sequence.evaluation.length
            if longest > encoder.positions or endless:
                raise ValueError(
                    f"weights per position read at most model.encoder.positions = "
                    f"{encoder.positions} slices; sequence.length and sequence.evaluation have to "
                    "keep to that"
                )
        return self

    def to_yaml(self) -> str:
        """Return the recipe as YAML, every value written out, that `load` reads back equal."""
        values = self.model_dump(mode="json")
        if not self.chosen:
            del values["chosen"]
        return yaml.safe_dump(values, sort_keys=False, width=100)

    def flat(self) -> dict[str, Any]:
        """Return every setting by its dotted key, such as `model.aggregator.units`.

        Where the recipe comes from (`chosen`) is no setting.
        """
        flat: dict[str, Any] = {}

        def walk(prefix: str, value: Any) -> None:
            if isinstance(value, dict):
                for key, inner in value.items():
                    walk(f"{prefix}.{key}" if prefix else key, inner)
            else:
                flat[prefix] = value

        walk("", self.model_dump(mode="json", exclude={"chosen"}))
        return flat


# -------------------------------------------------------------------------- reading and overriding


def presets() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("medseq_tf.recipe") / "presets"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load(
    preset_or_file: str | os.PathLike | Experiment, overrides: Iterable[str] = ()
) -> Experiment:
    """Load a recipe and override some of its values.

    Args:
        preset_or_file: a preset's name (see `presets`), the path of a YAML file, or an
          `Experiment`.
        overrides: `dotted.key=value`, the value in YAML; `augment.rotation=null` switches one off.

    Returns:
        The validated `Experiment`.

    Raises:
        InputError: one line that names the key, its value and what would be valid.
    """
    return from_values(*plain_values(preset_or_file, overrides))


def plain_values(
    preset_or_file: str | os.PathLike | Experiment, overrides: Iterable[str] = ()
) -> tuple[dict[str, Any], str]:
    """Return a recipe's nested values with the overrides of `load`, not validated, and its name."""
    if isinstance(preset_or_file, Experiment):
        values, origin = preset_or_file.model_dump(mode="json"), preset_or_file.name
    else:
        values, origin = _read(preset_or_file)
    for override in sorted(overrides, key=_names_a_kind, reverse=True):
        _override(values, override)
    return values, origin


def from_values(values: dict[str, Any], origin: str = "recipe") -> Experiment:
    """Validate plain nested values; errors are one line that starts with `origin`."""
    try:
        return Experiment.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"{origin}: {_one_line(error, values)}") from None


def _read(preset_or_file: str | os.PathLike) -> tuple[dict[str, Any], str]:
    name = os.fspath(preset_or_file)
    if name in presets():
        path = resources.files("medseq_tf.recipe") / "presets" / f"{name}.yaml"
        values = yaml_values(path.read_text("utf-8"), name)
    else:
        values = _read_file(name)
    if not isinstance(values, dict):
        raise InputError(f"{name}: holds no recipe; keys such as model: or fit: are expected")
    return values, name


def _read_file(name: str) -> Any:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise InputError(
            f"no preset is called {name!r}{did_you_mean(name, presets())}; presets: "
            f"{', '.join(presets())}; or give the path of a .yaml file"
        )
    try:
        return read_yaml(name, "recipe")
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None


KINDS = (["model", "encoder"], ["model", "aggregator"])
"""Where a name picks one of several groups of settings."""


def _names_a_kind(override: str) -> bool:
    """Whether an override picks an encoder or aggregator, whose settings then can be set."""
    *location, last = override.partition("=")[0].strip().split(".")
    return location in KINDS and last == "name"


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: expected key=value, such as fit.epochs=30")
    *parents, last = key.strip().split(".")
    if len(parents) >= DEEPEST:
        raise InputError(f"--set {_short(override)}: no key lies more than {DEEPEST} levels deep")
    try:
        value = yaml_values(text, "")
    except InputError as error:
        problem = str(error).removeprefix(": not valid YAML at line 1: ")
        raise InputError(
            f"--set {_short(override)}: the value is not valid YAML ({problem})"
        ) from None
    node: Any = values
    for parent in parents:
        node = _step(node, parent, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
        return
    if _names_a_kind(override) and _kind(parents[-1], node.get(last)) != _kind(parents[-1], value):
        node.clear()  # another kind has other settings: it begins with its own defaults
    node[last] = value


def _kind(part: str, name: Any) -> type[Settings] | None:
    """Return the settings of the encoder or aggregator (`part`) that has this name."""
    kinds = _models_in(Model.model_fields[part].annotation)
    return next((k for k in kinds if name in get_args(k.model_fields["name"].annotation)), None)


def _step(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_index(node, part, override)]
    else:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"--set {override}: {part} is a single value and has no keys below it")
    return child


def _index(items: list, part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise InputError(f"--set {override}: {part} is no index of a list of {len(items)}")
    return int(part)


def _one_line(error: pydantic.ValidationError, values: dict[str, Any]) -> str:
    """Return one line for the first thing that is wrong, and how many more there are."""
    problems: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        location, value, present = _locate(item["loc"], values)
        key = ".".join(map(str, location))
        if item["type"] == "extra_forbidden":
            valid = _keys_at(location[:-1], values)
            guess = did_you_mean(str(location[-1]), valid)
            problems.setdefault(f"unknown key {key}{guess}; valid: {', '.join(valid)}", [])
        else:
            if item["type"] == "unknown_kind":
                key, value, present = f"{key}.name", value["name"], True
            head = f"{key} = {_short(value)}" if present and not isinstance(value, dict) else key
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            message = message.replace("less than or equal to", "at most")
            expected = "" if item["type"] in ("value_error", "unknown_kind") else "should be "
            problems.setdefault(head or "recipe", []).append(expected + message)
    first, messages = next(iter(problems.items()))
    line = first + (": " + ", or ".join(dict.fromkeys(messages)) if messages else "")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return line.replace("\n", " ") + more


def _locate(loc: tuple, values: Any) -> tuple[list, Any, bool]:
    """Follow an error's location as far as the user's own keys go (unions add their tags)."""
    location: list = []
    for part in loc:
        if location in KINDS and part not in (values if isinstance(values, dict) else ()):
            continue  # the tag of a union
        inside = isinstance(part, int) and isinstance(values, list) and part < len(values)
        if inside or (isinstance(values, dict) and part in values):
            values = values[part]
        elif isinstance(part, str) and isinstance(values, dict) and part.isidentifier():
            location.append(part)
            return location, None, False
        else:
            break
        location.append(part)
    return location, values, True


def _keys_at(location: list, values: Any) -> list[str]:
    """Return the valid keys of the settings group at a dotted location."""
    group: type[Settings] = Experiment
    for depth, part in enumerate(location):
        values = values[part]
        candidates = (
            _models_in(group.model_fields[part].annotation) if isinstance(part, str) else []
        )
        if location[: depth + 1] in KINDS:
            group = _kind(part, values.get("name", "")) or candidates[0]
        elif candidates:
            group = candidates[0]
    return list(group.model_fields)


def _models_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [m for inner in get_args(annotation) for m in _models_in(inner)]


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return what to add to an error about an unknown name: the nearest valid one, if any is."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
