"""Metrics of predictions, with intervals over patients.

In all functions `labels` (studies,) are 0, 1, or nan for unknown (left out), and `probabilities`
(studies,) those of the positive class. The unit of evaluation is the study. Where a patient has
several, `patients` (studies,) names the owner of each (None: each study has its own), and every
interval, of 95%, is over patients; `resamples` are the bootstrap's. `weights` (studies,) or
(resamples, studies) count how often each study stands in a sample; with a matrix of them a metric
is (resamples,), else (). What cannot be said is nan, and a note says why. Of classes that exclude
each other, `truth` (studies, classes) is one-hot, or a row of nan for unknown.
"""

from medseq_tf.evaluation.metrics.auc_intervals import delong_interval, delong_test
from medseq_tf.evaluation.metrics.calibration import (
    calibration_intercept,
    calibration_slope,
    expected_calibration_error,
    fit_temperature,
    logits,
    null_calibration_error,
    observed_expected,
    reliability_curve,
    scale,
)
from medseq_tf.evaluation.metrics.calls import call, read_costs
from medseq_tf.evaluation.metrics.catalogue import (
    CATALOGUE,
    METRICS,
    TRADE_OFFS,
    Metric,
    all_metrics,
)
from medseq_tf.evaluation.metrics.class_calibration import (
    class_calibration,
    fit_class_temperature,
    scale_classes,
    top_class,
)
from medseq_tf.evaluation.metrics.class_metrics import (
    CLASS_METRICS,
    ClassPredictions,
    class_metric_names,
    class_point_metrics,
)
from medseq_tf.evaluation.metrics.class_tables import (
    compare_classes,
    confusion_table,
    evaluate_classes,
)
from medseq_tf.evaluation.metrics.curves import (
    decision_curve,
    net_benefit,
    precision_recall_band,
    precision_recall_points,
    roc_band,
    roc_points,
)
from medseq_tf.evaluation.metrics.estimates import (
    DESCRIBED,
    FEW_PATIENTS,
    Estimate,
    holm,
    multiplicity,
)
from medseq_tf.evaluation.metrics.label_estimates import (
    CALIBRATION_MEASURES,
    brier_interval,
    measure_calibration,
)
from medseq_tf.evaluation.metrics.pixel_metrics import PIXEL_METRICS, evaluate_pixels, pixel_metrics
from medseq_tf.evaluation.metrics.point_metrics import (
    Confusion,
    auroc,
    average_precision,
    brier,
    choose_threshold,
    confusion,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from medseq_tf.evaluation.metrics.proportions import wilson_interval
from medseq_tf.evaluation.metrics.resampling import bootstrap
from medseq_tf.evaluation.metrics.tables import compare_predictions, evaluate_predictions

__all__ = [
    "CALIBRATION_MEASURES",
    "CATALOGUE",
    "CLASS_METRICS",
    "DESCRIBED",
    "FEW_PATIENTS",
    "METRICS",
    "PIXEL_METRICS",
    "TRADE_OFFS",
    "ClassPredictions",
    "Confusion",
    "Estimate",
    "Metric",
    "all_metrics",
    "auroc",
    "average_precision",
    "bootstrap",
    "brier",
    "brier_interval",
    "calibration_intercept",
    "calibration_slope",
    "call",
    "choose_threshold",
    "class_calibration",
    "class_metric_names",
    "class_point_metrics",
    "compare_classes",
    "compare_predictions",
    "confusion",
    "confusion_table",
    "decision_curve",
    "delong_interval",
    "delong_test",
    "evaluate_classes",
    "evaluate_pixels",
    "evaluate_predictions",
    "expected_calibration_error",
    "fit_class_temperature",
    "fit_temperature",
    "holm",
    "logits",
    "measure_calibration",
    "multiplicity",
    "net_benefit",
    "null_calibration_error",
    "observed_expected",
    "pixel_metrics",
    "precision_recall_band",
    "precision_recall_points",
    "read_costs",
    "reliability_curve",
    "roc_band",
    "roc_points",
    "scale",
    "scale_classes",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
    "top_class",
    "wilson_interval",
]
