"""Takes prepared cohorts; trains every reader of a sequence on each, prints what they reach.

The encoder, the slices, the split, the seed, the augmentation and the optimizer are the same for
all readers of a cohort; the 3-D network has no encoder. AUROC on held-out patients of every
training seed, their mean and standard deviation, trainable weights, and seconds of an epoch of
training (the median; the machine should do nothing else). The spread over seeds is that of training
on one split; what other patients would add is the interval of a single seed's AUROC.

- `demo`: a synthetic cohort of faint lesions, made here; held-out test patients.
- `stroke_ct`: `prepare image-folder` of the CT photographs; five patient-level folds.
- `adrenal3d`: `prepare volumes --axis sagittal --size 32` of AdrenalMNIST3D, all of its volumes; a
  quarter of them held out, which chose nothing.

A run that is finished is not trained again, one that was interrupted goes on.

    python benchmarks/aggregators.py --out DIR [--stroke-ct PREPARED] [--adrenal PREPARED]
        [--readers NAME ...] [--seeds N ...] [--epochs N] [--no-demo] [--quick]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from bench_features import machine

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import Diverged, InputError

if TYPE_CHECKING:
    from medseq_tf.runs.run import Run

WHOLE = (
    "sequence.policy=all",
    "sequence.length=40",
    "sequence.evaluation={policy: all, length: 40}",
    "fit.batch_size=8",
    "fit.patience=null",
)


def recurrent(cell: str, both_ways: bool, readout: str | None = None) -> tuple[str, ...]:
    """One layer of 64 units a direction, as paper 2's reader but for its size.

    Without `readout` it is read out by the last state of each direction.
    """
    readout = readout or ("concat" if both_ways else "last")
    return (
        f"model.aggregator.name={cell}",
        "model.aggregator.units=64",
        "model.aggregator.layers=1",
        "model.aggregator.dropout=0",
        f"model.aggregator.bidirectional={str(both_ways).lower()}",
        f"model.aggregator.readout={readout}",
    )


def named(name: str, *settings: str) -> tuple[str, ...]:
    """Another aggregator with its own defaults but for `settings`."""
    return (f"model.aggregator.name={name}", *(f"model.aggregator.{s}" for s in settings))


READERS = {
    "lstm": recurrent("lstm", False),
    "bi-lstm": recurrent("lstm", True),
    "gru": recurrent("gru", False),
    "bi-gru": recurrent("gru", True),
    "lstm, mean of states": recurrent("lstm", False, "mean"),
    "bi-lstm, mean of states": recurrent("lstm", True, "mean"),
    "bi-lstm, maximum of states": recurrent("lstm", True, "max"),
    "bi-gru, mean of states": recurrent("gru", True, "mean"),
    "attention": named("attention"),
    "transformer": named("transformer"),
    "transformer, positions": named("transformer", "positions=true"),
    "mean": named("mean"),
    "max": named("max"),
    "log_sum_exp": named("log_sum_exp"),
    "slice scores": named("slice_scores"),
    "slice scores, pooled loss": named("slice_scores", "target=study", "pooling=log_sum_exp"),
    "3-D CNN": ("model.encoder.name=pixels", *named("cnn_3d", "depth=24")),
}


class Cohort(NamedTuple):
    """A prepared data set and how readers are trained on it.

    Attributes:
        name: what it is called in the table.
        data: the folder of the prepared data set; None: it is made here.
        missing: why it is left out, where it is.
        preset: the recipe.
        overrides: of the recipe, for all readers.
        folds: of a cross-validation; None: one split.
    """

    name: str
    data: Path | None
    missing: str
    preset: str
    overrides: tuple[str, ...]
    folds: int | None = None


def cohorts(given: argparse.Namespace) -> list[Cohort]:
    """What the options ask for."""
    epochs = () if given.epochs is None else (f"fit.epochs={given.epochs}",)
    quick = ("fit.epochs=1",) if given.quick else ()
    small = (*quick, "input.size=32", "model.encoder.kernels=[5, 3, 3]") if given.quick else ()
    demo = ("split.test=0.35", "split.validation=0.15", "fit.epochs=20")
    return [
        Cohort(
            "demo",
            given.out / "demo_cohort",
            "--no-demo" if given.no_demo else "",
            "fsm_bilstm",
            (*WHOLE, *demo, *epochs, *small),
        ),
        Cohort(
            "stroke_ct",
            given.stroke_ct,
            "" if given.stroke_ct else "give --stroke-ct",
            "fsm_bilstm",
            (*WHOLE, "fit.epochs=25", *epochs, *small),
            folds=2 if given.quick else 5,
        ),
        Cohort(
            "adrenal3d",
            given.adrenal,
            "" if given.adrenal else "give --adrenal",
            "adrenal",
            (
                "split.given=false",
                "split.test=0.25",
                "split.validation=0.1",
                "fit.epochs=6",
                *epochs,
                *quick,
            ),
        ),
    ]


def make_demo(folder: Path, quick: bool = False) -> None:
    """Prepares the cohort of faint lesions, unless it is there."""
    if not folder.exists():
        size = {"patients": 40, "size": 32} if quick else {"patients": 360, "size": 64}
        prepare(
            "demo", out=folder, difficulty=0.45, contrast=0.7, workers=1, progress=False, **size
        )


def parser(description: str) -> argparse.ArgumentParser:
    """A parser of the options that benchmarks over these cohorts share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, required=True, help="folder of the runs and tables")
    made.add_argument("--stroke-ct", type=Path, help="prepared data set")
    made.add_argument("--adrenal", type=Path, help="prepared data set")
    made.add_argument("--no-demo", action="store_true")
    made.add_argument("--epochs", type=int, help="of every run; default: each cohort's own")
    made.add_argument("--quick", action="store_true", help="one epoch: does it run at all?")
    return made


