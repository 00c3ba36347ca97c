"""What is computed of the validation studies after every epoch."""

from __future__ import annotations

import numpy as np

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.scoring import point_metrics
from medseq_tf.models import losses


def epoch_metrics(
    labels: np.ndarray, probabilities: np.ndarray, loss: losses.LabelLoss | losses.PixelLoss
) -> dict[str, float]:
    """Return the loss and, by label and as their mean, the metrics at a threshold of 0.5.

    Args:
        labels: `(studies, labels)`, NaN where unknown.
        probabilities: `(studies, labels)`, NaN for a study that was left out.
        loss: the training loss; that of pixels says nothing of probabilities.
    """
    kept = ~np.isnan(probabilities).any(1)
    if isinstance(loss, losses.PixelLoss):
        return point_metrics(labels[kept], probabilities[kept])
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    logits = np.log(clipped) - np.log1p(-clipped)
    elements, known = loss.elementwise(labels[kept], logits[kept])
    count = float(np.sum(known))
    values = {"loss": float(np.sum(elements)) / count if count else float("nan")}
    return values | point_metrics(labels[kept], probabilities[kept])


def pixel_means(counts: np.ndarray) -> dict[str, float]:
    """Return a segmenter's metrics of lesion pixels, as means over studies, of their counts."""
    values = metrics.pixel_metrics(*counts.T)
    return {name: float(values[name]) for name in metrics.PIXEL_METRICS}
