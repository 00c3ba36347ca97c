"""The loop of a watcher: sweep the archive, answer what is new and whole, wait, and so on.

What has been answered is the archive's to know, not this loop's: it keeps numbers by which it need
not ask again, and whatever is lost of them is asked for again.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import hashlib
import heapq
import math
import secrets
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Protocol

import numpy as np

from medseq_tf.errors import InputError, Unreachable
from medseq_tf.serving.watch_status import Log, Status

MOST_WAITING = 10_000
"""Studies that are kept in mind at a time; those beyond have their turn when there is room."""

PAUSES = (60.0, 300.0, 1800.0, 7200.0)
"""Seconds after which a study that failed is tried again; after the last it is given up."""

LONGEST_AWAY = 300.0
"""Seconds between two tries of an archive that is away, at most."""


class Found(NamedTuple):
    """A study as a query finds it; what of it changes when it does."""

    study_uid: str
    series: int
    instances: int


class StudyFailed(Exception):
    """A study that could not be answered now; the message says why, and nothing of a patient."""


class NothingToRead(Exception):
    """A study in which there is nothing for the model, as long as it does not change."""


class Work(Protocol):
    """What a watcher does with an archive and a model."""

    def found(self) -> Iterable[Found]:
        """Yield the studies that the query finds.

        Raises:
            Unreachable: the archive is away.
        """

    def name(self, study_uid: str) -> str:
        """Return what a study is called in logs."""

    def answer(self, study_uid: str) -> int:
        """Answer a study, unless the archive holds its answer; return how many objects were stored.

        Raises:
            NothingToRead: there is nothing for the model.
            StudyFailed: it did not work out.
            Unreachable: the archive, or the model's server, is away.
        """


class _Ended(BaseException):
    """A signal asks for the end, and no study is in hand."""


class Clock:
    """Time, and the signals that end a watcher: after the study in hand, the second at once.

    Attributes:
        stopped: whether a signal came.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._in_hand = False

    def now(self) -> float:
        """Return seconds that only grow."""
        return time.monotonic()

    def time(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def wait(self, seconds: float) -> None:
        """Wait; a signal ends it."""
        time.sleep(max(seconds, 0.0))

    @contextlib.contextmanager
    def in_hand(self) -> Iterator[None]:
        """Let what is done here be finished."""
        self._in_hand = True
        try:
            yield
        finally:
            self._in_hand = False

    @contextlib.contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """End the block, well, when SIGTERM or Ctrl-C comes and no study is in hand."""
        before = {}
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._note)
        try:
            yield
        except _Ended:
            pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        if not self._in_hand:
            raise _Ended


class Settled:
    """The studies that need no look as long as they do not change: eight bytes each.

    A study that a sweep no longer finds is forgotten. Two of a million studies have the same number
    with a probability of 3e-8.
    """

    def __init__(self) -> None:
        self._known = np.empty(0, np.uint64)
        self._seen = array.array("Q")

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, number: int) -> bool:
        """Whether a number is settled; it is then kept over the next `turn`."""
        place = int(np.searchsorted(self._known, np.uint64(number)))
        if place == len(self._known) or int(self._known[place]) != number:
            return False
        self._seen.append(number)
        return True

    def add(self, number: int) -> None:
        """Settle a number, from the next `turn` on."""
        self._seen.append(number)

    def turn(self, forget: bool) -> None:
        """Keep what was seen or added since the last turn, and the others unless `forget`."""
        seen = np.frombuffer(self._seen, np.uint64)
        self._known = np.unique(seen) if forget else np.union1d(self._known, seen)
        self._seen = array.array("Q")


@dataclasses.dataclass
class _Waiting:
    """A study that is not settled.

    Attributes:
        found: what the last sweep that found it has seen.
        since: when it was first seen so.
        sweep: the number of the last sweep that found it.
        due: when it is to be tried; None: it has not gone without a change for long enough.
        tries: how often it has failed.
        outages: how often the archive went away while it was in hand.
    """

    found: Found
    since: float
    sweep: int
    due: float | None = None
    tries: int = 0
    outages: int = 0


