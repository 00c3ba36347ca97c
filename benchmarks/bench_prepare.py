"""Takes demo cohorts, and real ones where they are named; prints how fast `prepare` reads them.

Side by side, in alternating rounds: a bare loop that decodes every slice and resizes it, in one
process a core, and `prepare` with as many workers, which also checks, hashes, encodes and writes.
Both are warm: Python's imports are done. Each cohort is read whole and in a quarter, so that what
`prepare` takes whatever there is to read (`fixed`) is told apart from what each further slice takes
(`steady`). The processor time is that of all processes, which a busy machine disturbs less than the
clock. All are medians; of the ratio by the clock the spread is named, too. Last, the peak memory of
`prepare` for a cohort and for one ten times as large.

    python benchmarks/bench_prepare.py [--quick] [--cohorts FOLDER]
        [--stroke-ct FOLDER] [--adrenal FOLDER]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import psutil
from side_by_side import aim, machine

if TYPE_CHECKING:
    from medseq_tf.phantom.cohort import DemoCohort

SIZE = 64
TARGET_RATIO = 0.8
TARGET_MEMORY = 1.1
MEMORY_RUN = """
import sys
from medseq_tf.dataset.prepare import prepare
if __name__ == "__main__":
    prepare("demo", out=sys.argv[1], patients=int(sys.argv[2]), size=64, workers=int(sys.argv[3]),
            progress=False)
"""


# ------------------------------------------------------------------------------------ the bare loop


def bare_pictures(paths: list[str]) -> int:
    """Decodes and resizes picture files; gives their number."""
    cv2.setNumThreads(1)
    for path in paths:
        with open(path, "rb") as file:
            data = np.frombuffer(file.read(), np.uint8)
        _resize(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
    return len(paths)


def bare_volumes(paths: list[str]) -> int:
    """Reads volumes or DICOM files with SimpleITK and resizes their slices; gives their number."""
    import SimpleITK as sitk  # noqa: N813

    cv2.setNumThreads(1)
    slices = 0
    for path in paths:
        volume = sitk.GetArrayFromImage(sitk.ReadImage(path))
        if volume.dtype == np.int32:  # HU of a DICOM file, which OpenCV does not resize
            volume = volume.astype(np.int16)
        for image in volume:
            _resize(image)
            slices += 1
    return slices


def _resize(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


# -------------------------------------------------------------------------------------- the cohorts


@dataclass(frozen=True)
class Case:
    """A cohort on disk: how `prepare` reads it, and how the bare loop does."""

    name: str
    reader: str
    source: Path
    bare: Callable[[list[str]], int]
    pattern: str

    def files(self) -> list[Path]:
        """What the bare loop reads."""
        return sorted(self.source.glob(self.pattern))

    def quarter(self, folder: Path) -> Case:
        """A copy of the first and last files, an eighth each, with the labels."""
        files = self.files()
        eighth = max(len(files) // 8, 1)
        labels = [path for path in [self.source / "labels.csv"] if path.exists()]
        for path in (*files[:eighth], *files[-eighth:], *labels):
            copy = folder / path.relative_to(self.source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        return replace(self, source=folder)


def write_jpegs(cohort: DemoCohort, folder: Path) -> None:
    """Writes a cohort as one folder of JPEG files a patient, and its labels."""
    from medseq_tf.phantom.cohort import patient_names, photographs
    from medseq_tf.phantom.writers import write_labels

    for number, name in enumerate(patient_names(cohort)):
        (folder / name).mkdir(parents=True)
        for place, image in enumerate(photographs(cohort.render(number).volume)):
            cv2.imwrite(str(folder / name / f"{place + 1}.jpg"), image)
    write_labels(cohort, folder)


def cases(folder: Path, options: argparse.Namespace) -> list[Case]:
    """The demo cohort in three formats, and the real cohorts that were named."""
    from medseq_tf.phantom.cohort import DemoCohort
    from medseq_tf.phantom.writers import write_dicom, write_volumes

    patients, side, length = (6, 64, (4, 6)) if options.quick else (60, 256, (24, 36))
    if not (folder / "pictures").exists():
        write_jpegs(DemoCohort(patients=patients, size=side, slices=length), folder / "pictures")
    patients, side = (4, 64) if options.quick else (8, 512)
    scans = DemoCohort(patients=patients, size=side, slices=length)
    if not (folder / "volumes").exists():
        write_volumes(scans, folder / "volumes")
    if not (folder / "dicom").exists():
        write_dicom(scans, folder / "dicom")
    found = [
        Case("demo, JPEG", "image-folder", folder / "pictures", bare_pictures, "*/*.jpg"),
        Case("demo, NIfTI", "volumes", folder / "volumes", bare_volumes, "*.nii.gz"),
        Case("demo, DICOM", "dicom", folder / "dicom", bare_volumes, "**/IM*"),
    ]
    if options.stroke_ct:
        found.append(Case("stroke CT", "image-folder", options.stroke_ct, bare_pictures, "*/*.jpg"))
    if options.adrenal:
        pattern = "volumes/*.nii.gz"
        found.append(Case("adrenal", "volumes", options.adrenal, bare_volumes, pattern))
    return found


# ------------------------------------------------------------------------------------------ a round


class Run(NamedTuple):
    """A number of slices; seconds by the clock, and of processor time of all processes."""

    slices: int
    clock: float
    processor: float


def timed(work: Callable[[], int]) -> Run:
    """Calls a function that gives its number of slices."""
    processor, clock = processor_seconds(), time.perf_counter()
    slices = work()
    clock = time.perf_counter() - clock
    return Run(slices, clock, processor_seconds() - processor)


def processor_seconds() -> float:
    """Of this process and its descendants, those that have ended included."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def prepared(case: Case, out: Path, workers: int) -> int:
    """Prepares a cohort; gives its number of slices."""
    from medseq_tf.dataset.prepare import prepare

    data = prepare(case.reader, case.source, out=out, size=SIZE, workers=workers, progress=False)
    slices = data.info["counts"]["slices"]
    shutil.rmtree(out)
    return slices


