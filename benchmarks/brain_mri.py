"""Takes J. Cheng's brain tumours (figshare 1512427), by person; prints what three recipes reach.

Meningioma, glioma or pituitary tumour: one of three, of persons with 1 to 97 slices. Each recipe is
trained in repeated folds of persons, once on all of them and once without those of source B, who
all have a glioma, so that a model may tell the scanner. The figures are of the persons that each
model has not seen; the intervals are of the recipe, trained anew on another cohort of this size.

    python benchmarks/brain_mri.py IMAGES DIAGNOSIS.csv GROUPS.csv --weights VGG16.h5
        [--repeats N] [--folds K] [--recipes NAME,NAME] [--out FOLDER]

`IMAGES` has a folder a person; the tables have a column `patient_id`, and `diagnosis` or `source`.
The same command again goes on with what is there.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pandas as pd

import medseq_tf
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation.metrics.interval_text import with_interval
from medseq_tf.evaluation.scoring import confusion_table
from medseq_tf.recipe import Experiment
from medseq_tf.recipe.loading import from_values
from medseq_tf.runs.run import Run

SHOWN = (
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "auroc_pairwise",
    "f1_macro",
    "kappa",
    "log_loss",
)

FROZEN = {
    "input": {"size": 224, "mean": 0.0, "std": 1.0},
    "sequence": {"policy": "all", "length": 100, "evaluation": {"policy": "all"}},
    "optimizer": {"name": "adam", "learning_rate": 1e-3},
}
BI_LSTM = {"name": "lstm", "units": 64, "layers": 1, "readout": "mean", "dropout": 0.0}


def recipes_of(weights: Path) -> dict[str, Any]:
    """Return the recipes by name: from scratch, and two on a frozen network's features."""
    encoder = {"name": "keras_application", "network": "VGG16", "weights": str(weights)}
    linear = {"units": [], "dropout": 0.0}

    def frozen(aggregator: dict[str, Any], epochs: int, patience: int) -> Experiment:
        model = {"encoder": encoder, "aggregator": aggregator, "head": linear}
        fit = {"epochs": epochs, "patience": patience, "batch_size": 8}
        return from_values({**FROZEN, "model": model, "fit": fit})

    return {
        "fsm_bilstm": "fsm_bilstm",
        "frozen_bilstm": frozen(BI_LSTM, epochs=30, patience=8),
        "frozen_mean_linear": frozen({"name": "mean"}, epochs=150, patience=30),
    }


def main() -> None:
    """Print a table for each cohort, and the confusion matrix of each recipe."""
    options = _options()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    recipes = recipes_of(options.weights.resolve())
    for cohort, without in (("all persons", None), ("without source B", "B")):
        tables = {}
        for name in options.recipes.split(",") if options.recipes else recipes:
            size = 64 if name == "fsm_bilstm" else 224
            prepared = _prepared(options, size, without)
            started = time.monotonic()
            run = medseq_tf.train(
                recipes[name],
                data=prepared,
                out=options.out / f"{name}-{without or 'all'}",
                folds=options.folds,
                repeats=options.repeats,
                features=options.out / "features",
                resume=True,
                track=False,
            )
            minutes = (time.monotonic() - started) / 60
            print(f"{cohort}, {name}: {minutes:.1f} minutes", flush=True)
            tables[name] = _figures(run)
            print(_confusion(run), flush=True)
        counts = prepared.info["counts"]
        print(
            f"\n{cohort}: {counts['patients']} persons, {options.repeats} x {options.folds} folds"
        )
        print(pd.DataFrame(tables).to_string())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("images", "diagnosis", "groups"):
        parser.add_argument(name, type=Path)
    parser.add_argument(
        "--weights", type=Path, required=True, help="VGG16's, in Keras's notop file"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--recipes", help="some of them, by commas; default: all")
    parser.add_argument("--out", type=Path, default=Path("brain_mri"))
    return parser.parse_args()


def _prepared(options: argparse.Namespace, size: int, without: str | None) -> Prepared:
    """Return the persons at a size, once prepared, perhaps without those of one source."""
    out = options.out / f"data-{size}-{without or 'all'}"
    if out.exists():
        return Prepared.load(out)
    table, groups = pd.read_csv(options.diagnosis), pd.read_csv(options.groups)
    table = table.merge(groups, on="patient_id")
    options.out.mkdir(parents=True, exist_ok=True)
    labels = options.out / f"table-{without or 'all'}.csv"
    table[table["source"] != without].to_csv(labels, index=False)
    return medseq_tf.prepare(
        "image-folder",
        options.images,
        labels=labels,
        classes="diagnosis",
        site="source",
        site_names="keep",
        size=size,
        out=out,
    )


def _figures(run: Run) -> dict[str, str]:
    table = run.metrics
    rows = table[(table["split"] == "test") & (table["label"] == "diagnosis")].set_index("metric")
    return {
        name: with_interval(*rows.loc[name, ["value", "low", "high"]])
        for name in SHOWN
        if name in rows.index
    }


def _confusion(run: Run) -> str:
    """Return the mean confusion matrix of a repeat, as counts and shares of each row."""
    cells = confusion_table(run.predictions[run.predictions["split"] == "test"], run.classes)
    cells["cell"] = [
        f"{count:.1f} ({share:.0%})"
        for count, share in zip(cells["count"], cells["share"], strict=True)
    ]
    names = list(run.classes.names)
    matrix = cells.pivot(index="true", columns="called", values="cell").loc[names, names]
    return matrix.rename_axis("true \\ called").rename_axis(columns=None).to_string()


if __name__ == "__main__":
    main()
