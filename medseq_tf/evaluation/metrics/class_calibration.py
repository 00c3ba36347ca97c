"""Calibration of classes that exclude each other, and their temperature.

Each class against the rest is a label with a probability, and so is whether the most probable class
is right, with the probability of that class: what `calibration` says of labels holds of them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.calibration import most_likely_temperature
from medseq_tf.evaluation.metrics.class_metrics import ClassPredictions
from medseq_tf.evaluation.metrics.label_estimates import CALIBRATION_MEASURES, measure_calibration
from medseq_tf.evaluation.metrics.point_metrics import Array, owners_of
from medseq_tf.readers.classes import Classes

LEAST_PROBABILITY = 1e-7
"""Of a logarithm: the precision of float32."""


def top_class(truth: Array, probabilities: Array) -> tuple[Array, Array]:
    """Whether each study's most probable class is right, and its probability.

    Args:
        truth: (studies, classes) one-hot, or nan for unknown.
        probabilities: (studies, classes).

    Returns:
        1.0, 0.0 or nan, and the probability, (studies,) each.
    """
    predictions, known = ClassPredictions.of(truth, probabilities)
    right = np.full(len(known), np.nan)
    right[known] = predictions.top[0]
    return right, np.asarray(probabilities, dtype=float).max(axis=1)


def class_calibration(
    truth: Array,
    probabilities: Array,
    classes: Classes,
    patients: Array | None = None,
    studies: Array | None = None,
) -> pd.DataFrame:
    """How well the probabilities of each class, and of the most probable one, are calibrated.

    The arguments are those of `evaluate_classes`; `studies` (studies,) are ids, where a study
    stands in several rows, as with repeated folds.

    Returns:
        One row a label and measure of `CALIBRATION_MEASURES`, the first label being the most
        probable class, under the name of the column: `label`, `metric`, `value`, `low` and `high`
        (95%, over patients), `null` and `null_high` (of the expected calibration error: median and
        95th percentile of right probabilities), `note`.
    """
    truth, probabilities = np.asarray(truth, dtype=float), np.asarray(probabilities, dtype=float)
    owners, ids = owners_of(patients, len(truth)), owners_of(studies, len(truth))
    binary = {classes.column: top_class(truth, probabilities)}
    of_classes = zip(classes.names, truth.T, probabilities.T, strict=True)
    binary |= {name: (labels, column) for name, labels, column in of_classes}
    return pd.DataFrame(
        [
            {"label": name, "metric": metric, **_calibration_row(metric, *columns, owners, ids)}
            for name, columns in binary.items()
            for metric in CALIBRATION_MEASURES
        ]
    )


def _calibration_row(
    metric: str, labels: Array, probabilities: Array, owners: Array, studies: Array
) -> dict[str, float | str]:
    """One measure of one label."""
    estimate, null = measure_calibration(metric, labels, probabilities, owners, studies)
    bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**bounds, "null": null[0], "null_high": null[1], "note": estimate.note}


def fit_class_temperature(truth: Array, probabilities: Array) -> float:
    """Fit the temperature T of softmax(log p / T) (Guo et al. 2017, section 4.2), by its posterior.

    As `fit_temperature` does for a label, which this is for two classes: the same prior, and 1
    where the data hardly speak against it. A T that makes the model surer is taken without that
    where each class is told apart from the rest without error.

    Args:
        truth: (studies, classes) one-hot, or nan for unknown; of validation.
        probabilities: (studies, classes).

    Raises:
        InputError: studies of fewer than two classes.
    """
    predictions, _ = ClassPredictions.of(truth, probabilities)
    one_hot, logarithms = predictions.one_hot, _logarithms(predictions.probabilities)
    if (one_hot.sum(axis=0) > 0).sum() < 2:
        raise InputError(
            f"no temperature can be fitted: {len(one_hot)} studies of one class or none; at least "
            "two classes are needed"
        )
    # What each class lies below the true one.
    margins = np.take_along_axis(logarithms, predictions.truth[:, None], 1) - logarithms

    def loss(inverse: Array) -> Array:
        return special.logsumexp(-margins * inverse[..., None, None], axis=-1).sum(axis=-1)

    columns = zip(one_hot.T == 1, predictions.probabilities.T, strict=True)
    apart = all(
        column[own].min(initial=np.inf) >= column[~own].max(initial=-np.inf)
        for own, column in columns
    )
    return most_likely_temperature(loss, apart)


def scale_classes(probabilities: Array, temperature: float) -> Array:
    """Scale probabilities (..., classes) by a temperature: softmax(log p / temperature).

    The order of a study's classes stays the same.
    """
    return special.softmax(_logarithms(probabilities) / temperature, axis=-1)


def _logarithms(probabilities: Array) -> Array:
    """Logarithms of probabilities, kept 1e-7 away from 0."""
    return np.log(np.clip(np.asarray(probabilities, dtype=float), LEAST_PROBABILITY, 1.0))
