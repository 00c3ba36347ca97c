"""Takes nothing; prints what a data set costs a study as it grows, from 1,000 studies to 100,000.

A study is a patient of a folder of images, three pictures of 16 x 16 that no two share. Each number
of studies has processes of its own: one writes the pictures, one prepares them, one opens the data
set and does what a training does before its first step. Peak memory is that of the process that
prepares, without its workers, less what it has when everything is imported.

    python benchmarks/bench_growth.py [--studies 1000 10000 100000] [--workers N] [--ray ADDRESS]
                                      [--keep FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from side_by_side import aim, machine, status, table

SLICES, SIDE = 3, 16
FLAT, EPOCH_SECONDS = 1.15, 30.0
"""A study of the largest cohort takes at most so many times as long as one of the middle one."""


def write(source: Path, studies: int) -> None:
    """Writes the pictures, half the patients in either class."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for kind in ("Normal", "Stroke"):
        (source / kind).mkdir(parents=True)
    for patient in range(studies):
        folder = source / ("Stroke" if patient % 2 else "Normal")
        for number, picture in enumerate(rng.integers(0, 256, (SLICES, SIDE, SIDE), np.uint8)):
            path = folder / f"{patient} ({number}).png"
            path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


class Watch:
    """Keeps the seconds that pieces of work took, and the memory that they added at most.

    Attributes:
        seconds: By name of the work.
        processor: The same, this process's processor time, without its workers'.
        mebibytes: By name of the work.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        self.mebibytes: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Watch what is done meanwhile."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, begun, used = status("VmRSS"), time.perf_counter(), time.process_time()
        yield
        self.seconds[what] = time.perf_counter() - begun
        self.processor[what] = time.process_time() - used
        self.mebibytes[what] = status("VmHWM") - before

    def say(self) -> None:
        """Prints all of it, for the process that asked."""
        print(json.dumps(vars(self)))


def prepare(source: Path, out: Path, workers: int | None, ray: str | None) -> None:
    """Prepares the cohort."""
    from medseq_tf.dataset.prepare import prepare as run

    watch = Watch()
    with watch("prepare"):
        run("image-folder", source, out=out, size=SIDE, workers=workers, ray=ray, progress=False)
    watch.say()


def use(out: Path) -> None:
    """Does what comes before a training's first step, and its audit."""
    from medseq_tf import recipe as recipes
    from medseq_tf.dataset.leakage import audit
    from medseq_tf.dataset.prepared import Prepared
    from medseq_tf.dataset.splits import check_leakage, make_holdout, splits_to_json
    from medseq_tf.input.batches import evaluation_plan, training_batches
    from medseq_tf.input.slice_store import SliceStore

    watch = Watch()
    recipe = recipes.load("fsm_bilstm", ["fit.cache=none"])
    with watch("open"):
        data = Prepared.load(out)
    with watch("split"):
        split = make_holdout(data.studies, recipe.split, recipe.seed)
        check_leakage(data.studies, split)
        splits_to_json(data.studies, split)
    with watch("first batch of an epoch"):
        batches = training_batches(data, split["train"], recipe, 0, store=SliceStore(data, recipe))
        next(iter(batches))
    with watch("plan of validation"):
        evaluation_plan(data, split["validation"], recipe, 16)
    with watch("verify"):
        data.verify()
    ids = data.studies["study_id"].to_numpy()
    with watch("audit of slices"):
        audit(data, {name: list(ids[rows]) for name, rows in split.items()})
    watch.say()


def in_a_process(work: str, *arguments: object) -> dict[str, Any]:
    """Does a work of this file in a process of its own; gives what it says."""
    given = [str(argument) for argument in arguments]
    command = [sys.executable, __file__, "--do", work, *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, help="as of prepare")
    parser.add_argument("--ray", metavar="ADDRESS", help="as of prepare")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the cohorts, made once")
    parser.add_argument("--quick", action="store_true", help="does it run at all?")
    parser.add_argument("--do", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        work, *given = options.do
        if work == "write":
            write(Path(given[0]), int(given[1]))
        elif work == "prepare":
            prepare(Path(given[0]), Path(given[1]), options.workers, options.ray)
        else:
            use(Path(given[0]))
        return
    counts = [50, 100] if options.quick else options.studies
    print(machine(), flush=True)
    widths = {"studies": 8, "what": 24, "s": 8, "ms a study": 10, "by processor": 12}
    row = table({**widths, "KiB a study": 11})
    a_study: dict[tuple[str, int], float] = {}
    passed_on = [
        f"--{name}={value}" for name in ("workers", "ray") if (value := getattr(options, name))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for count in counts:
            place = options.keep or Path(temporary)
            source, out = place / f"source-{count}", Path(temporary) / f"out-{count}"
            if not source.exists():
                in_a_process("write", source, count)
            for found in (
                in_a_process("prepare", source, out, *passed_on),
                in_a_process("use", out),
            ):
                for what, seconds in found["seconds"].items():
                    a_study[what, count] = seconds / count
                    own = found["processor"][what] / count
                    times = (f"{each * 1000:.3f}" for each in (seconds / count, own))
                    kibibytes = found["mebibytes"][what] * 1024 / count
                    row(count, what, f"{seconds:.2f}", *times, f"{kibibytes:.1f}")
    if len(counts) > 1:
        ratio = a_study["prepare", counts[-1]] / a_study["prepare", counts[-2]]
        print(f"a study of {counts[-1]} takes {ratio:.2f} times as long as one of {counts[-2]}")
        aim(f"prepare: a study of {counts[-1]} against one of {counts[-2]}", ratio, FLAT, most=True)
    begin = a_study["first batch of an epoch", counts[-1]] * counts[-1]
    aim(f"first batch of an epoch of {counts[-1]} studies, s", begin, EPOCH_SECONDS, most=True)


if __name__ == "__main__":
    main()