def compare(case: Case, folder: Path, workers: int, rounds: int) -> None:
    """Prints a row of the table; called in a process of its own, with a server of its own."""
    quarter = case.quarter(folder / "quarter")
    bare, ours, part = [], [], []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        files = list(map(str, case.files()))
        pieces = min(12 * workers, len(files))  # a dozen a worker
        units = [files[start::pieces] for start in range(pieces)]
        for _ in range(rounds + 1):
            bare.append(timed(lambda: sum(pool.map(case.bare, units, chunksize=1))))
            ours.append(timed(lambda: prepared(case, folder / "prepared", workers)))
            part.append(timed(lambda: prepared(quarter, folder / "prepared", workers)))
    bare, ours, part = bare[1:], ours[1:], part[1:]  # the first are not warm
    ratios = [b.clock / b.slices / (o.clock / o.slices) for b, o in zip(bare, ours, strict=True)]
    bare_rate = statistics.median(b.slices / b.clock for b in bare)
    per_slice, fixed = line(part, ours, "clock")
    bare_cost = statistics.median(b.processor / b.slices for b in bare)
    cost = statistics.median(o.processor / o.slices for o in ours)
    steady_cost, _ = line(part, ours, "processor")
    print(
        f"{case.name:<12}{ours[0].slices:>7}{bare_rate:>8.0f}"
        f"{statistics.median(o.slices / o.clock for o in ours):>8.0f}"
        f"{statistics.median(ratios):>7.2f} {min(ratios):>5.2f} to {max(ratios):.2f}"
        f"{fixed:>8.2f}{1 / per_slice:>8.0f}{1 / per_slice / bare_rate:>7.2f}"
        f"{1e6 * bare_cost:>9.0f}{1e6 * cost:>8.0f}{1e6 * steady_cost:>8.0f}"
        f"{bare_cost / steady_cost:>7.2f}",
        flush=True,
    )
    aim(f"prepare / bare loop, {case.name}, steady", 1 / per_slice / bare_rate, TARGET_RATIO)
    shutil.rmtree(folder)


def line(small: list[Run], large: list[Run], field: str) -> tuple[float, float]:
    """Seconds for each further slice, and for none, through the medians of two cohorts."""
    less, more = (statistics.median(getattr(run, field) for run in runs) for runs in (small, large))
    if more <= less:  # too small a cohort to tell
        return math.nan, math.nan
    per_slice = (more - less) / (large[0].slices - small[0].slices)
    return per_slice, less - per_slice * small[0].slices


# ------------------------------------------------------------------------------------------- memory


def peak_memory(patients: int, folder: Path, workers: int) -> tuple[float, float]:
    """Peak resident MiB of `prepare` in a process of its own, and of its largest worker."""
    arguments = [str(folder / f"memory-{patients}"), str(patients), str(workers)]
    script = folder / "memory.py"
    script.write_text(MEMORY_RUN)
    process = psutil.Popen([sys.executable, str(script), *arguments])
    own = largest = 0
    while process.poll() is None:
        try:
            own = max(own, process.memory_info().rss)
            for child in process.children(recursive=True):
                largest = max(largest, child.memory_info().rss)
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"preparing {patients} patients failed")
    return own / 2**20, largest / 2**20


def main() -> None:
    """Prints the tables."""
    from medseq_tf.execution.processes import cores

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small cohorts, one round")
    parser.add_argument("--stroke-ct", type=Path, help="a class folder of JPEG slices")
    parser.add_argument("--adrenal", type=Path, help="a folder of volumes/ and labels.csv")
    parser.add_argument("--cohorts", type=Path, help="where demo cohorts are, or are to be kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=cores())
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    print(machine(OpenCV=cv2.__version__))
    print(f"\nprepare beside a bare decode-and-resize loop, {options.workers} processes each")
    print(
        "                     slices a second   ratio,              fixed  steady         "
        "processor us a slice   ratio,"
    )
    print(
        "cohort       slices    bare prepare    target 0.8        seconds     a s  ratio     "
        "bare prepare  steady steady"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohorts = options.cohorts or folder / "cohorts"
        cohorts.mkdir(parents=True, exist_ok=True)
        for case in cases(cohorts, options):
            arguments = (case, folder / "case", options.workers, rounds)
            process = multiprocessing.get_context("spawn").Process(target=compare, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"preparing {case.name} failed")
        print(f"\npeak memory, target {TARGET_MEMORY}x for 10x the cohort")
        print("patients   this process MiB   largest worker MiB")
        patients = 4 if options.quick else 40
        peaks = []
        for count in (patients, 10 * patients):
            peaks.append(peak_memory(count, folder, options.workers))
            print(f"{count:>8} {peaks[-1][0]:>18.0f} {peaks[-1][1]:>20.0f}", flush=True)
        growth = [large / small if small else 1.0 for small, large in zip(*peaks, strict=True)]
        print(f"   ratio {growth[0]:>18.2f} {growth[1]:>20.2f}")
        aim("prepare, peak memory, ten times the cohort", max(growth), TARGET_MEMORY, most=True)


if __name__ == "__main__":
    main()
