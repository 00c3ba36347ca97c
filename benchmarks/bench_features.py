"""Takes a synthetic cohort; prints what stored features of a frozen network save.

The preset `vgg19_lstm` with random weights and without augmentation, on studies of 23 slices of
224 x 224: one pass of VGG19 over all of them (19.6 GMAC a slice), set against the machine's own
float32 matrix product, which is measured again after every few studies; epochs on stored features,
with validation and checkpoints, against that pass; one epoch without stored features; and the peak
memory of the pass over one long study against one short one, each in a process of its own.

    python benchmarks/bench_features.py [--studies 60] [--epochs 120] [--no-cold] [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from side_by_side import Time, aim, machine, timed

if TYPE_CHECKING:
    from medseq_tf.dataset.prepared import Prepared
    from medseq_tf.recipe import Experiment
    from medseq_tf.training.loop import Fitter

SLICES = 23
FLOP_PER_SLICE = 2 * 19.6e9
TARGETS = {"epochs": 1.5, "cold": 100.0, "rate": 0.9, "memory": 1.1}
SETTINGS = (
    "model.encoder.weights=none",
    "augment.rotation=null",
    "augment.resized_crop=null",
    "split.test=0",
    "split.validation=0.2",
)


def cohort(folder: Path, studies: int, slices: int = SLICES) -> Prepared:
    """Prepares synthetic studies of so many slices of 224 x 224."""
    from medseq_tf.dataset.prepare import prepare
    from medseq_tf.phantom.cohort import DemoCohort
    from medseq_tf.phantom.writers import write_image_folder

    demo = DemoCohort(patients=studies, size=64, slices=(slices, slices))
    write_image_folder(demo, folder / "source", layout="patient")
    out = folder / "prepared"
    return prepare("image-folder", folder / "source", out=out, size=224, progress=False)


def recipe(*overrides: str) -> Experiment:
    """The preset, without its augmentation."""
    from medseq_tf import recipe as recipes

    return recipes.load("vgg19_lstm", [*SETTINGS, *overrides])


def fitter(prepared: Prepared, folder: Path, features: Path | None, *overrides: str) -> Fitter:
    """What trains on a cohort."""
    from medseq_tf.dataset.splits import make_holdout
    from medseq_tf.input.slice_store import SliceStore
    from medseq_tf.runs.tracking import Tracker
    from medseq_tf.training.loop import Fitter

    experiment = recipe(*overrides)
    split = make_holdout(prepared.studies, experiment.split)
    folder.mkdir()
    tracker = Tracker(folder, "bench", enabled=False)
    store = SliceStore(prepared, experiment)
    return Fitter(experiment, store, split, folder, tracker, verbose=False, features=features)


# ---------------------------------------------------------------------------------------- the pass


def matrix_product(side: int = 2048, repeats: int = 4) -> Time:
    """Seconds of one float32 product of two square matrices, divided by its operations."""
    import tensorflow as tf

    first, second = tf.random.uniform((side, side)), tf.random.uniform((side, side))
    tf.matmul(first, second).numpy()
    _, took = timed(lambda: [tf.matmul(first, second) for _ in range(repeats)][-1].numpy())
    return Time(*(seconds / (repeats * 2 * side**3) for seconds in took))


def backbone_pass(fit: Fitter, prepared: Prepared) -> tuple[Time, Time]:
    """One pass over all studies; gives how long it took and its share of the machine's rate."""
    fit.features._compute(np.zeros((SLICES, 224, 224, 1), np.float32))  # traced once
    clock, processor, shares = 0.0, 0.0, []
    for start in range(0, len(prepared), 5):
        rows = range(start, min(start + 5, len(prepared)))
        before = matrix_product()
        _, took = timed(lambda rows=rows: fit.features.prepare((row, None) for row in rows))
        after = matrix_product()
        work = len(rows) * SLICES * FLOP_PER_SLICE
        shares.append(
            [
                work * statistics.mean(pair) / seconds
                for pair, seconds in zip(zip(before, after, strict=True), took, strict=True)
            ]
        )
        clock, processor = clock + took.clock, processor + took.processor
    return Time(clock, processor), Time(*np.median(shares, axis=0))


# ------------------------------------------------------------------------------------ the epochs


