"""What covariates alone reach: a logistic regression, tested on the patients of a run.

It reads all covariates of the data set, whether the run's model does or not, and sees no slice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from medseq_tf.dataset.covariate_values import covariate_values
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation.comparison import compare_tables
from medseq_tf.evaluation.predictions import choose_cuts, with_cuts
from medseq_tf.evaluation.scoring import selection_note
from medseq_tf.models import Covariates
from medseq_tf.runs.run import Run

STRENGTH = 1.0
"""C of the regression: it minimises C times the summed log loss plus half the squared weights."""
ALONE = "covariates alone"


def probabilities(prepared: Prepared, train: np.ndarray) -> np.ndarray:
    """Return what a regression that is fitted on the rows `train` predicts of all studies.

    Numbers are standardised on those rows, categories one-hot; what is missing is the mean, or no
    category, and marked by a column of its own. Classes are predicted by one regression, labels
    each by its own; where only one answer is known in `train`, that is predicted.

    Returns:
        `(studies, labels)`.
    """
    values = covariate_values(prepared, list(prepared.covariates))
    described = prepared.covariates.values()
    layer = Covariates(list(prepared.covariates), [one.get("categories") for one in described])
    layer.build(values.shape)
    layer.standardise(values[train])
    features = np.hstack([np.asarray(layer(values)), np.isnan(values)]).astype(np.float64)
    labels = prepared.labels
    if prepared.classes:
        known = train[~np.isnan(labels[train]).any(axis=1)]
        return _fitted(features, known, labels[known].argmax(axis=1), labels.shape[1])
    columns = []
    for label in labels.T:
        known = train[~np.isnan(label[train])]
        columns.append(_fitted(features, known, label[known].astype(int), 2)[:, 1])
    return np.stack(columns, axis=1)


def _fitted(features: np.ndarray, rows: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Return probabilities `(studies, count)` by what stands in the rows, from 0 to count - 1."""
    found = np.unique(target)
    predicted = np.zeros((len(features), count))
    if len(found) < 2:
        predicted[:, found] = 1.0
        return predicted
    regression = LogisticRegression(C=STRENGTH, max_iter=10_000)
    predicted[:, found] = regression.fit(features[rows], target).predict_proba(features)
    return predicted


def compare(
    run: Run, prepared: Prepared, predictions: pd.DataFrame, alone: pd.DataFrame
) -> dict[str, Any]:
    """Return what `metrics.json` keeps of covariates alone; nothing where nothing was tested.

    Args:
        run: the run.
        prepared: its data set.
        predictions: of the model, with those of validation.
        alone: of the covariates, the same studies.

    Returns:
        `covariates_alone`: metrics of the test studies, as the model's; `beyond_covariates`: the
        `names` of the covariates, the `differences`, the model minus them on the same studies, and
        `notes`.
    """
    tested = {}
    for name, table in ((run.name, predictions), (ALONE, alone)):
        if "fold" not in table and not prepared.classes:
            table = with_cuts(table, choose_cuts(table))
        tested[name] = table[table["split"] == "test"]
    if any(table.empty for table in tested.values()):
        return {}
    compared = compare_tables(tested, prepared.label_names, classes=prepared.classes)
    table = compared.table[compared.table["model"] == ALONE].drop(columns="model")
    table.insert(0, "split", "test")
    differences = compared.differences.drop(columns=["model", "other"])
    notes = [*compared.notes]
    if chosen := selection_note(run.experiment, tested[run.name], run.contents):
        differences = differences[:0]
        notes.append(chosen)
    return {
        "covariates_alone": table.to_dict(orient="records"),
        "beyond_covariates": {
            "names": list(prepared.covariates),
            "differences": differences.to_dict(orient="records"),
            "notes": notes,
        },
    }
