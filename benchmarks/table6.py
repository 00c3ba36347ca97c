"""Takes a cohort with lesion masks; prints paper 1's table 6 for models that saw the same patients.

The sequence model (`fsm_bilstm`) and the segmenters X-Net, U-Net and D-UNet are trained on the same
patients, choose their epoch and threshold on the same validation patients and answer for the same
test patients, as table 6 could not. Segmenters are scored by pixel, as in their papers, as means
over the studies with a lesion; all four as detectors, a segmenter's answer being the lesion area
that it predicts; with 95% intervals over patients. The last table sets each segmenter against the
sequence model: AUROC, DeLong's paired test.

Without `--atlas` the cohort is synthetic, written in the layout of ATLAS R2.0: whole scans, half of
them without a lesion. Every subject of the true ATLAS has one, so there each gives two stacks of
neighbouring axial slices, with a lesion on each and on none of them (paper 1's protocol, but
neighbours, as D-UNet needs), and the patient owns both.

    python benchmarks/table6.py [--atlas FOLDER] [--quick] [--folds K] [--patients N]
        [--difficulty X] [--contrast X] [--size PIXELS] [--epochs N] [--width FILTERS]
        [--slices N] [--seed N] [--out FOLDER] [--resume]
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pandas as pd

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import make_folds, make_holdout
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_atlas

MODELS = ("fsm_bilstm", "xnet", "unet", "dunet")
LENGTH = 15
PAPER = {
    "fsm_bilstm": "recall 0.75, precision 0.53 of sequences, 1.9M",
    "xnet": "Dice 0.487, IoU 0.372, recall 0.48, precision 0.60 of pixels, 15.1M",
    "unet": "Dice 0.46, recall 0.44, precision 0.60 of pixels, 34.5M",
    "dunet": "Dice 0.535, recall 0.52, precision 0.63 of pixels, 8.6M",
}
PIXELS = ("dice", "iou", "pixel_recall", "pixel_precision", "dice_pooled")
STUDIES = ("auroc", "recall", "precision", "specificity", "accuracy")


def main() -> None:
    """Prints the tables."""
    options = _options()
    with _folder(options.out) as folder:
        prepared = _prepared(folder, options)
        _describe(prepared, options)
        candidates = {name: _recipe(name, options) for name in MODELS}
        split = recipes.Split(seed=options.seed, given=False)
        if options.folds:
            splits = make_folds(prepared.studies, options.folds, split)
        else:
            splits = make_holdout(prepared.studies, split)
        rows, runs = [], []
        for name, recipe in candidates.items():
            run, row = _trained(recipe, prepared, splits, folder / name, options.resume)
            runs.append(run)
            rows.append(row)
            print(f"{name}: {row['train']:.0f} s", flush=True)
        _print_tables(pd.DataFrame(rows).set_index("model"), runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--atlas", type=Path, help="a download of ATLAS R1.2 or R2.0")
    parser.add_argument("--quick", action="store_true", help="a few minutes on two cores")
    parser.add_argument("--folds", type=int, help="cross-validate; default: one split")
    parser.add_argument(
        "--patients", type=int, help="of the synthetic cohort; default 200, quick 60"
    )
    parser.add_argument("--difficulty", type=float, default=0.6, help="of the synthetic cohort")
    parser.add_argument("--contrast", type=float, default=1.0, help="of its lesions, times theirs")
    parser.add_argument("--size", type=int, help="side of a slice; default 64, ATLAS 192")
    parser.add_argument("--epochs", type=int, help="default: the presets'")
    parser.add_argument("--width", type=int, help="a segmenter's first filters; default: published")
    parser.add_argument("--slices", type=int, help="drawn of a study and epoch; default: presets'")
    parser.add_argument("--seed", type=int, default=0, help="of cohort, splits and weights")
    parser.add_argument("--out", type=Path, help="keep data and runs here")
    parser.add_argument("--resume", action="store_true", help="go on in --out")
    options = parser.parse_args()
    if options.quick:
        options.patients = options.patients or 60
        options.size, options.epochs = options.size or 32, options.epochs or 12
        options.width, options.slices = options.width or 8, options.slices or 8
    options.patients = options.patients or 200
    options.size = options.size or (192 if options.atlas else 64)
    return options


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _prepared(folder: Path, options: argparse.Namespace) -> Prepared:
    place = folder / "prepared"
    if (place / "dataset.json").is_file():
        return Prepared.load(place)
    if options.atlas:
        stacks = {"sequences": 2, "length": LENGTH, "neighbours": True, "seed": options.seed}
        return prepare("atlas", options.atlas, out=place, size=options.size, **stacks)
    source = folder / "atlas"
    if not source.exists():
        demo = DemoCohort(
            patients=options.patients,
            seed=options.seed,
            size=options.size,
            difficulty=options.difficulty,
            contrast=options.contrast,
        )
        write_atlas(demo, source)
    whole = {"whole": True, "extent": (0.0, 1.0)}
    return prepare("atlas", source, out=place, size=options.size, **whole)


def _recipe(name: str, options: argparse.Namespace) -> recipes.Experiment:
    settings = [f"input.size={options.size}", f"seed={options.seed}"]
    if options.epochs:
        settings += [f"fit.epochs={options.epochs}", "fit.patience=null"]
    if name == "fsm_bilstm":
        return recipes.load(name, settings + _smaller_kernels(options.size))
    if options.width:
        settings.append(f"model.encoder.width={options.width}")
    if options.slices:
        settings.append(f"sequence.per_study={options.slices}")
    if options.quick:
        settings += ["fit.batch_size=4", "optimizer.learning_rate=3e-3"]
    return recipes.load(name, settings)


def _smaller_kernels(size: int) -> list[str]:
    """The preset's kernels are for 64 pixels and more."""
    if size >= 64:
        return []
    return ["model.encoder.kernels=[5, 5, 3]", "model.encoder.paddings=[2, 1, 0]"]


