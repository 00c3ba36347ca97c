"""Tables of studies as a prepared data set has them, and what every split of them keeps to."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medseq_tf.dataset.splits import SPLITS
from medseq_tf.readers.classes import Classes

TUMOURS = Classes("diagnosis", ("glioma", "meningioma", "pituitary"))


def make_studies(labels, patients=None, hashes=None, split=None):
    """A table of studies: one patient each and no shared slice, unless said."""
    labels = np.asarray(labels, dtype=float)
    labels = labels[:, None] if labels.ndim == 1 else labels
    n = len(labels)
    table = {
        "study_id": [f"study{i:04d}" for i in range(n)],
        "patient_id": [f"patient{i:04d}" for i in (range(n) if patients is None else patients)],
        "slices": 2,
        "split": split,
        "slice_hashes": [[f"slice {i}", None] for i in range(n)] if hashes is None else hashes,
        "source": [f"source/{i}" for i in range(n)],
    }
    names = ["stroke"] if labels.shape[1] == 1 else [f"label{i}" for i in range(labels.shape[1])]
    return pd.DataFrame(table | {f"label.{name}": labels[:, i] for i, name in enumerate(names)})


def make_class_studies(
    called, patients=None, hashes=None, split=None, names=TUMOURS.names, **columns
):
    """A table of studies that have one class of several each; None: an unknown one."""
    one_hot = [
        [np.nan] * len(names) if name is None else [float(name == other) for other in names]
        for name in called
    ]
    studies = make_studies(np.reshape(one_hot, (-1, len(names))), patients, hashes, split)
    labels = [column for column in studies if column.startswith("label.")]
    named = dict(zip(labels, (f"label.{name}" for name in names), strict=True))
    return studies.rename(columns=named).assign(**columns)


def ids(studies, rows):
    return {name: set(studies["study_id"].iloc[part]) for name, part in rows.items()}


def assert_sound(studies, rows):
    """Every study is in one split, and no patient or slice is in two."""
    everything = np.concatenate([rows[name] for name in SPLITS])
    assert sorted(everything) == list(range(len(studies)))
    for column in (studies["patient_id"].map(lambda patient: [patient]), studies["slice_hashes"]):
        owners = {}
        for name, part in rows.items():
            for row in part:
                for value in column.iloc[row]:
                    assert value is None or owners.setdefault(value, name) == name
