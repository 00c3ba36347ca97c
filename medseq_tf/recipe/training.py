"""The training: pretraining, loss, optimizer, split of the patients, stored features, fit."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from medseq_tf.errors import InputError
from medseq_tf.recipe.settings import (
    Batch,
    Count,
    Epochs,
    Fraction,
    Probability,
    Range,
    Settings,
    Slices,
)

PixelLoss = Literal["dice_cross_entropy", "dice_focal"]
PIXEL_LOSSES: tuple[str, ...] = get_args(PixelLoss)

PixelMonitor = Literal["dice", "iou"]
PIXEL_MONITORS: tuple[str, ...] = get_args(PixelMonitor)
"""Of the lesions' pixels, for segmenters."""

LabelMonitor = Literal[
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
]
"""Of yes/no labels, as means over them."""

ClassMonitor = Literal[
    "auroc",
    "auroc_pairwise",
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "kappa",
    "log_loss",
    "brier",
    "loss",
]
"""Of classes that exclude each other, for all of them together."""

GradeMonitor = Literal["kappa_quadratic", "mean_absolute_error"]
"""Of classes that are ordered, besides."""

Monitor = Literal[LabelMonitor, PixelMonitor, ClassMonitor, GradeMonitor]
MONITORS: tuple[str, ...] = get_args(Monitor)
"""What training watches, epoch by epoch; `loss` is the training loss."""

MONITORS_OF: dict[str, tuple[str, ...]] = {
    "labels": (*get_args(LabelMonitor), *PIXEL_MONITORS),
    "classes": get_args(ClassMonitor),
    "ordered": (*get_args(ClassMonitor), *get_args(GradeMonitor)),
}
"""Those that mean something of what a data set's studies have, see `readers.classes.OUTPUTS`."""

MINIMISED = ("brier", "loss", "log_loss", "mean_absolute_error")
"""The monitors of which the smallest value is the best."""


def check_meaning(setting: str, monitor: str, outputs: str) -> None:
    """Raise an InputError if a setting names a monitor that means nothing of `outputs`."""
    if monitor in MONITORS_OF[outputs]:
        return
    of_what = {
        "labels": "yes/no labels",
        "classes": "classes that are not ordered",
        "ordered": "ordered classes",
    }
    raise InputError(
        f"{setting} = {monitor} means nothing of {of_what[outputs]}, which the data set has: one "
        f"of {', '.join(MONITORS_OF[outputs])}"
    )


_THRESHOLD_RULE = re.compile(
    r"youden|f1|f1_macro|accuracy"
    r"|(?:sensitivity|specificity)\s*>=\s*(?:0(?:\.\d+)?|1(?:\.0+)?|\.\d+)"
)


def threshold_rule(rule: str) -> str:
    """Return a rule by which a threshold is chosen, if it is one.

    Raises:
        ValueError: it is not.
    """
    if _THRESHOLD_RULE.fullmatch(rule):
        return rule
    raise ValueError(
        f"unknown threshold rule {rule!r}: expected one of youden, f1, f1_macro, accuracy, "
        "sensitivity>=X, specificity>=X (X from 0 to 1)"
    )


class SyntheticLesions(Settings):
    """Synthetic lesions, which the encoder learns to find before the fit.

    They are added to slices of those training studies whose labels are all 0; the encoder is
    `conv_fsm` with pooling `lesion_map`. Sizes are shares of the slice's side, contrasts of the
    (first) grey-level window.
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


class Loss(Settings):
    """Cross-entropy on logits, averaged over the labels, or the studies' classes, that are known.

    `weights`: `none`; `chexnet`: -w+ y log p - w- (1-y) log(1-p) with w+ = negatives / all and
    w- = positives / all of the training studies, by label (paper 2); `balanced`: w+ = negatives /
    positives, w- = 1; or one positive weight a label.

    Of classes, which exclude each other, and of grades, `binary_cross_entropy` is the categorical
    cross-entropy of their softmax, -w log p of the study's class, and `focal` that times (1 - p) to
    the power of `gamma`. `chexnet`: w = studies of all other classes / all; `balanced`: w = all /
    (classes x studies of the class), as scikit-learn has it; or one positive weight a class.
    `label_smoothing` takes that share from the study's class and spreads it evenly over all.

    For a segmenter, over pixels: `dice_cross_entropy` is the mean cross-entropy plus 1 - Dice (Qi
    et al. 2019), `dice_focal` the mean focal loss plus 1 - Dice (after Zhou et al. 2019), Dice over
    a batch that shows a lesion; of all these settings `gamma` alone is read.
    """

    name: Literal["binary_cross_entropy", "focal", PixelLoss] = "binary_cross_entropy"
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
    """Shares of the patients that are held out, stratified over the labels or the classes."""

    test: Fraction = 0.2
    validation: Fraction = 0.2
    """Share of all patients; with folds, of the patients outside the test fold."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    given: bool = True
    """Honour the data set's own split column where it has one."""
    by: Literal["patient", "site", "date"] = "patient"
    """What a split holds whole: patients; `site`: all patients of a site, the shares as near as
    sites allow; `date`: the latest patients test, those before them validate."""

    @model_validator(mode="after")
    def _someone_left_to_train(self):
        if self.test + self.validation >= 1:
            raise ValueError(
                f"test {self.test} + validation {self.validation} leave no one to train"
            )
        return self


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
    """How to train: by gradients, for how long and in what portions, or a linear head at once.

    `lbfgs` has no epochs: it reads `strength`, `threshold` and how slices are read and computed.
    """

    solver: Literal["gradient", "lbfgs"] = "gradient"
    """`gradient`: by `optimizer`, epoch by epoch; `lbfgs`: the head, of one layer, is an L2
    logistic regression (of classes a softmax) on the vectors of the training studies, solved to
    convergence, of a model in which nothing else is trained. Validation then chooses thresholds
    alone."""
    strength: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """Of `lbfgs`: C of scikit-learn's `LogisticRegression`, on standardised vectors, the smaller
    the simpler; `auto`: the one of a grid with the least log loss in five inner folds of the
    training patients, where these are few drawn towards 3.2 over the number of features."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Models that are trained alike but for their seeds, the first by the recipe's own; the run's
    probability is their mean, by which thresholds are chosen."""
    epochs: Epochs = 20
    batch_size: Batch = 16
    """Sequences that pass through the model at once."""
    accumulate: Batch = 1
    """Batches whose gradients make one update: the exact mean over all known labels in them."""
    monitor: Monitor = "auroc"
    """Validation metric that picks the best epoch (ties: the smaller validation loss)."""
    patience: Epochs | None = 5
    """Epochs without a better `monitor` before training stops; null: never."""
    threshold: Annotated[str, AfterValidator(threshold_rule)] = "youden"
    """Rule by which validation chooses the threshold of each label: the greatest `youden`
    (sensitivity + specificity - 1), `f1`, `f1_macro` or `accuracy`; or `sensitivity>=X`, the most
    specific that still finds this share, or `specificity>=X`. Classes that exclude each other have
    none: the most probable one is called."""
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
