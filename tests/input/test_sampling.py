"""Sequences: the paper's counts, and what each policy promises for studies of any length."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq_tf.errors import InputError
from medseq_tf.input import sampling
from medseq_tf.input.sampling import (
    StudySequence,
    batches,
    batches_by_length,
    evaluation_sequences,
    plan_epoch,
    spread_evenly,
    study_sequences,
)
from medseq_tf.recipe import Sequence

LENGTHS = st.integers(1, 60)
COUNTS = st.integers(1, 40)


def draw(slices: int, **values) -> list[np.ndarray]:
    return study_sequences(slices, Sequence(**values), np.random.default_rng(0))


def as_lists(drawn) -> list[list[int]]:
    return [sequence.tolist() for sequence in drawn]


def as_pairs(plan) -> list[tuple[int, tuple[int, ...]]]:
    return [(one.study, tuple(one.slices.tolist())) for one in plan]


def test_docstring_examples_hold():
    assert doctest.testmod(sampling).failed == 0


class TestPaper:
    def test_table_2_test_counts_are_reproduced(self):
        """16 normal studies shorter than 15: 240 sequences; 12 stroke ones and one of 19: 184."""
        normal = np.random.default_rng(0).integers(1, 15, size=16)
        stroke = [*np.random.default_rng(1).integers(1, 15, size=12), 19]
        recipe = Sequence(policy="paper", length=15)
        assert len(plan_epoch(normal, recipe, seed=0, epoch=0)) == 240
        assert len(plan_epoch(stroke, recipe, seed=0, epoch=0)) == 184

    @given(LENGTHS, COUNTS)
    def test_number_and_length_follow_the_rule(self, length, count):
        drawn = draw(length, policy="paper", length=count)
        expected = {-1: count, 0: 1, 1: length - count}[int(np.sign(length - count))]
        assert [len(sequence) for sequence in drawn] == [count] * expected

    def test_a_study_of_exactly_n_is_itself(self):
        assert as_lists(draw(4, policy="paper", length=4)) == [[0, 1, 2, 3]]

    def test_a_longer_study_gives_its_windows_but_the_last(self):
        drawn = as_lists(draw(6, policy="paper", length=4))
        assert drawn == [[0, 1, 2, 3], [1, 2, 3, 4]]

    def test_short_studies_are_drawn_with_replacement(self):
        drawn = np.concatenate(draw(10, policy="paper", length=15))
        assert set(drawn) == set(range(10))
        assert len({tuple(s) for s in as_lists(draw(10, policy="paper", length=15))}) > 1


@pytest.mark.parametrize("policy", ["paper", "all", "window", "random", "even"])
@pytest.mark.parametrize("fill", [False, True])
@given(length=LENGTHS, count=COUNTS)
@settings(max_examples=50)
def test_sequences_are_sorted_and_in_range(policy, fill, length, count):
    for sequence in draw(length, policy=policy, length=count, fill=fill):
        assert 1 <= len(sequence) <= count
        assert sequence.min() >= 0
        assert sequence.max() < length
        assert (np.diff(sequence) >= 0).all()
        assert sequence.dtype == np.int64


@pytest.mark.parametrize("policy", ["window", "random", "even"])
@given(length=LENGTHS, count=COUNTS)
@settings(max_examples=50)
def test_long_studies_give_n_distinct_slices_short_ones_all(policy, length, count):
    for sequence in draw(length, policy=policy, length=count):
        assert len(sequence) == min(length, count) == len(set(sequence.tolist()))


@pytest.mark.parametrize("policy", ["window", "random", "even"])
@given(length=LENGTHS, count=COUNTS)
@settings(max_examples=50)
def test_fill_repeats_every_slice_about_equally_often(policy, length, count):
    for sequence in draw(length, policy=policy, length=count, fill=True):
        assert len(sequence) == count
        if length <= count:
            repeats = np.bincount(sequence, minlength=length)
            assert repeats.min() >= 1
            assert repeats.max() - repeats.min() <= 1


class TestAll:
    def test_every_slice_of_a_study_within_the_limit(self):
        assert as_lists(draw(7, policy="all", length=7)) == [list(range(7))]

    def test_a_longer_study_is_left_out_or_thinned(self):
        assert draw(60, policy="all", length=50, over="leave_out") == []
        (thinned,) = draw(60, policy="all", length=50, over="thin")
        assert len(set(thinned.tolist())) == 50


class TestWindow:
    @given(LENGTHS, COUNTS, st.integers(1, 5))
    def test_neighbouring_slices_per_study_times(self, length, count, per_study):
        drawn = draw(length, policy="window", length=count, per_study=per_study)
        assert len(drawn) == per_study
        assert all((np.diff(sequence) == 1).all() for sequence in drawn)

    def test_every_window_is_reached(self):
        drawn = draw(8, policy="window", length=5, per_study=200)
        assert {sequence[0] for sequence in drawn} == {0, 1, 2, 3}


@given(length=LENGTHS, count=COUNTS)
def test_even_slices_are_evenly_spaced_and_centred(length, count):
    spread = spread_evenly(length, count)
    if count <= length:
        gaps = np.diff(spread)
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
        before, after = spread[0], length - 1 - spread[-1]
        assert abs(int(before) - int(after)) <= 1


def test_shuffled_order_keeps_the_slices_and_changes_every_epoch():
    recipe = Sequence(policy="all", length=30, order="shuffled")
    plans = [plan_epoch([30], recipe, seed=0, epoch=epoch)[0].slices for epoch in range(3)]
    assert all(sorted(plan) == list(range(30)) for plan in plans)
    assert len({tuple(plan.tolist()) for plan in plans}) == 3


@pytest.mark.parametrize("length", [0, -1])
def test_a_study_without_slices_is_an_error(length):
    with pytest.raises(InputError, match="at least one"):
        draw(length)
    with pytest.raises(InputError, match="at least one"):
        evaluation_sequences(length, Sequence())
    with pytest.raises(InputError, match="at least one"):
        plan_epoch([3, length], Sequence(), seed=0, epoch=0)


class TestEvaluation:
    @pytest.mark.parametrize("policy", ["paper", "all", "even"])
    @pytest.mark.parametrize("order", ["scan", "shuffled"])
    @given(length=LENGTHS, count=COUNTS)
    @settings(max_examples=30)
    def test_every_study_gets_an_answer_always_the_same_in_scan_order(
        self, policy, order, length, count
    ):
        recipe = Sequence(
            policy="all",
            over="leave_out",
            length=count,
            order=order,
            evaluation={"policy": policy},
        )
        first, second = (as_lists(evaluation_sequences(length, recipe)) for _ in range(2))
        assert first == second
        assert len(first) >= 1
        assert all(sequence == sorted(sequence) for sequence in first)

    def test_paper_gives_all_of_the_samplers_sequences(self):
        recipe = Sequence(length=15, evaluation={"policy": "paper"})
        assert [len(evaluation_sequences(n, recipe)) for n in (9, 15, 19)] == [15, 1, 4]

    def test_all_gives_every_slice_unless_a_length_is_set(self):
        recipe = Sequence(length=15, evaluation={"policy": "all"})
        assert as_lists(evaluation_sequences(40, recipe)) == [list(range(40))]
        recipe = Sequence(length=15, evaluation={"policy": "all", "length": 20})
        assert [len(s) for s in evaluation_sequences(40, recipe)] == [20]
        assert as_lists(evaluation_sequences(8, recipe)) == [list(range(8))]

    def test_even_takes_a_short_study_whole_unless_it_is_to_be_filled(self):
        short = evaluation_sequences(2, Sequence(length=5))
        filled = evaluation_sequences(2, Sequence(length=5, fill=True))
        assert as_lists(short) == [[0, 1]]
        assert as_lists(filled) == [[0, 0, 1, 1, 1]]

    def test_its_own_length_overrides_that_of_training(self):
        recipe = Sequence(length=15, evaluation={"policy": "even", "length": 4})
        assert as_lists(evaluation_sequences(8, recipe)) == [[1, 3, 5, 7]]


class TestPlan:
    COUNTS = np.random.default_rng(3).integers(5, 30, size=50)

    def plan(self, **values):
        arguments = {"seed": 0, "epoch": 0, **values}
        return as_pairs(plan_epoch(self.COUNTS, Sequence(policy="random", length=8), **arguments))

    def test_the_same_seed_and_epoch_give_the_same_plan(self):
        assert self.plan() == self.plan()

    def test_another_epoch_or_seed_gives_other_draws_in_another_order(self):
        first, other_epoch, other_seed = self.plan(), self.plan(epoch=1), self.plan(seed=1)
        for other in (other_epoch, other_seed):
            assert [study for study, _ in first] != [study for study, _ in other]
            assert sum(dict(first)[s] == dict(other)[s] for s in range(50)) < 25

    def test_every_study_is_in_every_epoch(self):
        assert sorted(study for study, _ in self.plan(epoch=5)) == list(range(50))

    def test_a_studys_draws_do_not_depend_on_its_companions(self):
        recipe, keys = Sequence(policy="random", length=8), np.arange(1000, 1050)
        whole = dict(as_pairs(plan_epoch(self.COUNTS, recipe, 0, 2, keys)))
        part = dict(as_pairs(plan_epoch(self.COUNTS[20:], recipe, 0, 2, keys[20:])))
        assert {study + 20: slices for study, slices in part.items()} == {
            study: slices for study, slices in whole.items() if study >= 20
        }

    def test_large_keys_are_told_apart(self):
        recipe = Sequence(policy="random", length=8)
        one = plan_epoch([30], recipe, 0, 0, [2**63])
        other = plan_epoch([30], recipe, 0, 0, [2**63 + 1])
        assert as_pairs(one) != as_pairs(other)


class TestBatches:
    def plan(self, lengths) -> list[StudySequence]:
        return [StudySequence(i, np.arange(n)) for i, n in enumerate(lengths)]

    @given(st.lists(LENGTHS, min_size=1, max_size=120), st.integers(1, 20))
    @settings(max_examples=50)
    def test_each_sequence_is_in_one_batch_and_one_batch_at_most_is_small(self, lengths, size):
        cut = batches(self.plan(lengths), size, seed=0, epoch=0)
        studies = sorted(sequence.study for batch in cut for sequence in batch)
        assert studies == list(range(len(lengths)))
        assert sum(len(batch) != size for batch in cut) <= 1
        assert len(cut) == -(-len(lengths) // size)

    def test_lengths_in_a_batch_are_similar_and_batches_vary(self):
        lengths = np.random.default_rng(0).integers(5, 51, size=800)
        recipe = Sequence(policy="all", length=50)
        epochs = [batches(plan_epoch(lengths, recipe, 0, e), 16, 0, e) for e in range(2)]
        real = lengths.sum()
        padded = [sum(16 * max(len(s.slices) for s in b) for b in cut) for cut in epochs]
        assert max(padded) < 1.12 * real  # unsorted: 1.7
        members = [{frozenset(s.study for s in b) for b in cut} for cut in epochs]
        assert not members[0] & members[1]

    def test_equal_lengths_are_a_plain_shuffle(self):
        cut = batches(self.plan([15] * 64), 8, seed=0, epoch=0)
        assert sorted(tuple(s.study for s in batch) for batch in cut) == [
            tuple(range(start, start + 8)) for start in range(0, 64, 8)
        ]
        assert [batch[0].study for batch in cut] != list(range(0, 64, 8))

    def test_evaluation_batches_waste_least(self):
        cut = batches_by_length(self.plan([3, 1, 2, 5, 4]), 2)
        assert [[len(s.slices) for s in batch] for batch in cut] == [[1, 2], [3, 4], [5]]
