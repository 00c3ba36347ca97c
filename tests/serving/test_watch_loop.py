"""A watcher answers each study once, whatever fails; on a time and an archive of the test's own."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import tracemalloc

import pytest
from simulated_archive import (
    Killed,
    SimulatedArchive,
    SimulatedClock,
    SimulatedWork,
    Study,
)

from medseq_tf.errors import InputError, Unreachable
from medseq_tf.serving import watch_loop
from medseq_tf.serving.watch_loop import (
    LONGEST_AWAY,
    PAUSES,
    Clock,
    Found,
    NothingToRead,
    Settled,
    Watcher,
)
from medseq_tf.serving.watch_status import Status

EVERY, STABLE = 30.0, 60.0


class Lines:
    """A log that is kept."""

    def __init__(self):
        self.lines = []

    def _write(self, event, **more):
        self.lines.append({"event": event, **more})

    info = warning = error = _write

    def events(self):
        return [line["event"] for line in self.lines]


def watcher_of(work, clock=None, every=EVERY, stable=STABLE, **more):
    return Watcher(work, clock or work.clock, Status(), Lines(), every, stable, **more)


def archive_of(*arrivals):
    return SimulatedArchive({f"1.2.{i}": Study(list(times)) for i, times in enumerate(arrivals)})


def run_until(watcher, end):
    while watcher.clock.now() < end:
        watcher.step()


def reports(archive):
    return [len(study.reports) for study in archive.studies.values()]


# ------------------------------------------------------------------------------------- one study


def test_a_study_is_answered_once_it_has_not_changed_for_long_enough():
    archive = archive_of([10, 40, 95])
    watcher = watcher_of(SimulatedWork(archive, SimulatedClock()))
    run_until(watcher, 1000)
    (study,) = archive.studies.values()
    assert study.reports == {
        "report on 3 slices": ("report on 3 slices", study.reports["report on 3 slices"][1])
    }
    seen_whole = next(sweep for sweep in itertools.count(0, EVERY) if sweep >= 95)
    assert study.reports["report on 3 slices"][1] == pytest.approx(seen_whole + STABLE, abs=EVERY)
    assert study.stored == 1


def test_what_the_archive_holds_already_is_not_answered_again():
    archive = archive_of([0.0], [0.0])
    run_until(watcher_of(SimulatedWork(archive, SimulatedClock())), 500)
    again = watcher_of(SimulatedWork(archive, SimulatedClock(1000)))
    run_until(again, 2000)
    assert [study.stored for study in archive.studies.values()] == [1, 1]
    assert again.status.answered == 0
    assert again.status.found_answered == 2
    assert again.status.settled == 2


def test_a_study_that_grows_later_is_answered_as_it_is_then():
    archive = archive_of([0.0, 1.0, 5000.0])
    run_until(watcher_of(SimulatedWork(archive, SimulatedClock())), 9000)
    (study,) = archive.studies.values()
    assert list(study.reports) == ["report on 2 slices", "report on 3 slices"]


def test_a_study_that_fails_is_tried_after_growing_pauses_then_reported_and_left_until_it_changes():
    archive = archive_of([0.0], [0.0, 50_000.0])
    work = SimulatedWork(archive, SimulatedClock(), broken={"1.2.1"})
    watcher = watcher_of(work)
    run_until(watcher, 49_000)
    assert reports(archive) == [1, 0]
    failed = [line for line in watcher.log.lines if line["event"] == "failed"]
    assert [line["again_in"] for line in failed] == list(PAUSES)
    assert sorted(PAUSES) == list(PAUSES)
    assert watcher.log.events().count("given up") == 1
    told = watcher.log.lines[-1]
    assert told == {
        "event": "given up",
        "study": "hash-of-1.2.1",
        "reason": "it cannot be decoded",
        "tries": len(PAUSES) + 1,
    }
    work.broken = set()
    run_until(watcher, 49_900)
    assert reports(archive) == [1, 0]
    run_until(watcher, 51_000)
    assert list(archive.studies["1.2.1"].reports) == ["report on 2 slices"]


def test_a_study_with_nothing_for_the_model_is_left_until_it_changes():
    class Localizers(SimulatedWork):
        def answer(self, study_uid):
            if self.archive.studies[study_uid].slices(self.clock.now()) < 2:
                raise NothingToRead("no series of CT with 3 slices")
            return super().answer(study_uid)

    archive = archive_of([0.0, 2000.0])
    watcher = watcher_of(Localizers(archive, SimulatedClock()))
    run_until(watcher, 1900)
    assert watcher.status.skipped == 1
    run_until(watcher, 3000)
    assert watcher.status.skipped == 1
    assert reports(archive) == [1]


def test_an_unforeseen_error_of_one_study_stops_no_other_and_its_message_is_not_told():
    class Odd(SimulatedWork):
        def answer(self, study_uid):
            if study_uid == "1.2.0":
                raise ValueError("PatientName Mustermann^Erika is too long")
            return super().answer(study_uid)

    archive = archive_of([0.0], [0.0])
    watcher = watcher_of(Odd(archive, SimulatedClock()))
    run_until(watcher, 1000)
    assert reports(archive) == [0, 1]
    reason = next(line["reason"] for line in watcher.log.lines if line["event"] == "failed")
    assert reason.startswith("ValueError in test_watch_loop.py:")
    assert "Mustermann" not in json.dumps(watcher.log.lines)


# -------------------------------------------------------------------------------------- outages


def test_an_archive_that_is_away_is_waited_for_and_told_of_once():
    archive = archive_of([0.0])
    archive.away = (10, 10_000)
    watcher = watcher_of(SimulatedWork(archive, SimulatedClock()))
    sweeps = []
    found = watcher.work.found

    def noted():
        sweeps.append(watcher.clock.now())
        return found()

    watcher.work.found = noted
    run_until(watcher, 20_000)
    assert watcher.log.events() == ["away", "back", "answered"]
    pauses = [b - a for a, b in itertools.pairwise(t for t in sweeps if 10 < t < 10_000)]
    assert pauses == sorted(pauses)
    assert max(pauses) == LONGEST_AWAY
    assert reports(archive) == [1]
    assert watcher.status.failures == 0


def test_an_outage_with_a_study_in_hand_is_not_its_failure():
    archive = archive_of([0.0])
    work = SimulatedWork(archive, SimulatedClock())
    watcher = watcher_of(work)
    answer = work.answer

    def lost(study_uid):
        if work.clock.now() < 100_000:
            raise Unreachable("gone in mid-series")
        return answer(study_uid)

    work.answer = lost
    run_until(watcher, 200_000)
    assert watcher.status.failures == watcher.status.given_up == 0
    assert reports(archive) == [1]
    told = [line for line in watcher.log.lines if line["event"] in ("away", "held up")]
    assert {line["study"] for line in told} == {"hash-of-1.2.0"}
    (held_up,) = [line for line in told if line["event"] == "held up"]
    assert held_up["outages"] == len(PAUSES) + 1


def test_a_watcher_that_looks_seldom_is_well_while_it_waits_and_tries_an_archive_often():
    class Asked(SimulatedClock):
        def wait(self, seconds):
            problems.append(watcher.status.problem(self.now() + seconds))
            super().wait(seconds)

    problems = []
    archive = archive_of([0.0])
    archive.away = (7000.0, 7400.0)
    watcher = watcher_of(SimulatedWork(archive, Asked()), every=7200.0)
    run_until(watcher, 7100)
    assert problems
    assert set(problems) == {None}
    run_until(watcher, 7900)
    assert watcher.log.events() == ["away", "back", "answered"]


def test_the_first_sweep_tells_of_a_wrong_address_and_a_later_one_waits():
    class Refusing(SimulatedWork):
        refuses = True

        def found(self):
            if self.refuses:
                raise InputError("the archive gives no access (401)")
            return super().found()

    archive = archive_of([0.0])
    work = Refusing(archive, SimulatedClock())
    with pytest.raises(InputError, match="401"):
        watcher_of(work).step()
    work.refuses = False
    watcher = watcher_of(work)
    watcher.step()
    work.refuses = True
    run_until(watcher, 5000)
    assert watcher.log.events() == ["away"]
    work.refuses = False
    run_until(watcher, 6000)
    assert reports(archive) == [1]


# ------------------------------------------------------------------------------------------ once


def test_once_tries_every_whole_study_once_and_ends():
    archive = archive_of([0.0], [0.0], [0.0, 30.0])
    work = SimulatedWork(archive, SimulatedClock(), broken={"1.2.1"})
    watcher = watcher_of(work, tries=1)
    watcher.run_once()
    assert reports(archive) == [1, 0, 0]
    assert watcher.status.given_up == 1
    assert watcher.status.waiting == 1
    assert work.clock.now() < 2 * STABLE


def test_once_takes_more_studies_than_are_kept_in_mind(monkeypatch):
    monkeypatch.setattr(watch_loop, "MOST_WAITING", 20)
    archive = archive_of(*([[0.0]] * 41))
    watcher_of(SimulatedWork(archive, SimulatedClock()), stable=0.0, tries=1).run_once()
    assert set(reports(archive)) == {1}


def test_once_ends_where_the_archive_goes_away():
    archive = archive_of([0.0], [0.0])
    archive.away = (STABLE + 0.05, 1e9)
    watcher = watcher_of(SimulatedWork(archive, SimulatedClock()), tries=1)
    with pytest.raises(Unreachable):
        watcher.run_once()
    archive.away = (0.0, 0.0)
    watcher_of(SimulatedWork(archive, SimulatedClock(1000)), tries=1).run_once()
    assert reports(archive) == [1, 1]


# ------------------------------------------------------------------------------------ simulation


def simulate(count, watchers, chances, seed, broken=frozenset()):
    """Run watchers side by side, each begun anew when it is killed, until nothing is left to do."""
    draw = random.Random(seed)
    last = count / 20
    studies = {}
    for number in range(count):
        begin = draw.uniform(0, last)
        studies[f"1.2.{number}"] = Study([begin + gap for gap in (0.0, 8.0, 25.0)])
    archive = SimulatedArchive(studies)
    seeds = itertools.count(seed)

    def begun(now):
        work = SimulatedWork(archive, SimulatedClock(now), 0.1, chances, next(seeds), broken)
        return watcher_of(work)

    team = [begun(0.0) for _ in range(watchers)]
    kills = 0
    while min(watcher.clock.now() for watcher in team) < last + 20_000:
        place = min(range(watchers), key=lambda n: team[n].clock.now())
        try:
            team[place].step()
        except Killed:
            kills += 1
            team[place] = begun(team[place].clock.now() + 5.0)
        if all(study.reports for study in studies.values()):
            break
    for _ in range(3 * watchers):  # what has been stored is seen, and stored no second time
        for watcher in team:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(watcher.work, "chances", (0.0, 0.0, 0.0))
                run_until(watcher, watcher.clock.now() + 2 * STABLE)
    return archive, team, kills


@pytest.mark.parametrize(
    ("count", "watchers", "chances"),
    [
        (10_000, 1, (0.0, 0.0, 0.0)),
        (1_000, 2, (0.02, 0.02, 0.002)),
        pytest.param(10_000, 2, (0.02, 0.02, 0.003), marks=pytest.mark.slow),
    ],
)
def test_of_many_studies_none_is_lost_and_none_has_two_answers(count, watchers, chances):
    archive, team, kills = simulate(count, watchers, chances, seed=5)
    assert {tuple(study.reports) for study in archive.studies.values()} == {("report on 3 slices",)}
    assert bool(kills) == bool(chances[2])
    stored = sum(study.stored for study in archive.studies.values())
    if watchers == 1:
        assert stored == count == team[0].status.answered
    else:
        assert stored < 1.25 * count  # the same object again, where two had it in hand at a time


def test_studies_that_always_fail_hold_up_no_other(monkeypatch):
    monkeypatch.setattr(watch_loop, "MOST_WAITING", 20)
    broken = frozenset(f"1.2.{number}" for number in range(30))
    archive, team, _ = simulate(40, 1, (0.0, 0.0, 0.0), seed=2, broken=broken)
    missing = {uid for uid, study in archive.studies.items() if not study.reports}
    assert missing == broken
    assert team[0].status.given_up == len(broken)


def test_memory_grows_by_eight_bytes_a_study_and_by_none_that_is_gone():
    class Archive:
        """Studies by number, of which nothing is kept."""

        clock = SimulatedClock()
        numbers = range(5000)

        def found(self):
            return (Found(f"1.2.{number}", 1, 30) for number in self.numbers)

        def name(self, study_uid):
            return study_uid

        def answer(self, study_uid):
            return 1

    class Silent:
        def info(self, event, **more):
            pass

    archive = Archive()
    watcher = Watcher(archive, archive.clock, Status(), Silent(), EVERY, 0.0)

    def traced_bytes(answered):
        while watcher.status.answered < answered or watcher.clock.now() < watcher._next_sweep:
            watcher.step()
        watcher.step()
        assert watcher.status.answered == answered
        assert watcher.status.waiting == 0
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        traced_bytes(5000)  # from here on Python has what it keeps for later
        archive.numbers = range(10_000, 11_000)
        first = traced_bytes(6000)
        archive.numbers = range(10_000, 15_000)
        assert traced_bytes(10_000) - first < 4000 * 16
        archive.numbers = range(20_000, 21_000)
        assert traced_bytes(11_000) - first < 2**15
    finally:
        tracemalloc.stop()


# ----------------------------------------------------------------------------------------- parts


def test_settled_numbers_take_eight_bytes_and_go_with_their_studies():
    settled = Settled()
    numbers = [0, 1, 2**63, 2**64 - 1]
    for number in numbers:
        settled.add(number)
    assert not any(number in settled for number in numbers)
    settled.turn(forget=True)
    assert len(settled) == 4
    assert settled._known.nbytes == 32
    assert 2**63 in settled
    assert 5 not in settled
    settled.turn(forget=False)
    assert len(settled) == 4
    assert 2**63 in settled
    assert 1 in settled
    settled.turn(forget=True)
    assert len(settled) == 2
    assert 0 not in settled


def test_two_watchers_begin_with_different_studies():
    archive = archive_of(*([[0.0]] * 200))
    first = []
    for _ in range(2):
        watcher = watcher_of(SimulatedWork(archive, SimulatedClock()), stable=0.0)
        watcher.step()
        first.append(watcher._next_due()[1])
    assert first[0] != first[1]


def signal_and_wait(clock, number):
    os.kill(os.getpid(), number)
    clock.wait(600)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_at_once_and_a_study_after_it(number):
    clock = Clock()
    before = signal.getsignal(number)
    with clock.ended_by_signals():
        with clock.in_hand():
            os.kill(os.getpid(), number)
        assert clock.stopped
    clock = Clock()
    with clock.ended_by_signals():
        signal_and_wait(clock, number)
        raise AssertionError
    assert clock.stopped
    with pytest.raises(KeyboardInterrupt), clock.ended_by_signals():
        signal_and_wait(clock, number)
    assert signal.getsignal(number) is before
