"""What each covariate of a study adds to the log-odds of a model's prediction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.evaluation.metrics import logits

COLUMNS = ("label", "covariate", "value", "log_odds")


def covariate_effects(study: ShownStudy, labels: Mapping[str, int]) -> pd.DataFrame:
    """Return by how much the log-odds of labels rise where the model is told a covariate.

    It is the difference to the same study with this covariate missing and all else as it is.

    Args:
        study: as its model sees it.
        labels: their numbers, by name.

    Returns:
        One row a label and covariate: `label`, `covariate`, `value` in words, `log_odds`. None of a
        model without covariates.
    """
    layer, rows = study.model.covariates, []
    if layer is None:
        return pd.DataFrame(columns=list(COLUMNS))
    (values,) = study.told["covariates"]
    whole = logits(study.probabilities())
    for place, (name, categories) in enumerate(zip(layer.names, layer.categories, strict=True)):
        without = values.copy()
        without[place] = np.nan
        told = {**study.told, "covariates": without[None]}
        known = whole - logits(study.probabilities_of(study.sequences, told).mean(axis=0))
        words = "missing" if np.isnan(values[place]) else f"{values[place]:g}"
        if categories and words != "missing":
            words = categories[int(values[place])]
        rows += [(label, name, words, float(known[number])) for label, number in labels.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))
