"""An archive, studies that arrive in it and its own time: nothing waits and nothing is sent."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import random

from medseq_tf.errors import Unreachable
from medseq_tf.serving.watch_loop import Found, StudyFailed


class Killed(BaseException):
    """The watcher's process is ended, as kill -9 does, wherever it is."""


class SimulatedClock:
    """Time that passes when somebody waits; no signal comes."""

    def __init__(self, now: float = 0.0):
        self.seconds = now
        self.stopped = False

    def now(self) -> float:
        return self.seconds

    def time(self) -> float:
        return 1.8e9 + self.seconds

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.seconds += seconds

    def in_hand(self):
        return contextlib.nullcontext()


@dataclasses.dataclass
class Study:
    """When its slices arrive; and its reports: what each is made of, and since when it is there."""

    arrivals: list[float]
    reports: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    stored: int = 0

    def slices(self, now: float) -> int:
        return bisect.bisect_right(self.arrivals, now)

    def found(self, uid: str, now: float) -> Found:
        reports = sum(since <= now for _, since in self.reports.values())
        return Found(uid, 1 + bool(reports), self.slices(now) + reports)


class SimulatedArchive:
    """Studies by UID; and whether it is away, from one time to another."""

    def __init__(self, studies: dict[str, Study]):
        self.studies = studies
        self.away: tuple[float, float] = (0.0, 0.0)


class SimulatedWork:
    """A watcher's work with the archive: each step may fail, and the process may die before it.

    Args:
        archive: shared by all watchers.
        clock: the watcher's own.
        seconds: what reading and predicting takes.
        chances: of an answer 500, of a study that fails, and of death, at every step.
        seed: of the chances.
        broken: studies that always fail.
    """

    def __init__(
        self, archive, clock, seconds=0.1, chances=(0.0, 0.0, 0.0), seed=0, broken=frozenset()
    ):
        self.archive = archive
        self.clock = clock
        self.seconds = seconds
        self.chances = chances
        self.random = random.Random(seed)
        self.broken = broken

    def name(self, study_uid):
        return f"hash-of-{study_uid}"

    def _step(self):
        lost, _, death = self.chances
        begin, end = self.archive.away
        if begin <= self.clock.now() < end:
            raise Unreachable("the archive is away")
        chance = self.random.random()
        if chance < death:
            raise Killed
        if chance < death + lost:
            raise Unreachable("the archive answers 500")

    def found(self):
        self._step()
        for place, (uid, study) in enumerate(self.archive.studies.items()):
            if place % 1000 == 999:
                self._step()
            if study.arrivals[0] <= self.clock.now():
                yield study.found(uid, self.clock.now())

    def answer(self, study_uid):
        study = self.archive.studies[study_uid]
        self._step()
        report = f"report on {study.slices(self.clock.now())} slices"
        self._step()
        _, since = study.reports.get(report, ("", float("inf")))
        if since <= self.clock.now():
            return 0
        if study_uid in self.broken or self.random.random() < self.chances[1]:
            raise StudyFailed("it cannot be decoded")
        self.clock.seconds += self.seconds
        self._step()
        before = study.reports.get(report)
        now = self.clock.now()
        study.reports[report] = (report, min(before[1], now) if before else now)
        study.stored += 1
        self._step()  # stored, and the answer lost
        return 1
