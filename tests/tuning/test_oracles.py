"""The store: every tuner goes on as if never stopped, and no trial is lost or booked twice."""

from __future__ import annotations

import json
import math

import pytest

from medseq_tf.tuning import oracles
from medseq_tf.tuning.search import BASE
from medseq_tf.tuning.space import Space
from medseq_tf.tuning.trial_store import TrialStore

SPACE = Space.load(
    {
        "name": "s",
        "recipe": "fsm_bilstm",
        "set": ["fit.epochs=9"],
        "space": {
            "optimizer.learning_rate": {"float": [1e-4, 1e-1], "log": True},
            "model.aggregator.name": {"choice": ["lstm", "gru", "mean"]},
            "model.aggregator.layers": {
                "int": [1, 3],
                "when": {"model.aggregator.name": ["lstm", "gru"]},
            },
            "fit.batch_size": {"choice": [4, 8]},
        },
    }
)


def store(folder, tuner="random", trials=8, space=SPACE, minutes=None, base=False, seed=0):
    return TrialStore(space, folder, tuner, seed, trials, minutes, base, base_done=False)


def score(values):
    return 1 - abs(math.log10(values["optimizer.learning_rate"]) + 2) / 4


def search(books, worker="a"):
    """Run a search to its end; every fourth trial fails. Return what was tried."""
    tried = []
    while (order := books.next(worker)).kind == "run":
        tried.append((order.trial, tuple(sorted(order.values.items())), order.epochs))
        failed = len(tried) % 4 == 3
        books.finish(order.trial, None if failed else score(order.values), "it failed")
    assert order.kind == "stop"
    return tried


@pytest.mark.parametrize("tuner", ["random", "grid", "hyperband", "bayesian"])
def test_interrupted_anywhere_it_goes_on_as_if_never_stopped(tmp_path, tuner):
    trials = 6 if tuner == "bayesian" else 10
    whole = search(store(tmp_path / "whole", tuner, trials))
    assert len(whole) == trials
    again = []
    for number in range(trials):
        books = store(tmp_path / "again", tuner, trials)  # as a new process would
        order = books.next("a")
        lost = store(tmp_path / "again", tuner, trials)  # killed while it was training
        order_again = lost.next("a")
        assert (order_again.trial, order_again.values) == (order.trial, order.values)
        again.append((order.trial, tuple(sorted(order.values.items())), order.epochs))
        failed = number % 4 == 2
        lost.finish(order.trial, None if failed else score(order.values), "it failed")
    assert again == whole


def test_a_seed_decides_what_is_tried(tmp_path):
    tried = [search(store(tmp_path / str(i), seed=seed)) for i, seed in enumerate((0, 0, 1))]
    assert tried[0] == tried[1] != tried[2]


def test_values_are_active_ones_within_their_bounds(tmp_path):
    for _, values, _ in search(store(tmp_path, trials=30)):
        values = dict(values)
        assert 1e-4 <= values["optimizer.learning_rate"] <= 1e-1
        recurrent = values["model.aggregator.name"] != "mean"
        assert ("model.aggregator.layers" in values) == recurrent
        SPACE.experiment(values)


def test_bayesian_finds_what_is_good(tmp_path):
    tried = search(store(tmp_path, "bayesian", 14))
    rates = [dict(values)["optimizer.learning_rate"] for _, values, _ in tried]
    chosen = sum(abs(math.log10(rate) + 2) for rate in rates[6:]) / 8
    drawn = sum(abs(math.log10(rate) + 2) for rate in rates[:6]) / 6
    assert chosen < drawn


