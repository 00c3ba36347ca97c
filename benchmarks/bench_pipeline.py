"""Takes a synthetic cohort of JPEG files; prints how fast it becomes training batches, by peer.

Decode, draw 15 slices, resize to 64 x 64, the five augmentations of paper 1 on every slice,
normalise, batch by 16: this package's pipeline with decoded slices kept in memory (as it does where
they fit) and decoded anew every epoch, from its prepared data set; MONAI's CacheDataset and
PersistentDataset; PyTorch's DataLoader with OpenCV, on the JPEG files and with slices kept in
memory. In alternating epochs of one process; the peers without workers and with some, the better of
the two counts. What is done once (preparing, filling caches) is not timed here. This package's run
makes one pipeline for all its epochs; here one is made for every four. Then training fed by the
pipeline beside training on the same batch again and again.

    python benchmarks/bench_pipeline.py [--patients 60] [--rounds 7] [--workers 2] [--quick]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from side_by_side import Time, aim, alternate, machine, median, ratio, table

PER_STUDY, BATCH, EPOCHS = 4, 16, 4
TARGET, SLOWDOWN = 1.5, 1.1


def cohort(folder: Path, patients: int) -> Path:
    """Writes a demo cohort of JPEG files of 256 x 256; gives its folder."""
    from bench_prepare import write_jpegs

    from medseq_tf.phantom.cohort import DemoCohort

    demo = DemoCohort(patients=patients, size=256, slices=(24, 36))
    write_jpegs(demo, folder / "pictures")
    return folder / "pictures"


def ours(pictures: Path, folder: Path) -> tuple[dict[str, Callable[[], int]], Callable]:
    """Epochs of this package's pipeline, and what gives the batches of one."""
    from medseq_tf import recipe as recipes
    from medseq_tf.dataset.prepare import prepare
    from medseq_tf.input.batches import training_batches
    from medseq_tf.input.slice_store import SliceStore

    prepared = prepare("image-folder", pictures, out=folder / "prepared", size=64, progress=False)
    rows = np.arange(len(prepared))
    settings = ["sequence.policy=random", f"sequence.per_study={PER_STUDY}"]
    number = iter(range(10**6))

    def batches(cache: str) -> Callable:
        recipe = recipes.load("fsm_bilstm_paper", [*settings, f"fit.cache={cache}"])
        store = SliceStore(prepared, recipe)
        return lambda: training_batches(
            prepared, rows, recipe, EPOCHS * next(number), store=store, epochs=EPOCHS
        )

    def count(make: Callable) -> int:
        return sum(int(np.prod(inputs["slices"].shape[:2])) for inputs, _ in make())

    kept, streamed = batches("memory"), batches("none")
    works = {"ours": lambda: count(kept), "ours, not kept in memory": lambda: count(streamed)}
    return works, kept


def rates(pictures: Path, folder: Path, workers: int, rounds: int) -> Callable:
    """Prints the rates and ratios; gives what makes our batches."""
    works, batches = ours(pictures, folder)
    import pipeline_peers

    studies = [sorted(map(str, p.glob("*.jpg"))) for p in pictures.iterdir() if p.is_dir()]
    counts = sorted({0, workers})
    for count in counts:
        peers = pipeline_peers.epochs(studies, PER_STUDY, BATCH, count, folder / f"cache-{count}")
        works |= {f"{name}, {count} workers": work for name, work in peers.items()}
    slices = {name: work() for name, work in works.items()}
    one = slices["ours"] // EPOCHS
    passes = {name: EPOCHS if name.startswith("ours") else 1 for name in works}
    assert slices == {name: one * count for name, count in passes.items()}, slices
    taken = alternate(works, rounds, warm=0)
    times = {
        name: [Time(*(seconds / slices[name] for seconds in one)) for one in took]
        for name, took in taken.items()
    }
    print(f"\nbatches of {BATCH} x 15 x 64 x 64, {one} slices an epoch, "
          f"{rounds} rounds")  # fmt: skip
    row = table({"pipeline": 38, "slices a second": 15})
    for name, took in times.items():
        row(name, f"{1 / median(took).clock:.0f}")
    print()
    row = table({"ours / peer": 42, "times as fast": 22, "target": 6})
    for kind in peers:
        both = [f"{kind}, {count} workers" for count in counts]
        best = min(both, key=lambda name: median(times[name]).clock)
        target = TARGET if kind == "MONAI CacheDataset" else ""
        found = ratio(times[best], times["ours"])
        row(f"ours / {best}", found, target)
        if target:
            aim(f"pipeline / {best}", found, target)
    return batches


def beside_training(batches: Callable, rounds: int) -> None:
    """Prints what the pipeline costs a training epoch."""
    from bench_models import build, training_step

    step = training_step(build())
    fixed = next(iter(batches()))
    count = sum(1 for _ in batches())

    def epoch(elements) -> float:
        return sum(
            float(step(inputs["slices"], inputs["lengths"], labels)) for inputs, labels in elements
        )

    works = {
        "pipeline alone": lambda: [None for _ in batches()],
        "training on one batch again and again": lambda: epoch([fixed] * count),
        "training on the pipeline": lambda: epoch(batches()),
    }
    times = alternate(works, rounds, warm=1)
    print(f"\n{count} batches")
    row = table({"epoch": 38, "ms a batch": 10, "by processor": 12})
    for name, took in times.items():
        each = Time(*(1e3 * seconds / count for seconds in median(took)))
        row(name, f"{each.clock:.1f}", f"{each.processor:.1f}")
    again, fed = list(times.values())[1:]
    found = ratio(fed, again)
    aim("step fed by the pipeline / on one batch again and again", found, SLOWDOWN, most=True)
    print(f"\nfed / one batch again: {found}, by processor {found.processor:.2f}; "
          f"target at most {SLOWDOWN}")  # fmt: skip


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.patients, options.rounds, options.workers = 12, 3, 0
    import torch._dynamo  # ahead of TensorFlow: the LLVM that comes with it does not load behind

    # isort: split
    import monai
    import tensorflow as tf

    versions = {"TensorFlow": tf.__version__, "PyTorch": torch.__version__}
    print(machine(**versions, MONAI=monai.__version__))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = cohort(folder, options.patients)
        batches = rates(pictures, folder, options.workers, options.rounds)
        beside_training(batches, options.rounds)
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