class Watcher:
    """Studies of an archive, answered one after the other as they become whole.

    Args:
        work: finds studies and answers one.
        clock: time, and whether to end.
        status: what is told of the watcher; it counts there.
        log: where it says what it does.
        every: seconds from one sweep to the next.
        stable: seconds for which a study that is whole has not changed.
        tries: how often a study is tried before it is given up.
    """

    def __init__(
        self,
        work: Work,
        clock: Clock,
        status: Status,
        log: Log,
        every: float,
        stable: float,
        tries: int = len(PAUSES) + 1,
    ):
        self.work = work
        self.clock = clock
        self.status = status
        self.log = log
        self.every = every
        self.stable = stable
        self.tries = tries
        self._settled = Settled()
        self._waiting: dict[int, _Waiting] = {}
        self._queue: list[tuple[float, int, int]] = []
        self._sweeps = 0
        self._is_full = False
        self._next_sweep = clock.now()
        self._outages = 0
        self._own = secrets.randbits(64)

    def run(self) -> None:
        """Watch until a signal comes."""
        while not self.clock.stopped:
            self.step()

    def step(self) -> None:
        """Do what is due, one sweep or one study; or else wait until something is.

        Raises:
            InputError: the first sweep of all is refused by the archive, as every other would be.
        """
        self.status.busy_since = now = self.clock.now()
        if now >= self._next_sweep:
            try:
                self._sweep()
            except InputError as error:
                if not self.status.sweeps and not isinstance(error, Unreachable):
                    raise
                self._note_outage(error)
            return
        due, key = self._next_due()
        if key is not None and due <= now:
            self._attend(key)
        else:
            self.status.busy_since = None
            self.clock.wait(min(self._next_sweep, due) - now)

    def run_once(self) -> None:
        """Try every study that is there and whole once, and end.

        Raises:
            InputError: the archive is away, or refuses.
        """
        while not self.clock.stopped:
            self._sweep()
            if self.stable and self._waiting:
                self.clock.wait(self.stable)
                self._sweep()
            any_tried = False
            while not self.clock.stopped and (key := self._next_due()[1]) is not None:
                any_tried = True
                self._attend(key)
                if self._outages:
                    self._sweep()
            if not (self._is_full and any_tried):
                return

    # -------------------------------------------------------------------------------- finding

    def _sweep(self) -> None:
        """See what the query finds.

        Raises:
            InputError: the archive is away, or refuses.
        """
        self._sweeps += 1
        self._is_full = False
        began = self.clock.now()
        self._settled.turn(forget=False)
        for found in self.work.found():
            self._see(found, began)
        self._settled.turn(forget=True)
        self._waiting = {k: w for k, w in self._waiting.items() if w.sweep == self._sweeps}
        self.status.sweeps += 1
        self._note_contact()
        self._next_sweep = self.clock.now() + self.every

    def _see(self, found: Found, began: float) -> None:
        if _number(*found) in self._settled:
            return
        now, key = self.clock.now(), _number(found.study_uid)
        study = self._waiting.get(key)
        if study is None and len(self._waiting) >= MOST_WAITING:
            self._is_full = True
            return
        if study is None or study.found != found:
            study = self._waiting[key] = _Waiting(found, now, self._sweeps)
        study.sweep = self._sweeps
        if study.due is None and now - study.since >= self.stable:
            self._queue_up(key, began)

    def _queue_up(self, key: int, due: float) -> None:
        """Let a study be tried from a time on.

        Those that are due since the same sweep have an order that is this watcher's own: two that
        work side by side seldom have the same one in hand.
        """
        self._waiting[key].due = due
        heapq.heappush(self._queue, (due, _number(self._own, key), key))

    def _next_due(self) -> tuple[float, int | None]:
        """Return when the next study is to be tried, and which it is."""
        while self._queue and not self._outages:
            due, _, key = self._queue[0]
            if key in self._waiting and self._waiting[key].due == due:
                return due, key
            heapq.heappop(self._queue)
        return math.inf, None

    # ------------------------------------------------------------------------------- answering

    def _attend(self, key: int) -> None:
        """Answer a study, or say why not."""
        study, started = self._waiting[key], self.clock.now()
        name = self.work.name(study.found.study_uid)
        with self.clock.in_hand():
            try:
                stored = self.work.answer(study.found.study_uid)
            except Unreachable as error:
                self._put_off(key, name, error)
                return
            except NothingToRead as error:
                self.status.skipped += 1
                self.log.info("nothing to read", study=name, reason=str(error))
            except Exception as error:
                if not self._is_given_up(key, name, error):
                    return
            else:
                self._note_answer(name, stored, self.clock.now() - started)
        self._settle(key)

    def _settle(self, key: int) -> None:
        self._settled.add(_number(*self._waiting.pop(key).found))
        self.status.waiting = len(self._waiting)

    def _note_answer(self, name: str, stored: int, seconds: float) -> None:
        self._note_contact()
        if not stored:
            self.status.found_answered += 1
            return
        self.status.answered += 1
        self.status.seconds += seconds
        self.status.last_success = self.clock.time()
        self.log.info("answered", study=name, objects=stored, seconds=round(seconds, 3))

    def _is_given_up(self, key: int, name: str, error: Exception) -> bool:
        study = self._waiting[key]
        study.tries += 1
        self.status.failures += 1
        reason = str(error) if isinstance(error, StudyFailed | InputError) else _place_of(error)
        if study.tries >= self.tries:
            self.status.given_up += 1
            self.log.error("given up", study=name, reason=reason, tries=study.tries)
            return True
        pause = PAUSES[study.tries - 1]
        self._queue_up(key, self.clock.now() + pause)
        self.log.warning("failed", study=name, reason=reason, again_in=pause)
        return False

    # -------------------------------------------------------------------------------- outages

    def _put_off(self, key: int, name: str, error: InputError) -> None:
        """Try a study later; the outage is not its failure, unless there is but one try.

        One that meets an outage whenever it is tried is never given up, and told of once.
        """
        study = self._waiting[key]
        self._note_outage(error, study=name)
        if self.tries == 1:
            self._is_given_up(key, name, error)
            self._settle(key)
            return
        self._queue_up(key, self.clock.now() + PAUSES[min(study.outages, len(PAUSES) - 1)])
        study.outages += 1
        if study.outages == self.tries:
            reason = str(error)
            self.log.error("held up", study=name, reason=reason, outages=study.outages)

    def _note_outage(self, error: InputError, **more: str) -> None:
        """Wait for the archive, longer each time, and say so once."""
        if not self._outages:
            self.status.away_since = self.clock.now()
            self.log.warning("away", reason=str(error), **more)
        pause = min(self.every * 2**self._outages, LONGEST_AWAY)
        self._outages = min(self._outages + 1, 64)
        self._next_sweep = self.clock.now() + pause

    def _note_contact(self) -> None:
        now = self.clock.now()
        if self._outages:
            away = now - (self.status.away_since or now)
            self.log.info("back", seconds=round(away, 3))
        self._outages, self.status.away_since = 0, None
        self.status.last_contact = now
        self.status.waiting, self.status.settled = len(self._waiting), len(self._settled)


def _number(*parts: str | int) -> int:
    """Return 64 bits that stand for a study, or for a state that it is in."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def _place_of(error: Exception) -> str:
    """Return what failed without its message, which may hold what stands in a header."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" in {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    return f"{type(error).__name__}{where}"