def test_a_grid_ends_with_its_last_combination_and_begins_with_the_recipe(tmp_path):
    space = Space.load(
        {
            "name": "s",
            "recipe": "fsm_bilstm",
            "space": {
                "fit.batch_size": {"choice": [4, 8, 16]},
                "model.aggregator.name": {"choice": ["mean", "lstm"]},
                "model.aggregator.layers": {
                    "int": [1, 3],
                    "when": {"model.aggregator.name": "lstm"},
                },
            },
        }
    )
    books, tried = store(tmp_path, "grid", None, space), []
    while (order := books.next("a")).kind == "run":
        tried.append(tuple(sorted(order.values.items())))
        books.finish(order.trial, 0.5)
    assert len(set(tried)) == len(tried) == 3 * (1 + 3)
    recipe = space.base.flat()
    assert dict(tried[0]) == {
        "fit.batch_size": str(recipe["fit.batch_size"]),
        "model.aggregator.name": recipe["model.aggregator.name"],
        "model.aggregator.layers": recipe["model.aggregator.layers"],
    }


@pytest.mark.parametrize("tuner", ["random", "grid", "bayesian"])
def test_many_trials_may_run_at_once(tmp_path, tuner):
    books = store(tmp_path / "many", tuner, 6)
    orders = [books.next(worker) for worker in "abcdef"]
    assert [order.trial for order in orders] == [f"{number:04d}" for number in range(6)]
    assert len({tuple(sorted(order.values.items())) for order in orders}) == 6
    if tuner != "bayesian":  # which looks at results
        values = [tuple(sorted(order.values.items())) for order in orders]
        assert [found[1] for found in search(store(tmp_path / "one", tuner, 6))] == values


def test_hyperband_sets_the_epochs(tmp_path):
    epochs = [found[2] for found in search(store(tmp_path, "hyperband", None))]
    assert set(epochs) == {1, 3, 9}
    assert epochs.count(1) > epochs.count(3) >= 1


def test_more_trials_may_be_asked_for_later(tmp_path):
    first = search(store(tmp_path, trials=3))
    rest = search(store(tmp_path, trials=5))
    assert [name for name, _, _ in first + rest] == [f"{i:04d}" for i in range(5)]


def test_the_recipe_itself_comes_first_and_once(tmp_path):
    books = store(tmp_path, trials=1, base=True)
    assert books.next("a").trial == BASE
    assert books.next("a").trial == BASE, "until it is finished"
    assert books.next("b").trial == "0000"
    assert books.finish(BASE, 0.5)
    assert not books.finish(BASE, 0.6)
    assert books.next("a").kind == "stop"


def test_a_result_is_booked_once(tmp_path):
    books = store(tmp_path)
    order = books.next("a")
    assert books.finish(order.trial, 0.5)
    assert not books.finish(order.trial, 0.9)
    assert not books.finish("9999", 0.9)


def test_no_streak_of_failures_locks_it(tmp_path):
    books = store(tmp_path, trials=12)
    for _ in range(12):
        books.finish(books.next("a").trial, None, "always")
    assert books.next("a").kind == "stop"


def test_no_trial_begins_after_the_time(tmp_path):
    books = store(tmp_path, minutes=1e-9)
    assert books.next("a").kind == "stop"


def test_files_are_whole_after_every_step(tmp_path):
    books = store(tmp_path, trials=3)
    for _ in range(3):
        order = books.next("a")
        books.finish(order.trial, 0.5)
        for file in (tmp_path / "oracle").rglob("*.json"):
            json.loads(file.read_text("utf-8"))
    assert not [f for f in (tmp_path / "oracle").rglob(".*") if f.is_file()]


def test_a_trial_that_was_half_begun_is_forgotten(tmp_path):
    books = store(tmp_path)
    books.finish(books.next("a").trial, 0.5)
    stale = tmp_path / "oracle" / "trial_0001"
    stale.mkdir()
    text = (tmp_path / "oracle" / "trial_0000" / "trial.json").read_text("utf-8")
    (stale / "trial.json").write_text(text.replace('"0000"', '"0001"'))
    assert store(tmp_path).next("a").trial == "0001"


def test_the_tuners_are_those_of_the_command_line():
    from medseq_tf.cli import cli

    (option,) = [p for p in cli.commands["tune"].params if p.name == "tuner"]
    assert tuple(option.type.choices) == oracles.TUNERS
