"""Takes prepared cohorts; tests what paper 2 supposes of the order of slices, prints the figures.

Leal et al. (2021) shuffle every study's slices anew in every epoch, and suppose that this makes the
LSTM better; they leave the test to future work (section 2). Two questions, two tables.

1. Does shuffling help the LSTM? Each reader is trained in scan order and shuffled, with several
   seeds, and each model is asked about the held-out studies in scan order, backwards, and in random
   orders (the mean AUROC of `DRAWS`). `moved` is the mean change of a probability from scan order
   to a random one. The mean of the slices, which knows no order, stands beside it. The difference
   between the two trainings, both asked in scan order, has DeLong's interval on the probabilities
   averaged over the seeds.
2. Does order carry information? A logistic regression, cross-validated over patients, on
   `number of slices`; on `order alone`: the ranks of the slices' head area in scan order, in which
   all studies of one length are the same set, so that nothing but their order (and number) differs;
   and on `areas as a set`, the same measurement without its order. `order alone, disturbed` is the
   control that this would show: as if every second study without the finding began in mid-stack.

Where order alone finds the label, look at how the studies were numbered before believing it to be
anatomy: in photographs that someone numbered by hand, a class may begin in mid-stack.

The cohorts are those of `aggregators.py`. A finished run is not trained again.

    python benchmarks/slice_order.py --out DIR [--stroke-ct PREPARED] [--adrenal PREPARED]
        [--readers NAME ...] [--seeds N] [--epochs N] [--no-demo] [--quick]
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from aggregators import READERS, Cohort, cohorts, finished_run, make_demo, parsed, parser
from bench_features import machine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import make_folds
from medseq_tf.evaluation import cross_validation, metrics
from medseq_tf.evaluation.metrics.interval_text import with_interval
from medseq_tf.input import sampling
from medseq_tf.input.model_input import study_input
from medseq_tf.input.sampling import study_key
from medseq_tf.input.slice_store import SliceStore

if TYPE_CHECKING:
    from medseq_tf.runs.run import Run

DRAWS = 8
"""Random orders in which each study is asked about."""
PLACES = 10
"""Places along the stack at which ranks and areas are read."""
BRIGHT = 0.16
"""Share of the range of intensities above which a pixel is head."""
FOLDS = 5


# ------------------------------------------------------------------- 1: does shuffling help?


def answers(run: Run, prepared: Prepared, split: str) -> pd.DataFrame:
    """One row a held-out study: `label`, `patient`, `fold`, and the probability in each order."""
    rows = []
    for number, part in enumerate(run.folds or [run]):
        model, recipe = part.model(), part.experiment
        store = SliceStore(prepared, recipe)
        row_of = {name: row for row, name in enumerate(prepared.studies["study_id"])}
        for name in part.splits[split]:
            row = row_of[name]
            rows.append(
                {
                    "study": name,
                    "patient": prepared.studies["patient_id"].iat[row],
                    "label": prepared.labels[row, 0],
                    "fold": number,
                    **in_orders(model, recipe, store, row, study_key(name)),
                }
            )
    return pd.DataFrame(rows).sort_values("study", ignore_index=True)


def in_orders(
    model: Any, recipe: recipes.Experiment, store: SliceStore, row: int, key: int
) -> dict[str, float]:
    """A study's probability in scan order, backwards and in `DRAWS` random orders."""
    images = study_input(store, row, recipes.Augment(), np.zeros(2, np.int32))
    (shown,) = sampling.evaluation_sequences(len(images), recipe.sequence)
    images, count = images.numpy()[shown], len(shown)
    features = np.asarray(model.extract(images[None], np.array([count])))[0]
    rng = np.random.default_rng(key)
    orders = [np.arange(count), np.arange(count)[::-1]]
    orders += [rng.permutation(count) for _ in range(DRAWS)]
    lengths = np.full(len(orders), count, np.int32)
    logits = model({"features": features[np.stack(orders)], "lengths": lengths}, training=False)
    found = 1 / (1 + np.exp(-np.asarray(logits, float)[:, 0]))
    names = ["scan", "backwards", *(f"random_{i}" for i in range(DRAWS))]
    return dict(zip(names, found, strict=True))


def auroc(table: pd.DataFrame, column: str) -> metrics.Estimate:
    """AUROC of a column; the mean over the folds where there are several."""
    if table["fold"].nunique() == 1:
        return metrics.delong_interval(table["label"], table[column], table["patient"])
    return fold_auroc(held_out(table, column))


