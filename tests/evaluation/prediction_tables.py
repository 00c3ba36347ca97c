"""Tables of predictions of made-up studies, one a patient, with one label."""

from __future__ import annotations

import numpy as np
import pandas as pd


def prediction_table(truth, probability, fold=None, threshold=0.5):
    count = len(truth)
    table = pd.DataFrame(
        {
            "study": [f"s{i}" for i in range(count)],
            "patient": [f"p{i}" for i in range(count)],
            "slices": 3,
            "split": "test",
            "label": "lesion",
            "truth": np.asarray(truth, float),
            "probability": probability,
            "threshold": threshold,
        }
    )
    return table if fold is None else table.assign(fold=fold)


def two_splits(rng, count=120, sharpness=2.5):
    """Overconfident predictions of validation and test studies."""
    truth = rng.integers(0, 2, count)
    logit = sharpness * rng.normal(0.8 * (2 * truth - 1), 1)
    table = prediction_table(truth, 1 / (1 + np.exp(-logit)), threshold=0.4)
    table["split"] = np.where(np.arange(count) < count // 2, "validation", "test")
    table["positive"] = table["probability"] >= table["threshold"]
    return table
