"""Takes a demo cohort; prints what a second core, with a worker of its own, makes of the work.

Three kinds of work, each by one worker on one core and by two on a core each: `prepare` (what a
cohort takes beyond a few patients, which take little but the workers' start), training (the updates
of all epochs but the first, by one process and by two that `TF_CONFIG` tells of each other, on
halves of the same batches) and a search. Processes are kept to their cores. The two take turns, and
every other round goes the other way round; a figure is the median of the rounds, with its
quartiles. On a machine of two cores what else runs on it counts in full, so the load is printed.
With --ray the pieces of `prepare` and the trials are Ray's, on a cluster that has the same cores.

    python benchmarks/bench_scale.py [--quick] [--rounds N] [--ray] [--only prepare|training|trials]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from side_by_side import Time, aim, machine, median, ratio

TARGETS = {"prepare": 1.8, "training": 1.7, "trials": 1.9}

PREPARE = """
import sys, time
from medseq_tf.dataset.prepare import prepare
if __name__ == "__main__":
    source, out, workers, ray = sys.argv[1:]
    began = time.perf_counter()
    where = {"ray": "local"} if ray == "ray" else {"workers": int(workers)}
    prepare("image-folder", source, out=out, size=128, progress=False, **where)
    print(time.perf_counter() - began)
"""
TUNE = """
import sys, time
from medseq_tf.tuning.tune import tune
if __name__ == "__main__":
    space, data, out, trials, workers, ray = sys.argv[1:]
    began = time.perf_counter()
    where = {"ray": "local"} if ray == "ray" else {"workers": int(workers)}
    tune(space, data, out, int(trials), tuner="random", base=False, retrain=False, track=False,
         verbose=False, **where)
    print(time.perf_counter() - began)
"""
SPACE = """
name: scale
recipe: fsm_bilstm
set: {settings}
objective: {{metric: auroc, validation: true}}
space:
  optimizer.learning_rate: {{float: [5.0e-4, 3.0e-3], log: true}}
"""


def on_cores(command: list[str], cores: list[int], **environment: str) -> subprocess.Popen:
    """Starts a command that keeps to some cores, with as many threads."""
    threads = str(len(cores))
    limits = {"OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads}
    limits |= {"TF_NUM_INTEROP_THREADS": threads, "CUDA_VISIBLE_DEVICES": "-1"}
    taken = ["taskset", "-c", ",".join(map(str, cores))]
    return subprocess.Popen(
        [*taken, sys.executable, *command],
        env={**os.environ, **limits, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen) -> str:
    """What a process prints; the script ends if it fails."""
    said, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"failed: {errors[-2000:]}")
    return said


class Work:
    """Pieces of work by one worker or several, a core each.

    Args:
        folder: for what is made.
        options: of the command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.options = folder, options
        self.engine = "ray" if options.ray else "pool"
        self.cores = sorted(os.sched_getaffinity(0))

    def prepare(self, workers: int) -> float:
        """Seconds of `prepare` for all patients, beyond those for a few."""
        out = self.folder / "made"
        seconds = []
        for pictures in (self.pictures, self.few):
            words = [str(pictures), str(out), str(workers), self.engine]
            seconds.append(float(output(on_cores(["-c", PREPARE, *words], self.cores[:workers]))))
            shutil.rmtree(out)
        return seconds[0] - seconds[1]

    def trials(self, workers: int) -> float:
        """Seconds of a search."""
        out = self.folder / "search"
        space = self.folder / "space.yaml"
        space.write_text(SPACE.format(settings=json.dumps(["fit.epochs=3", "fit.patience=null"])))
        words = [str(space), str(self.data), str(out), str(self.count), str(workers), self.engine]
        seconds = float(output(on_cores(["-c", TUNE, *words], self.cores[:workers])))
        shutil.rmtree(out)
        return seconds

    def training(self, workers: int) -> float:
        """Seconds of an epoch of a training by so many hosts, but the first."""
        out = self.folder / "run"
        command = ["-m", "medseq_tf", "train", "fsm_bilstm", "--data", str(self.data)]
        command += ["--out", str(out), "--no-track", "--set", "fit.batch_size=8"]
        command += ["--set", f"fit.epochs={self.epochs}", "--set", "fit.patience=null"]
        addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
        processes = []
        for place, core in enumerate(self.cores[:workers]):
            task = {"type": "worker", "index": place}
            told = json.dumps({"cluster": {"worker": addresses}, "task": task})
            processes.append(on_cores(command, [core], TF_CONFIG=told))
        for process in processes:
            output(process)
        seconds = pd.read_csv(out / "history.csv")["seconds"].iloc[1:]
        shutil.rmtree(out)
        return float(seconds.sum())

    def make(self) -> None:
        """Makes the cohorts."""
        from bench_prepare import write_jpegs

        from medseq_tf.dataset.prepare import prepare
        from medseq_tf.phantom.cohort import DemoCohort

        quick = self.options.quick
        self.count, self.epochs = (2, 2) if quick else (6, 4)
        size, length = 64 if quick else 256, (12, 18)
        self.pictures, self.few = self.folder / "pictures", self.folder / "few"
        for folder, patients in ((self.pictures, 24 if quick else 320), (self.few, 8)):
            write_jpegs(DemoCohort(patients=patients, size=size, slices=length), folder)
        self.data = self.folder / "data"
        patients = 24 if quick else 60
        prepare("demo", out=self.data, patients=patients, size=64, progress=False)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def compare(name: str, work: Callable[[int], float], rounds: int) -> None:
    """Prints what two workers take, and one."""
    times: dict[int, list[Time]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in (1, 2) if number % 2 else (2, 1):
            times[workers].append(Time(work(workers), 1.0))
    found = ratio(times[1], times[2])
    one, two = median(times[1]).clock, median(times[2]).clock
    load = os.getloadavg()[0]
    print(f"{name:<10}{one:>10.1f}{two:>10.1f}   {found}   load {load:.1f}", flush=True)
    aim(f"two workers against one, {name}", found, TARGETS[name])


def main() -> None:
    """Prints the table."""
    import tensorflow as tf

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little work, one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="prepare and trials on Ray")
    parser.add_argument("--only", choices=list(TARGETS), help="one kind of work")
    options = parser.parse_args()
    print(machine(TensorFlow=tf.__version__))
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed")
    engine = "Ray" if options.ray else "a pool of processes"
    print(f"\none worker on one core, two on a core each; prepare and trials by {engine}")
    print("work         seconds: one       two   times as fast (quartiles)")
    with tempfile.TemporaryDirectory() as name:
        work = Work(Path(name), options)
        work.make()
        for kind in [options.only] if options.only else TARGETS:
            compare(kind, getattr(work, kind), 1 if options.quick else options.rounds)


if __name__ == "__main__":
    main()
