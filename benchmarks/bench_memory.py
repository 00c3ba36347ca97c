"""Takes synthetic cohorts; prints the peak memory of training against their size.

Each figure comes from a process of its own, after a first epoch on two studies, which sets aside
what TensorFlow keeps for good: the peak of an epoch over a cohort and over one ten times as large,
streamed (`fit.cache: none`), and kept in memory for comparison; over studies of 15 slices and of
ten times as many, all shown; with batches of 4 and of 16. Then what three training steps of
`bench_models.py` add, here and in PyTorch. Then the memory after every 20 of 200 epochs on a tiny
cohort, and after every 10 of 100 fits one after the other in one process, as in a notebook (the
trials of a search have a process each).

    python benchmarks/bench_memory.py [--patients 40] [--epochs 200] [--trials 100] [--quick]
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import psutil
from side_by_side import aim, machine, status, table

if TYPE_CHECKING:
    from medseq_tf.dataset.prepared import Prepared
    from medseq_tf.training.loop import Fitter

TARGET, GROWTH = 1.1, 1.05
SMALL = (
    "model.encoder.filters=[4,4,4]",
    "model.aggregator.units=4",
    "model.aggregator.layers=1",
    "split.test=0",
    "fit.patience=null",
)


def cohort(folder: Path, patients: int, slices: int, size: int = 64) -> Prepared:
    """Prepares synthetic studies of so many slices."""
    from medseq_tf.dataset.prepare import prepare

    return prepare(
        "demo", out=folder, patients=patients, slices=(slices, slices), size=size, progress=False
    )


def fitter(prepared: Prepared, folder: Path, *settings: str) -> Fitter:
    """The training of the recipe `fsm_bilstm`, on four fifths of the studies."""
    from medseq_tf import recipe as recipes
    from medseq_tf.input.slice_store import SliceStore
    from medseq_tf.runs.tracking import Tracker
    from medseq_tf.training.loop import Fitter

    recipe = recipes.load("fsm_bilstm", list(settings))
    rows = np.arange(len(prepared))
    split = {"train": rows[len(rows) // 5 :], "validation": rows[: len(rows) // 5]}
    folder.mkdir(parents=True, exist_ok=True)
    store = SliceStore(prepared, recipe)
    tracker = Tracker(folder, "memory", enabled=False)
    return Fitter(recipe, store, split, folder, tracker, verbose=False)


# ------------------------------------------------------------------------------------ one process


def peak(patients: int, slices: int, settings: list[str]) -> None:
    """Prints the MiB before an epoch over a cohort, and at its peak."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [*settings, "fit.epochs=1", f"sequence.length={slices}", "split.test=0"]
        fitter(cohort(folder / "first", 10, slices), folder / "warm", *settings).run()
        fit = fitter(cohort(folder / "second", patients, slices), folder / "run", *settings)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = status("VmRSS")
        fit.run()
        print(before, status("VmHWM"))


