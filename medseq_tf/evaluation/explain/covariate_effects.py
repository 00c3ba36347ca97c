"""What each covariate of a study adds to the log-odds of a model's prediction."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from medseq_tf.evaluation.explain.shown_members import ShownMembers
from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.evaluation.metrics import logits

COLUMNS = ("label", "covariate", "value", "log_odds")


def covariate_effects(study: ShownStudy | ShownMembers, labels: Mapping[str, int]) -> pd.DataFrame:
    """Return by how much the log-odds of labels rise where the model is told a covariate.

    It is the difference to the same study with this covariate missing and all else as it is.

    Args:
        study: as its model sees it, or its models do.
        labels: their numbers, by name.

    Returns:
        One row a label and covariate: `label`, `covariate`, `value` in words, `log_odds`. None of a
        model without covariates.
    """
    rows = []
    whole = logits(study.probabilities()) if study.covariates else None
    for name, words in study.covariates.items():
        known = whole - logits(study.probabilities_without(name))
        rows += [(label, name, words, float(known[number])) for label, number in labels.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))
