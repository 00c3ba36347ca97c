"""Tables of predictions of classes of made-up studies, two a patient."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medseq_tf.readers.classes import Classes


def class_predictions(
    classes: Classes,
    count: int = 60,
    seed: int = 0,
    sharpness: float = 2.0,
    folds: int = 0,
    repeats: int = 1,
    absent: str | None = None,
    unknown: int = 0,
    truth_seed: int = 0,
) -> pd.DataFrame:
    """Predictions as a run keeps them, of as many studies of each class, but for one `absent`.

    The class of the first `unknown` studies is not known. Other seeds are other models of the same
    studies; `truth_seed` are other studies.
    """
    rng = np.random.default_rng(seed)
    present = [i for i, name in enumerate(classes.names) if name != absent]
    true = np.random.default_rng(truth_seed).permutation(np.resize(present, count))
    tables = []
    for repeat in range(1, repeats + 1):
        logits = rng.normal(0, 1, (count, len(classes.names)))
        logits[np.arange(count), true] += sharpness
        probabilities, calibrated = (
            np.exp(logits / t) / np.exp(logits / t).sum(axis=1, keepdims=True) for t in (1.0, 1.5)
        )
        patients = np.arange(count) // 2
        for number, name in enumerate(classes.names):
            truth = (true == number).astype(float)
            truth[:unknown] = np.nan
            table = pd.DataFrame(
                {
                    "study": [f"{i:016x}" for i in range(count)],
                    "patient": [f"{i:016x}" for i in patients],
                    "slices": 10 + np.arange(count) % 20,
                    "split": "test",
                    "label": name,
                    "truth": truth,
                    "probability": probabilities[:, number],
                    "calibrated": calibrated[:, number],
                    "threshold": np.nan,
                    "positive": probabilities.argmax(axis=1) == number,
                }
            )
            if folds:
                fold = (repeat - 1) * folds + patients % folds + 1
                table = table.assign(fold=fold, repeat=repeat)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)