def held_out(table: pd.DataFrame, column: str) -> cross_validation.HeldOut:
    """A column as the held-out predictions of folds."""
    predictions = table.assign(truth=table["label"], probability=table[column], threshold=0.5)
    return cross_validation.held_out(predictions.assign(label="label"), ["label"])


def fold_auroc(predictions: cross_validation.HeldOut) -> metrics.Estimate:
    """The mean of the folds' AUROCs with its interval."""
    rows = cross_validation.evaluate_folds(predictions, resamples=1).set_index("metric")
    return metrics.Estimate(*rows.loc["auroc", ["value", "low", "high", "note"]])


def summary(table: pd.DataFrame) -> dict[str, float]:
    """AUROC by the order of asking, and how far a random order moves a probability."""
    random = [f"random_{i}" for i in range(DRAWS)]
    return {
        "scan": auroc(table, "scan").value,
        "backwards": auroc(table, "backwards").value,
        "random": float(np.mean([auroc(table, name).value for name in random])),
        "moved": float(table[random].sub(table["scan"], axis=0).abs().to_numpy().mean()),
    }


def shuffling(
    cohort: Cohort, readers: list[str], seeds: int, out: Path
) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Yields reader, order of training, `summary` by seed, and `answers` averaged over seeds."""
    prepared = Prepared.load(cohort.data)
    for reader in readers:
        for order in ("scan", "shuffled"):
            tables = []
            for seed in range(seeds):
                settings = [*READERS[reader], f"sequence.order={order}", f"seed={seed}"]
                folder = out / cohort.name / f"{reader}-{order}-seed{seed}"
                run = finished_run(cohort, settings, folder)
                tables.append(answers(run, prepared, "test"))
            mean = tables[0].assign(scan=np.mean([table["scan"] for table in tables], axis=0))
            yield reader, order, pd.DataFrame(map(summary, tables)), mean


def difference(scan: pd.DataFrame, shuffled: pd.DataFrame) -> str:
    """Shuffled minus scan training, both asked in scan order, in words."""
    if scan["fold"].nunique() == 1:
        both = (shuffled["scan"], scan["scan"])
        test = metrics.delong_test(scan["label"], *both, scan["patient"])
    else:
        recipes_compared = (held_out(table, "scan") for table in (shuffled, scan))
        differences = cross_validation.compare_folds(*recipes_compared, resamples=1)
        test = differences.set_index("metric").loc["auroc"]
    return f"{with_interval(test.difference, test.low, test.high, '+')}, p = {test.p:.2f}"


# -------------------------------------------------------------- 2: does order carry information?


def head_areas(store: SliceStore, row: int) -> np.ndarray:
    """The share of each slice, (slices,), that is brighter than the background."""
    count = int(store.prepared.studies["slices"].iat[row])
    low, high = store.intensity_ranges(row, np.arange(1))[0, 0, 0]
    images = store.slices(row, np.arange(count)).astype(np.float32)
    return ((images - low) / (high - low) > BRIGHT).mean(axis=(1, 2))


def ranks(areas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ranks in (0, 1) of a study's slices by area; ties, which have no order, are drawn."""
    order = np.lexsort((rng.random(len(areas)), areas))
    found = np.empty(len(areas))
    found[order] = (np.arange(len(areas)) + 0.5) / len(areas)
    return found


def along(values: np.ndarray) -> np.ndarray:
    """Values at `PLACES` evenly spaced places of a stack, and their largest jump."""
    places = np.linspace(0, len(values) - 1, PLACES)
    jumps = np.abs(np.diff(values)) if len(values) > 1 else np.zeros(1)
    return np.append(np.interp(places, np.arange(len(values)), values), jumps.max())


def descriptions(prepared: Prepared) -> dict[str, np.ndarray]:
    """What the logistic regressions see of each study, (studies, values), by its name."""
    windows = {"CT": [[40, 80]]}.get(prepared.info["modality"])
    recipe = recipes.Experiment(input={"size": min(64, prepared.info["size"]), "windows": windows})
    store = SliceStore(prepared, recipe)
    found: dict[str, list[np.ndarray]] = {
        name: []
        for name in ("number of slices", "order alone", "order alone, disturbed", "areas as a set")
    }
    for row, name in enumerate(prepared.studies["study_id"]):
        areas, rng = head_areas(store, row), np.random.default_rng(study_key(name))
        store.forget(row)
        found["number of slices"].append(np.log([len(areas)]))
        by_rank = ranks(areas, rng)
        found["order alone"].append(along(by_rank))
        if prepared.labels[row, 0] == 0 and row % 2:
            by_rank = np.roll(by_rank, int(rng.uniform(0.25, 0.75) * len(areas)))
        found["order alone, disturbed"].append(along(by_rank))
        found["areas as a set"].append(np.quantile(areas, np.linspace(0, 1, PLACES)))
    return {name: np.stack(values) for name, values in found.items()}