def _trained(
    recipe: recipes.Experiment, prepared: Prepared, splits: Any, folder: Path, resume: bool
) -> tuple[Any, dict[str, Any]]:
    from medseq_tf.training.train import train

    resume = resume and (folder / "run.json").is_file()
    started = time.perf_counter()
    run = train(recipe, prepared, folder, splits=splits, resume=resume, track=False, verbose=False)
    row = {"model": recipe.name, "train": time.perf_counter() - started}
    part = (run.folds or [run])[0]
    model, history = part.model(), part.history
    row["weights"] = model.count_params()
    row["epochs"], row["epoch"] = len(history), history["seconds"].median()
    table = run.metrics[run.metrics["split"] == "test"].set_index("metric")
    for metric in (*PIXELS, *STUDIES):
        if metric in table.index:
            found = table.loc[metric]
            row[metric] = (found["value"], found["low"], found["high"])
    return run, row


def _describe(prepared: Prepared, options: argparse.Namespace) -> None:
    import keras
    import tensorflow as tf

    counts = prepared.info["counts"]
    labels = counts["labels"]["lesion"]
    source = f"ATLAS at {options.atlas.name}" if options.atlas else "synthetic ATLAS-layout cohort"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"TensorFlow {tf.__version__}, Keras {keras.__version__}")  # fmt: skip
    print(
        f"{source}: {counts['patients']} patients, {counts['studies']} studies "
        f"({labels['positive']} with a lesion), {counts['slices']} slices of {options.size} pixels"
    )


def _print_tables(table: pd.DataFrame, runs: list[Any]) -> None:
    from medseq_tf.evaluation.comparison import compare

    print("\npixels, means over test studies with a lesion (dice_pooled: over all pixels)")
    _print_part(table, PIXELS)
    print("\nstudies, called at the threshold chosen on validation")
    _print_part(table, STUDIES)
    print(f"\n{'model':<12}{'weights':>12}{'epochs':>8}{'s an epoch':>12}{'s in all':>10}")
    for name, row in table.iterrows():
        print(
            f"{name:<12}{row['weights']:>12,}{row['epochs']:>8}{row['epoch']:>12.1f}"
            f"{row['train']:>10.0f}"
        )
    print("\npublished, of other patients and by other measures")
    for name, said in PAPER.items():
        print(f"{name:<12}{said}")
    print("\ndifference of AUROC on the same test patients")
    found = compare(runs).differences
    found = found[(found["metric"] == "auroc") & (found["model"] == MODELS[0])]
    for row in found.itertuples():
        interval = "" if pd.isna(row.low) else f" ({row.low:+.3f} to {row.high:+.3f})"
        p = "" if pd.isna(row.p) else f", p = {row.p:.3f}" if row.p >= 0.001 else ", p < 0.001"
        print(f"{row.model} - {row.other:<8}{row.difference:+.3f}{interval}{p} {row.note}")


def _print_part(table: pd.DataFrame, metrics: tuple[str, ...]) -> None:
    print(f"{'model':<12}" + "".join(f"{metric:<22}" for metric in metrics))
    for name, row in table.iterrows():
        cells = (_cell(row[metric]) if metric in row else "-" for metric in metrics)
        print(f"{name:<12}" + "".join(f"{cell:<22}" for cell in cells))


def _cell(found: Any) -> str:
    if not isinstance(found, tuple) or pd.isna(found[0]):
        return "-"
    value, low, high = found
    return f"{value:.3f}" + ("" if pd.isna(low) else f" ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