def warm_epochs(fit: Fitter) -> tuple[Time, Time]:
    """Trains on features that are there; gives one epoch's time and that of all else together.

    An epoch includes validation and checkpoints; all else is reading the features, tracing, and
    writing the whole model.
    """
    run_epoch, epochs = fit._run_epoch, []

    def run_timed(interrupted: list[bool]) -> None:
        epochs.append(timed(lambda: run_epoch(interrupted))[1])

    fit._run_epoch = run_timed
    _, whole = timed(fit.run)
    assert fit.features.computed == 0
    each = Time(*np.median(epochs, axis=0))
    return each, Time(*(w - len(epochs) * e for w, e in zip(whole, each, strict=True)))


# --------------------------------------------------------------------------------------- memory


MEMORY_RUN = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import bench_features as bench
from side_by_side import status
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    prepared = bench.cohort(folder, 12, int(sys.argv[2]))
    fit = bench.fitter(prepared, folder / "run", None)
    fit.features.of(0)  # what TensorFlow sets aside for good
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    fit.features.of(1)
    print(before, status("VmHWM"))
"""


def peak_memory(slices: int) -> tuple[float, float]:
    """MiB before and at the peak of one study's pass, in a process of its own."""
    words = [sys.executable, "-c", MEMORY_RUN, str(Path(__file__).parent), str(slices)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    before, peak = map(float, done.stdout.split()[-2:])
    return before, peak


# --------------------------------------------------------------------------------------- the table


def row(what: str, value: str, target: str = "") -> None:
    """Prints a line of the table."""
    print(f"{what:<64}{value:>16}   {target}", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--no-cold", action="store_true", help="no epoch without stored features")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.studies, options.epochs, options.no_cold = 10, 10, True
    import keras
    import tensorflow as tf

    print(machine(TensorFlow=tf.__version__, Keras=keras.__version__))
    print(f"\nvgg19_lstm, {options.studies} studies of {SLICES} slices, random weights\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "features").mkdir()
        prepared = cohort(folder, options.studies)
        first = fitter(prepared, folder / "first", folder / "features")
        once, share = backbone_pass(first, prepared)
        slices = len(prepared) * SLICES
        row("one pass of VGG19 over all slices", f"{once.clock:.1f} s")
        row("  slices a second", f"{slices / once.clock:.1f}")
        row(
            "  share of the machine's float32 matrix product (by processor)",
            f"{share.clock:.2f} ({share.processor:.2f})",
            f">= {TARGETS['rate']}",
        )
        aim("VGG19's forward pass / matrix product", share.clock, TARGETS["rate"])
        del first
        settings = (f"fit.epochs={options.epochs}",)
        warm = fitter(prepared, folder / "warm", folder / "features", *settings)
        each, besides = warm_epochs(warm)
        total = Time(*(1 + (b + 120 * e) / o for e, b, o in zip(each, besides, once, strict=True)))
        row(f"an epoch on stored features (median of {options.epochs})", f"{each.clock:.2f} s")
        row("start and end of such a run", f"{besides.clock:.1f} s")
        row(
            "the pass and 120 epochs, in passes (by processor)",
            f"{total.clock:.2f} ({total.processor:.2f})",
            f"<= {TARGETS['epochs']}",
        )
        aim(
            "120 epochs of VGG19-LSTM, in passes of VGG19",
            total.clock,
            TARGETS["epochs"],
            most=True,
        )
        del warm
        if not options.no_cold:
            cold = fitter(prepared, folder / "cold", None, "fit.epochs=1", "features.use=never")
            _, took = timed(cold.run)
            row("an epoch without stored features", f"{took.clock:.1f} s")
            row(
                "  in epochs on stored features (by processor)",
                f"{took.clock / each.clock:.0f} ({took.processor / each.processor:.0f})",
                f">= {TARGETS['cold']:.0f}",
            )
            del cold
        if Path("/proc/self/clear_refs").exists():
            peaks = {count: peak_memory(count) for count in (16, 50)}
            for count, (before, peak) in peaks.items():
                row(
                    f"peak memory, study of {count} slices (before it)",
                    f"{peak:.0f} ({before:.0f}) MiB",
                )
            row("  ratio", f"{peaks[50][1] / peaks[16][1]:.2f}", f"<= {TARGETS['memory']}")


if __name__ == "__main__":
    main()
