"""Takes pictures in a folder a series of each patient; prints whether a mark of the series helps.

The slices of a patient's series follow one another. Each recipe is trained in repeated folds of
patients, with and without `model.series_mark`, from the same weights; the last column is the
difference, paired by patient.

    python benchmarks/series_mark.py IMAGES TABLE.csv CLASSES_COLUMN SERIES,SERIES,...
        [--weights VGG16.h5] [--repeats N] [--folds K] [--out FOLDER]

For J. Cheng's brain tumours (figshare 1512427) the planes, axial, coronal and sagittal, have to be
told apart first: the pictures' names do not say.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pandas as pd
from brain_mri import recipes_of

import medseq_tf
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation.comparison import compare
from medseq_tf.evaluation.metrics.interval_text import with_interval
from medseq_tf.runs.run import Run

SHOWN = ("accuracy", "auroc", "log_loss")


def main() -> None:
    """Print a table for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("classes")
    parser.add_argument("series")
    parser.add_argument("--weights", type=Path, help="VGG16's, for a frozen network beside")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("series_mark"))
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    candidates = {"fsm_bilstm": recipes.load("fsm_bilstm")}
    if options.weights:
        candidates["frozen_bilstm"] = recipes_of(options.weights.resolve())["frozen_bilstm"]
    for name, recipe in candidates.items():
        prepared = _prepared(options, recipe.input.size)
        runs = {
            mark: medseq_tf.train(
                recipe,
                data=prepared,
                out=options.out / f"{name}-{'mark' if mark else 'plain'}",
                overrides=[f"model.series_mark={str(mark).lower()}"],
                folds=options.folds,
                repeats=options.repeats,
                features=options.out / "features",
                resume=True,
                track=False,
            )
            for mark in (False, True)
        }
        print(f"\n{name}, {options.repeats} x {options.folds} folds")
        print(_table(runs).to_string(), flush=True)


def _prepared(options: argparse.Namespace, size: int) -> Prepared:
    out = options.out / f"data-{size}"
    if out.exists():
        return Prepared.load(out)
    options.out.mkdir(parents=True, exist_ok=True)
    return medseq_tf.prepare(
        "image-folder",
        options.images,
        labels=options.table,
        classes=options.classes,
        series_as="sequence",
        series=options.series,
        size=size,
        out=out,
    )


def _table(runs: dict[bool, Run]) -> pd.DataFrame:
    """Return what both runs reach, and the difference, as `value (low to high)`."""
    compared = compare([runs[False].path, runs[True].path])
    both, differences = compared.table, compared.differences
    column = runs[True].classes.column
    rows = {}
    for metric in SHOWN:
        of_metric = both[(both["metric"] == metric) & (both["label"] == column)]
        values = [_shown(row) for row in of_metric.to_dict("records")]
        difference = differences[
            (differences["metric"] == metric) & (differences["label"] == column)
        ]
        rows[metric] = [*values, *map(_shown, difference.to_dict("records"))]
    return pd.DataFrame.from_dict(rows, "index", columns=["plain", "mark", "plain less mark"])


def _shown(row: dict) -> str:
    value = row.get("difference", row.get("value"))
    return with_interval(value, row["low"], row["high"])


if __name__ == "__main__":
    main()