def parsed(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given; quick runs have a folder of their own, which is made."""
    given = options.parse_args()
    if given.quick:
        given.out = given.out / "quick"
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def finished_run(cohort: Cohort, overrides: Sequence[str], folder: Path) -> Run:
    """Trains, goes on or finds finished; the run's own figures are those of its best epoch."""
    from medseq_tf.training.train import train

    overrides = [*cohort.overrides, *overrides]
    return train(
        recipes.load(cohort.preset, [s for s in overrides if fits(s, overrides)]),
        cohort.data,
        folder,
        folds=cohort.folds,
        resume=folder.exists(),
        track=False,
        verbose=False,
    )


def fits(setting: str, overrides: Sequence[str]) -> bool:
    """Whether a setting has a meaning: pixels have no convolutions."""
    is_convolution = setting.startswith("model.encoder.") and "encoder.name" not in setting
    return not (is_convolution and "model.encoder.name=pixels" in overrides)


def trainable_weights(run: Run) -> int:
    """Number of trainable weights of a run's model."""
    model = (run.folds or [run])[0].model()
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def result(runs: Sequence[Run]) -> dict[str, Any]:
    """A line of the table, from the runs of all seeds."""
    rows = [run.metrics.query("metric == 'auroc' and split == 'test'").iloc[0] for run in runs]
    seconds = [part.history["seconds"] for run in runs for part in run.folds or [run]]
    values = [float(row["value"]) for row in rows]
    return {
        "weights": trainable_weights(runs[0]),
        "seconds": float(np.median(np.concatenate(seconds))),
        "auroc": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        "seeds": values,
        "low": rows[0]["low"],
        "high": rows[0]["high"],
    }


LINE = "{cohort:<11}{reader:<28}{weights:>10}{seconds:>12}   {auroc:<16}{interval}"


def show(cohort: str, reader: str, found: dict[str, Any]) -> None:
    """Prints a line of the table."""
    if "problem" in found:
        print(f"{cohort:<11}{reader:<28}{found['problem']}", flush=True)
        return
    line = LINE.format(
        cohort=cohort,
        reader=reader,
        weights=f"{found['weights']:,}",
        seconds=f"{found['seconds']:.2f}",
        auroc=f"{found['auroc']:.3f} ({found['sd']:.3f})",
        interval="-" if np.isnan(found["low"]) else f"{found['low']:.3f} to {found['high']:.3f}",
    )
    print(line, flush=True)


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    given = parsed(options)
    print(machine())
    print(
        LINE.format(
            cohort="cohort",
            reader="reader",
            weights="weights",
            seconds="s an epoch",
            auroc="AUROC (sd)",
            interval=f"95% interval of seed {given.seeds[0]} alone",
        )
    )
    rows = []
    for cohort in cohorts(given):
        if cohort.missing:
            print(f"{cohort.name:<11}left out: {cohort.missing}")
            continue
        if cohort.name == "demo":
            make_demo(cohort.data, given.quick)
        for reader in given.readers:
            name = reader.replace(",", "").replace(" ", "_")
            try:
                runs = [
                    finished_run(
                        cohort,
                        [*READERS[reader], f"seed={seed}"],
                        given.out / cohort.name / f"{name}-seed{seed}",
                    )
                    for seed in given.seeds
                ]
                found = result(runs)
            except (Diverged, InputError) as error:
                found = {"problem": str(error)}
            show(cohort.name, reader, found)
            rows.append({"cohort": cohort.name, "reader": reader, **found})
            pd.DataFrame(rows).to_csv(given.out / "aggregators.csv", index=False)


if __name__ == "__main__":
    main()
