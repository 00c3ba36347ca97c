"""Losses of logits, by labels or classes of studies or, of a segmenter, by masks of lesions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.layers import replicas
from medseq_tf.readers.classes import LABELS


class KnownLoss(keras.losses.Loss):
    """A loss over what is known alone: what is not adds nothing, and is not divided by."""

    def elementwise(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Return losses, 0 where the truth is unknown, and 1.0 where it is known, else 0.0.

        Their sums' quotient is the mean over what is known.
        """
        raise NotImplementedError

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return each study's mean loss over what is known of it, `(B,)`; 0 if nothing is."""
        losses, known = self.elementwise(y_true, y_pred)
        return ops.sum(losses, axis=-1) / ops.maximum(ops.sum(known, axis=-1), 1.0)


@keras.saving.register_keras_serializable(package="medseq_tf")
class LabelLoss(KnownLoss):
    """Weighted cross-entropy or focal loss on logits, over the labels that are known.

    For a label y in {0, 1} and p = sigmoid(logit):

        -w+ y (1 - p)^gamma log p  -  w- (1 - y) p^gamma log(1 - p)

    With gamma = 0 this is the weighted cross-entropy of CheXNet (Rajpurkar et al. 2017, equation 1;
    paper 2, section 2.1), otherwise the focal loss (Lin et al. 2017, equation 4). A NaN label is
    unknown: it adds nothing to the loss, to its gradient, or to what the loss is divided by.

    Args:
        positive_weight: w+, one a label `(labels,)` or one for all.
        negative_weight: w-, likewise.
        gamma: focusing exponent, 0 for cross-entropy.
        label_smoothing: s in [0, 1): the target becomes y (1 - s) + s / 2.
    """

    def __init__(
        self,
        positive_weight: float | list[float] = 1.0,
        negative_weight: float | list[float] = 1.0,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        name: str = "label_loss",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.positive_weight = np.asarray(positive_weight, "float32").tolist()
        self.negative_weight = np.asarray(negative_weight, "float32").tolist()
        self.gamma = float(gamma)
        self.label_smoothing = float(label_smoothing)

    def elementwise(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Return `(B, labels)` each, of labels that are 1, 0 or NaN and of logits."""
        logits = ops.cast(y_pred, "float32")
        labels = ops.cast(y_true, "float32")
        known = ops.cast(ops.logical_not(ops.isnan(labels)), "float32")
        labels = ops.where(ops.isnan(labels), 0.0, labels)
        labels = labels * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        positive = labels * ops.softplus(-logits)
        negative = (1.0 - labels) * ops.softplus(logits)
        if self.gamma:
            positive = positive * ops.exp(-self.gamma * ops.softplus(logits))
            negative = negative * ops.exp(-self.gamma * ops.softplus(-logits))
        losses = positive * ops.convert_to_tensor(self.positive_weight, "float32") + (
            negative * ops.convert_to_tensor(self.negative_weight, "float32")
        )
        return losses * known, known

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "positive_weight": self.positive_weight,
            "negative_weight": self.negative_weight,
            "gamma": self.gamma,
            "label_smoothing": self.label_smoothing,
        }


@keras.saving.register_keras_serializable(package="medseq_tf")
class ClassLoss(KnownLoss):
    """Weighted categorical cross-entropy or focal loss, of classes that exclude each other.

    With the study's class y, and p the softmax that the logits are the log-odds of (`models.Head`):

        -w_y (1 - p_y)^gamma log p_y

    the cross-entropy with gamma = 0, otherwise the focal loss (Lin et al. 2017, equation 4). A
    study of an unknown class, whose row is NaN, adds nothing to the loss, to its gradient, or to
    what the loss is divided by: a mean is over studies, each counted once whatever its weight.

    Args:
        weights: w, one a class `(classes,)` or one for all.
        gamma: focusing exponent, 0 for cross-entropy.
        label_smoothing: s in [0, 1): the target of each class becomes (1 - s) [class = y] +
            s / classes (Szegedy et al. 2016, section 7), and the loss the sum over the classes of
            the target times what stands above, each with its own w.
    """

    def __init__(
        self,
        weights: float | list[float] = 1.0,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        name: str = "class_loss",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.weights = np.asarray(weights, "float32").tolist()
        self.gamma = float(gamma)
        self.label_smoothing = float(label_smoothing)

    def elementwise(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Return `(..., 1)` each, of one-hot classes or NaN `(..., classes)` and of logits."""
        logits, classes = ops.cast(y_pred, "float32"), ops.cast(y_true, "float32")
        unknown = ops.any(ops.isnan(classes), axis=-1, keepdims=True)
        targets = ops.where(unknown, 0.0, classes)
        targets = targets * (1.0 - self.label_smoothing) + self.label_smoothing / logits.shape[-1]
        losses = targets * ops.softplus(-logits) * ops.convert_to_tensor(self.weights, "float32")
        if self.gamma:
            losses = losses * ops.exp(-self.gamma * ops.softplus(logits))
        known = ops.cast(ops.logical_not(unknown), "float32")
        return ops.sum(losses, axis=-1, keepdims=True) * known, known

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "weights": self.weights,
            "gamma": self.gamma,
            "label_smoothing": self.label_smoothing,
        }


@keras.saving.register_keras_serializable(package="medseq_tf")
class PixelLoss(KnownLoss):
    """Cross-entropy or focal loss of a slice's pixels, plus one minus the soft Dice of its batch.

    For a mask g in {0, 1} and p = sigmoid(logit), the loss of a slice is

        mean(-g (1 - p)^gamma log p - (1 - g) p^gamma log(1 - p))
            + 1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1)

    where the mean is over the pixels of the slice and the sums are over those of all known slices
    of the batch (gamma 0: Qi et al. 2019, X-Net; gamma > 0: after Zhou et al. 2019, D-UNet). So a
    slice without lesion counts by what is wrongly found in it. A batch without any lesion has no
    Dice, only the first term: a perfect Dice for finding nothing would teach a network to find
    nothing, where few slices have a lesion. A slice of which any pixel of the mask is NaN is
    unknown: it adds nothing to the loss, to its gradient, or to what the loss is divided by.

    Args:
        gamma: focusing exponent, 0 for cross-entropy.
    """

    def __init__(self, gamma: float = 0.0, name: str = "pixel_loss", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.gamma = float(gamma)
        self._cross_entropy = LabelLoss(gamma=self.gamma)

    def elementwise(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Return `(B, T)` each, of masks `(B, T, H, W)` that are 1, 0 or NaN and of logits."""
        masks, logits = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
        unknown = ops.any(ops.isnan(masks), axis=(-2, -1))
        known = ops.cast(ops.logical_not(unknown), "float32")
        masks = ops.where(unknown[..., None, None], 0.0, masks)
        by_pixel, _ = self._cross_entropy.elementwise(masks, logits)
        predicted = ops.sigmoid(logits) * known[..., None, None]
        shared, lesions, found = replicas.summed(
            [ops.sum(predicted * masks), ops.sum(masks), ops.sum(predicted)]
        )
        dice = (2.0 * shared + 1.0) / (found + lesions + 1.0)
        dice_loss = ops.where(lesions > 0.0, 1.0 - dice, 0.0)
        return (ops.mean(by_pixel, axis=(-2, -1)) + dice_loss) * known, known

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {**super().get_config(), "gamma": self.gamma}


def label_weights(labels: np.ndarray, weights: str | list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return w+ and w- of each label from the training studies.

    Args:
        labels: `(studies, labels)`, 1, 0 or NaN where unknown.
        weights: `none`, `chexnet`, `balanced` or one positive weight a label; see
            `recipes.Loss`. A label with one class only keeps weights of 1.

    Returns:
        w+ `(labels,)` and w- `(labels,)`.
    """
    ones = np.ones(labels.shape[1])
    if isinstance(weights, list):
        return np.asarray(weights, float), ones
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    both = (positives > 0) & (negatives > 0)
    if weights == "chexnet":
        known = np.maximum(positives + negatives, 1)
        return np.where(both, negatives / known, 1.0), np.where(both, positives / known, 1.0)
    if weights == "balanced":
        return np.where(both, negatives / np.maximum(positives, 1), 1.0), ones
    return ones, ones


def class_weights(classes: np.ndarray, weights: str | list[float]) -> np.ndarray:
    """Return w of each class from the training studies.

    Args:
        classes: `(studies, classes)`, one-hot, or NaN where unknown.
        weights: `none`, `chexnet`, `balanced` or one positive weight a class; see
            `recipes.Loss`. A class without a study keeps a weight of 1 and is not counted.

    Returns:
        w `(classes,)`.
    """
    if isinstance(weights, list):
        return np.asarray(weights, float)
    counts = np.nansum(classes, axis=0)
    there = counts > 0
    if weights == "none" or there.sum() < 2:
        return np.ones(len(counts))
    shares = counts / counts.sum()
    if weights == "chexnet":
        return np.where(there, 1 - shares, 1.0)
    return 1 / np.where(there, there.sum() * shares, 1.0)


def build(
    settings: recipes.Loss, labels: np.ndarray, outputs: str = LABELS
) -> LabelLoss | ClassLoss | PixelLoss:
    """Return the recipe's loss, its weights taken from the training labels `(studies, labels)`.

    `outputs` says what the labels are: `labels`, or `classes` or `ordered` ones.

    Raises:
        InputError: `loss.weights` has another number of weights than there are labels or classes.
    """
    if settings.name in recipes.PIXEL_LOSSES:
        return PixelLoss(settings.gamma if settings.name == "dice_focal" else 0.0)
    if isinstance(settings.weights, list) and len(settings.weights) != labels.shape[1]:
        one, several = ("label", "labels") if outputs == LABELS else ("class", "classes")
        raise InputError(
            f"loss.weights has {len(settings.weights)} weights, the data set {labels.shape[1]} "
            f"{several}; give one weight a {one}"
        )
    gamma = settings.gamma if settings.name == "focal" else 0.0
    if outputs != LABELS:
        weights = class_weights(labels, settings.weights).tolist()
        return ClassLoss(weights, gamma, settings.label_smoothing)
    positive, negative = label_weights(labels, settings.weights)
    return LabelLoss(
        positive_weight=positive.tolist(),
        negative_weight=negative.tolist(),
        gamma=gamma,
        label_smoothing=settings.label_smoothing,
    )