def growth(epochs: int, trials: int) -> None:
    """Prints the MiB after each tenth of many epochs, then after each tenth of many fits."""
    with tempfile.TemporaryDirectory() as name:
        folder, process = Path(name), psutil.Process()
        prepared = cohort(folder / "data", 8, 4, size=32)
        settings = [*SMALL, "input.size=32", "model.encoder.kernels=[3,3,3]"]
        found: list[float] = []
        fit = fitter(prepared, folder / "run", *settings, f"fit.epochs={epochs}")
        validate = fit._validate

        def noted() -> dict[str, float]:
            if (fit.epoch + 1) % max(epochs // 10, 1) == 0:
                found.append(process.memory_info().rss / 2**20)
            return validate()

        fit._validate = noted
        fit.run()
        print(*found)
        found = []
        for trial in range(trials):
            fitter(prepared, folder / f"trial-{trial}", *settings, "fit.epochs=1").run()
            gc.collect()
            if (trial + 1) % max(trials // 10, 1) == 0:
                found.append(process.memory_info().rss / 2**20)
        print(*found)


def steps(name: str) -> None:
    """Prints the MiB after a step on two studies, and at the peak of three on sixteen."""
    import bench_models as models
    import torch
    import torch_peers

    given = models.batch(models.STEPS, np.full(models.BATCH, models.STEPS))
    if name.startswith("ours"):
        settings = models.PER_POSITION if "position" in name else ()
        step = models.training_step(models.build(*settings))
        step(*(tensor[:2] for tensor in given))
    else:
        peers = {
            "PyTorch, loop": torch_peers.Looped,
            "PyTorch, folded": torch_peers.Folded,
            "PyTorch, grouped": lambda: torch_peers.Folded(torch_peers.POSITIONS),
        }
        network = peers[name]()
        if name != "PyTorch, loop":
            network = network.to(memory_format=torch.channels_last)
        slices = torch.from_numpy(given[0].numpy().transpose(0, 1, 4, 2, 3).copy())
        labels = torch.from_numpy(given[2].numpy())
        torch_peers.training_step(network, slices[:2], labels[:2])()
        step = torch_peers.training_step(network, slices, labels)
        given = ()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _ in range(3):
        float(step(*given))
    print(before, status("VmHWM"))


def in_a_process(call: str) -> list[list[float]]:
    """The numbers that a function of this module prints in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"import bench_memory as bench\nif __name__ == '__main__':\n    bench.{call}\n"
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "memory.py"
        script.write_text(code)
        words = [sys.executable, str(script)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=name)
    if done.returncode:
        raise SystemExit(f"{call} failed: {done.stderr[-2000:]}")
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


# --------------------------------------------------------------------------------------- the tables


def peaks(patients: int) -> None:
    """Prints the peaks, and the ratio to the row above."""
    row = table({"an epoch": 40, "before, MiB": 11, "peak, MiB": 9, "ratio": 6, "target": 6})
    kept = ["fit.cache=memory"]
    streamed = ["fit.cache=none"]
    whole = [*streamed, "sequence.evaluation.policy=all"]
    pairs = [
        ("{0} studies, streamed", (patients, 15, streamed), (10 * patients, 15, streamed), TARGET),
        ("{0} studies, kept in memory", (patients, 15, kept), (10 * patients, 15, kept), ""),
        ("studies of {1} slices", (patients, 15, whole), (patients, 150, whole), ""),
    ]
    for name, *cases, target in pairs:
        first = None
        for case in cases:
            before, top = in_a_process(f"peak{case}")[-1]
            ratio = f"{top / first:.2f}" if first else ""
            row(name.format(*case), f"{before:.0f}", f"{top:.0f}", ratio, target if first else "")
            if first and target:
                aim("peak memory, a cohort ten times as large", top / first, target, most=True)
            first = first or top
    first = None
    for size in (4, 16):
        case = (patients, 15, [*streamed, f"fit.batch_size={size}"])
        before, top = in_a_process(f"peak{case}")[-1]
        ratio = f"{top / first:.2f}" if first else ""
        row(f"batches of {size}", f"{before:.0f}", f"{top:.0f}", ratio, "")
        first = first or top


def of_a_step() -> None:
    """Prints what training steps add, and how many times as much as ours."""
    print()
    row = table({"a training step": 40, "adds, MiB": 9, "by ours": 7})
    ours = None
    for name in ("ours, shared", "PyTorch, folded", "ours, per position", "PyTorch, grouped",
                 "PyTorch, loop"):  # fmt: skip
        before, top = in_a_process(f"steps({name!r})")[-1]
        ours = top - before if name.startswith("ours") else ours
        row(name, f"{top - before:.0f}", f"{(top - before) / ours:.2f}")


def main() -> None:
    """Prints the tables."""
    import keras
    import tensorflow as tf

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.patients, options.epochs, options.trials = 10, 40, 10
    print(machine(TensorFlow=tf.__version__, Keras=keras.__version__), end="\n\n")
    if Path("/proc/self/clear_refs").exists():
        peaks(options.patients)
        of_a_step()
    epochs, trials = in_a_process(f"growth({options.epochs}, {options.trials})")[-2:]
    for what, count, found in (
        ("epochs", options.epochs, epochs),
        ("fits", options.trials, trials),
    ):
        print(f"\nMiB after each tenth of {count} {what}: {' '.join(f'{x:.0f}' for x in found)}")
        print(f"the last by the third: {found[-1] / found[2]:.3f}, target at most {GROWTH}")
        aim(f"memory after {count} {what} / after {3 * count // 10}", found[-1] / found[2], GROWTH,
            most=True)  # fmt: skip


if __name__ == "__main__":
    main()
