"""Takes pieces of work, gives what each of them took in alternating rounds of one process."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Time(NamedTuple):
    """Seconds by the clock, and of this process's processor time, all threads together."""

    clock: float
    processor: float


def timed(work: Callable[[], Any]) -> tuple[Any, Time]:
    """Calls a function; gives its result and how long it took."""
    processor, clock = time.process_time(), time.perf_counter()
    result = work()
    return result, Time(time.perf_counter() - clock, time.process_time() - processor)


def alternate(
    works: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 2
) -> dict[str, list[Time]]:
    """Calls each of `works` once a round, after `warm` rounds that do not count.

    A work has to wait for its result. Every other round goes the other way round, so that none
    always follows the same one.
    """
    times: dict[str, list[Time]] = {name: [] for name in works}
    gc.collect()
    for number in range(warm + rounds):
        for name in works if number % 2 else reversed(works):
            took = timed(works[name])[1]
            if number >= warm:
                times[name].append(took)
    return times


def median(times: list[Time]) -> Time:
    """Median by the clock and by the processor."""
    return Time(*(statistics.median(column) for column in zip(*times, strict=True)))


class Ratio(NamedTuple):
    """How many times as long one work took as another: median of the rounds and its spread.

    Attributes:
        clock: By the clock.
        low: Lower quartile of the rounds, by the clock.
        high: Upper quartile.
        processor: By processor time, which a busy machine disturbs less.
    """

    clock: float
    low: float
    high: float
    processor: float

    def __str__(self) -> str:
        return f"{self.clock:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(of: list[Time], to: list[Time]) -> Ratio:
    """Gives the ratio of works of the same rounds."""
    rounds = [a.clock / b.clock for a, b in zip(of, to, strict=True)]
    quartiles = statistics.quantiles(rounds, n=4) if len(rounds) > 1 else [rounds[0]] * 3
    processor = statistics.median(a.processor / b.processor for a, b in zip(of, to, strict=True))
    return Ratio(quartiles[1], quartiles[0], quartiles[2], processor)


def aim(what: str, found: Ratio | float, target: float, most: bool = False) -> None:
    """Keeps a measured figure and its target, at least or `most`, for the table of `run_all.py`."""
    if (path := os.environ.get("BENCH_AIMS")) is None:
        return
    clock, low, high, processor = found if isinstance(found, Ratio) else (found, None, None, None)
    kept = {"what": what, "found": clock, "low": low, "high": high, "processor": processor}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(kept | {"target": target, "most": most}) + "\n")


def machine(**versions: str) -> str:
    """The processor, cores, load and versions, in one line."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    versions = {"Python": platform.python_version(), **versions}
    software = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"{name}, {psutil.cpu_count()} cores, load {load:.1f}; {software}"


def status(name: str) -> float:
    """MiB of this process, of a line of Linux's /proc/self/status: VmRSS, VmHWM (the peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(name)) / 1024


def table(columns: Mapping[str, int]) -> Callable[..., None]:
    """Prints the head of a Markdown table of columns of these widths; gives what prints a row."""

    def row(*cells: object) -> None:
        padded = [f"{cell!s:<{w}}" for cell, w in zip(cells, columns.values(), strict=True)]
        print(f"| {' | '.join(padded)} |", flush=True)

    row(*columns)
    row(*("-" * width for width in columns.values()))
    return row