def cross_validated(prepared: Prepared, values: np.ndarray) -> metrics.Estimate:
    """AUROC of a logistic regression, the mean over patient-level folds."""
    labels = prepared.labels[:, 0]
    scores, fold_of = np.zeros(len(labels)), np.zeros(len(labels), int)
    split = recipes.Split(given=False)
    for number, rows in enumerate(make_folds(prepared.studies, FOLDS, split)):
        rest = np.concatenate([rows["train"], rows["validation"]])
        rest = rest[~np.isnan(labels[rest])]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        model.fit(values[rest], labels[rest])
        scores[rows["test"]] = model.predict_proba(values[rows["test"]])[:, 1]
        fold_of[rows["test"]] = number
    studies = prepared.studies[["study_id", "patient_id"]].set_axis(["study", "patient"], axis=1)
    return fold_auroc(held_out(studies.assign(label=labels, score=scores, fold=fold_of), "score"))


# ----------------------------------------------------------------------------------- the tables


def show_shuffling(cohort: Cohort, readers: list[str], seeds: int, out: Path) -> list[dict]:
    """Trains and prints the first table's lines of a cohort."""
    rows, asked = [], {}
    for reader, order, by_seed, mean in shuffling(cohort, readers, seeds, out):
        asked[reader, order] = mean
        spread = by_seed["scan"].std(ddof=0)
        value = by_seed.mean()
        print(
            f"{cohort.name:<11}{reader:<28}{order:<10}{value['scan']:>8.3f} ±{spread:<6.3f}"
            f"{value['backwards']:>10.3f}{value['random']:>9.3f}{value['moved']:>8.3f}",
            flush=True,
        )
        rows += by_seed.assign(cohort=cohort.name, reader=reader, trained=order).to_dict("records")
        if order == "shuffled":
            print(f"{'':<11}{reader:<28}shuffled - scan: "
                  f"{difference(asked[reader, 'scan'], mean)}", flush=True)  # fmt: skip
    return rows


def main() -> None:
    """Trains what is not trained yet and prints both tables."""
    options = parser(__doc__.partition("\n")[0])
    readers = ["lstm", "lstm, mean of states", "mean"]
    options.add_argument("--readers", nargs="+", choices=READERS, default=readers)
    options.add_argument("--seeds", type=int, default=3)
    given = parsed(options)
    print(machine())
    present = [cohort for cohort in cohorts(given) if not cohort.missing]
    for cohort in cohorts(given):
        if cohort.missing:
            print(f"{cohort.name}: left out: {cohort.missing}")
        elif cohort.name == "demo":
            make_demo(cohort.data, given.quick)

    print("\nDoes order carry information? Logistic regressions, AUROC over patient-level folds")
    rows = []
    for cohort in present:
        prepared = Prepared.load(cohort.data)
        for name, values in descriptions(prepared).items():
            found = cross_validated(prepared, values)
            print(f"{cohort.name:<11}{name:<24}{found.value:.3f}   "
                  f"{found.low:.3f} to {found.high:.3f}", flush=True)  # fmt: skip
            rows.append({"cohort": cohort.name, "seen": name, "auroc": found.value,
                         "low": found.low, "high": found.high})  # fmt: skip
    pd.DataFrame(rows).to_csv(given.out / "order_alone.csv", index=False)

    print(f"\nDoes shuffling help? AUROC, mean of {given.seeds} seeds (± their spread), by the "
          "order in which the model is asked")  # fmt: skip
    print(f"{'cohort':<11}{'reader':<28}{'trained':<10}{'scan':>8}{'':<8}{'backwards':>9}"
          f"{'random':>9}{'moved':>8}")  # fmt: skip
    rows = []
    for cohort in present:
        rows += show_shuffling(cohort, given.readers, given.seeds, given.out)
    pd.DataFrame(rows).to_csv(given.out / "slice_order.csv", index=False)


if __name__ == "__main__":
    main()
