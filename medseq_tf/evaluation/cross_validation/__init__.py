"""What a cross-validated recipe can do, from its folds' held-out predictions, with intervals.

A cross-validated figure answers another question than one of a fitted model: what the recipe would
do if it were trained anew, on another cohort of this size (`RECIPE`). A fold is one model and the
studies that it was not trained on. Repeats divide the patients into folds anew: a study stands once
a repeat. What ranks studies is the mean over the folds, because probabilities of two models do not
rank each other's studies; what scores calls and probabilities one by one is over all studies at
once, each called at its own fold's threshold. Where each fold is a site that was left out, the mean
is over sites, whatever their size, and says nothing of others (`SITES`).
"""

from medseq_tf.evaluation.cross_validation.class_folds import (
    ClassFolds,
    compare_class_folds,
    confusion_of_folds,
    evaluate_class_folds,
)
from medseq_tf.evaluation.cross_validation.fold_metrics import mean_auroc
from medseq_tf.evaluation.cross_validation.predictions import HeldOut, LabelFolds, held_out
from medseq_tf.evaluation.cross_validation.tables import (
    FITTED,
    METHOD,
    RECIPE,
    auroc_difference,
    auroc_estimate,
    compare_folds,
    evaluate_folds,
    question,
)
from medseq_tf.evaluation.cross_validation.variance import INFLATION, interval

__all__ = [
    "FITTED",
    "INFLATION",
    "METHOD",
    "RECIPE",
    "ClassFolds",
    "HeldOut",
    "LabelFolds",
    "auroc_difference",
    "auroc_estimate",
    "compare_class_folds",
    "compare_folds",
    "confusion_of_folds",
    "evaluate_class_folds",
    "evaluate_folds",
    "held_out",
    "interval",
    "mean_auroc",
    "question",
]
