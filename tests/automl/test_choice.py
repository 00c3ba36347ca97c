"""The choice among candidates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from medseq_tf.automl.choice import AVERAGE, choose, combine, shares_of
from medseq_tf.automl.observed import Observed
from medseq_tf.evaluation import cross_validation, metrics
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.readers.classes import Classes


class Named(NamedTuple):
    name: str
    complexity: int = 0
    kind: str = "linear"
    role: str = "candidate"


def labels_of(count, seed=0, outputs=1):
    rng = np.random.default_rng(seed)
    truth = (rng.random((count, outputs)) < 0.5).astype(float)
    truth[:2] = [[0.0], [1.0]]
    return truth


def told(truth, strength, seed):
    """Probabilities of labels: the stronger, the better they tell."""
    rng = np.random.default_rng(seed)
    logits = strength * (2 * truth - 1) + rng.normal(size=truth.shape)
    return 1 / (1 + np.exp(-logits))


def told_classes(truth, strength, seed):
    rng = np.random.default_rng(seed)
    odds = np.exp(strength * truth + rng.normal(size=truth.shape))
    return odds / odds.sum(axis=1, keepdims=True)


def score_of(choice, name):
    return next(score for score in choice.scores if score.name == name)


def test_scores_are_those_of_scikit_learn():
    truth, patients, folds = labels_of(60), np.arange(60), np.arange(60) % 3
    predictions = {"a": told(truth, 1.0, 1), "b": told(truth, 0.9, 2)}
    choice = choose(
        truth, predictions, [Named("a"), Named("b", 1)], "labels", patients, folds=folds
    )
    for name, own in predictions.items():
        score = score_of(choice, name)
        assert score.log_loss == pytest.approx(log_loss(truth, own))
        by_fold = [roc_auc_score(truth[folds == k], own[folds == k]) for k in range(3)]
        assert score.auroc == pytest.approx(np.mean(by_fold))
    mean = combine(choice, predictions)
    assert score_of(choice, AVERAGE).log_loss == pytest.approx(log_loss(truth, mean))


def test_several_labels_weigh_the_same_and_unknown_ones_do_not_count():
    truth = labels_of(60, outputs=2)
    truth[10:50, 1] = np.nan
    own = told(truth, 1.0, 1)
    own[np.isnan(own)] = 0.01
    choice = choose(truth, {"a": own}, [Named("a")], "labels", np.arange(60))
    known = ~np.isnan(truth[:, 1])
    losses = [log_loss(truth[:, 0], own[:, 0]), log_loss(truth[known, 1], own[known, 1])]
    aurocs = [roc_auc_score(truth[:, 0], own[:, 0]), roc_auc_score(truth[known, 1], own[known, 1])]
    assert choice.scores[0].log_loss == pytest.approx(np.mean(losses))
    assert choice.scores[0].auroc == pytest.approx(np.mean(aurocs))


@pytest.mark.parametrize("outputs", ["classes", "ordered"])
def test_scores_of_classes_are_those_of_scikit_learn(outputs):
    numbers = np.arange(60) % 3
    truth = np.eye(3)[numbers]
    own = told_classes(truth, 1.0, 1)
    unknown, more = np.full((3, 3), np.nan), np.full((3, 3), 1 / 3)
    choice = choose(
        np.concatenate([truth, unknown]),
        {"a": np.concatenate([own, more])},
        [Named("a")],
        outputs,
        np.arange(63),
    )
    assert choice.scores[0].log_loss == pytest.approx(log_loss(numbers, own))
    macro = roc_auc_score(numbers, own, multi_class="ovr")
    assert choice.scores[0].auroc == pytest.approx(macro)


@pytest.mark.parametrize("outputs", ["labels", "classes"])
def test_the_interval_is_the_one_that_evaluate_prints(outputs):
    rows = 90
    rng, number = np.random.default_rng(0), np.arange(rows)
    repeats = rng.permutation(np.repeat([1, 2, 3], rows // 3))
    folds = repeats * 3 + number % 3
    truth = np.eye(3)[rng.integers(0, 3, rows)]
    own = told_classes(truth, 0.7, 1)
    if outputs == "labels":
        own = told(truth, 0.7, 1)
    observed = Observed(truth, outputs, number, folds, repeats)
    estimate = observed.auroc(own)
    if outputs == "labels":
        held_out = cross_validation.HeldOut(
            ["a", "b", "c"], truth, own, np.full_like(own, 0.5), number, number, folds, repeats
        )
        table = cross_validation.evaluate_folds(held_out, resamples=2)
        printed = table[(table["label"] == "macro") & (table["metric"] == "auroc")].iloc[0]
    else:
        names = ("a", "b", "c")
        long = pd.DataFrame(
            {
                "study": np.tile(number, 3),
                "patient": np.tile(number, 3),
                "split": "test",
                "fold": np.tile(folds, 3),
                "repeat": np.tile(repeats, 3),
                "label": np.repeat(names, rows),
                "truth": truth.T.ravel(),
                "probability": own.T.ravel(),
                "positive": (own == own.max(axis=1, keepdims=True)).T.ravel(),
            }
        )
        table = cross_validation.evaluate_class_folds(
            ClassTable.of(long, Classes("kind", names)), resamples=2
        )
        printed = table[(table["label"] == "kind") & (table["metric"] == "auroc")].iloc[0]
    found = (estimate.value, estimate.low, estimate.high)
    assert found == pytest.approx((printed["value"], printed["low"], printed["high"]), rel=1e-9)


def test_the_ranking_is_that_of_mean_auroc():
    rng, rows = np.random.default_rng(0), 60
    truth = labels_of(rows, outputs=2)
    truth[:9, 1] = np.nan
    patients, folds = np.arange(rows) // 2, np.arange(rows) // 2 % 3
    observed = Observed(truth, "labels", patients, folds, np.ones(rows))
    stacked = np.stack([told(truth, 1.0, 1), rng.random(truth.shape).round(1)])
    stacked[np.isnan(stacked)] = 0.3
    ranking = observed.ranking(stacked)
    for number, own in enumerate(stacked):
        held_out = cross_validation.HeldOut(
            ["a", "b"], truth, own, truth, patients, np.arange(rows), folds, np.ones(rows)
        )
        mean = cross_validation.mean_auroc([held_out.of(0), held_out.of(1)])
        assert ranking.aurocs[number] == pytest.approx(mean.value)
        np.testing.assert_allclose(ranking.parts[number], mean.shares.sum(axis=(0, 1)), atol=1e-12)


def test_standard_errors_behind_the_best_are_those_of_delongs_test():
    truth, patients = labels_of(80), np.arange(80)
    stacked = np.stack([told(truth, strength, i) for i, strength in enumerate((0.3, 1.5))])
    ones = np.ones(80)
    found = Observed(truth, "labels", patients, ones, ones).ranking(stacked).behind_the_best()
    test = metrics.delong_test(truth[:, 0], stacked[1, :, 0], stacked[0, :, 0])
    assert found == pytest.approx([test.z, 0], rel=0.01)  # DeLong counts each class's patients


def test_shares_fall_with_the_distance_from_the_best():
    shares = shares_of(np.array([0.0, 1.0, 1.9, 2.1, 0.0]))
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == shares[4]
    assert shares[1] / shares[0] == pytest.approx(np.exp(-0.5))
    assert shares[2] > 0
    assert shares[3] == 0


def test_where_no_fold_can_rank_all_have_the_same_share():
    truth, patients = np.ones((20, 1)), np.arange(20)
    predictions = {name: told(truth, 1.0, seed) for seed, name in enumerate("abc")}
    choice = choose(truth, predictions, [Named(name) for name in "abc"], "labels", patients)
    assert choice.weights == pytest.approx(dict.fromkeys("abc", 1 / 3))
    assert np.isnan(choice.scores[0].auroc)


def test_a_clear_winner_is_chosen_alone_and_equals_share_alike():
    truth, patients = labels_of(100), np.arange(100)
    good, poor = told(truth, 3.0, 1), told(truth, 0.1, 2)
    names = [Named("simple", 0), Named("good", 1)]
    chosen = choose(truth, {"simple": poor, "good": good}, names, "labels", patients)
    assert chosen.weights == {"good": 1.0}
    assert "good ranks best" in chosen.reason
    alike = choose(truth, {"simple": good, "good": good}, names, "labels", patients)
    assert alike.weights == {"simple": 0.5, "good": 0.5}
    assert "average of simple, good" in alike.reason


def test_a_reference_is_never_chosen_however_good():
    truth, patients = labels_of(60), np.arange(60)
    predictions = {"scanner": told(truth, 5.0, 1), "a": told(truth, 0.5, 2)}
    names = [Named("scanner", 0, role="reference"), Named("a", 1)]
    choice = choose(truth, predictions, names, "labels", patients)
    assert choice.weights == {"a": 1.0}
    assert [score.name for score in choice.scores] == ["a"]
    nothing = choose(truth, {"scanner": predictions["scanner"]}, names, "labels", patients)
    assert nothing.weights == {}
    with pytest.raises(ValueError, match="nothing is chosen"):
        combine(nothing, predictions)


@pytest.mark.parametrize(("strength", "is_ahead"), [(0.6, False), (4.0, True)])
def test_a_network_is_chosen_only_where_it_is_clearly_ahead(strength, is_ahead):
    truth, patients = labels_of(60, seed=4), np.arange(60)
    predictions = {"line": told(truth, 0.4, 1), "net": told(truth, strength, 2)}
    names = [Named("line"), Named("net", 5, kind="network")]
    choice = choose(truth, predictions, names, "labels", patients, np.arange(60) % 4)
    assert ("net" in choice.weights) == is_ahead
    assert ("no network is ahead" in choice.reason) != is_ahead


def test_a_network_is_held_against_the_others_where_it_predicts():
    truth, patients, folds = labels_of(80), np.arange(80), np.arange(80) % 4
    net = told(truth, 4.0, 2)
    net[folds != 2] = np.nan
    predictions = {"line": told(truth, 0.2, 1), "net": net}
    names = [Named("line"), Named("net", 5, kind="network")]
    choice = choose(truth, predictions, names, "labels", patients, folds)
    own = folds == 2
    assert score_of(choice, "net").log_loss == pytest.approx(log_loss(truth[own], net[own]))
    assert score_of(choice, "line").log_loss == pytest.approx(log_loss(truth, predictions["line"]))


def test_networks_alone_are_chosen_among_as_the_others_are():
    truth, patients = labels_of(80), np.arange(80)
    names = [Named("first", kind="network"), Named("second", 1, kind="network")]
    predictions = {"first": told(truth, 0.1, 1), "second": told(truth, 3.0, 2)}
    choice = choose(truth, predictions, names, "labels", patients)
    assert choice.weights.get("second", 0) > 0.8


def test_copies_of_studies_of_the_same_patient_decide_nothing():
    truth, patients = labels_of(40, seed=3), np.arange(40)
    predictions = {"a": told(truth, 0.6, 1), "b": told(truth, 0.9, 2)}
    names = [Named("a"), Named("b", 1)]
    once = choose(truth, predictions, names, "labels", patients)
    often = choose(
        np.tile(truth, (9, 1)),
        {name: np.tile(own, (9, 1)) for name, own in predictions.items()},
        names,
        "labels",
        np.tile(patients, 9),
    )
    assert often.weights == pytest.approx(once.weights)
    assert often.reason == once.reason


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_neither_the_order_of_patients_nor_of_candidates_decides(seed):
    rng = np.random.default_rng(seed)
    truth, patients = labels_of(40, seed), np.arange(40) // 2
    folds = patients % 4
    predictions = {name: told(truth, rng.random(), seed + i) for i, name in enumerate("abcd")}
    names = [Named(name, i // 2) for i, name in enumerate("abc")] + [Named("d", 9, "network")]
    first = choose(truth, predictions, names, "labels", patients, folds)
    order = rng.permutation(40)
    second = choose(
        truth[order],
        {name: predictions[name][order] for name in rng.permutation(list("abcd"))},
        [names[i] for i in rng.permutation(4)],
        "labels",
        patients[order],
        folds[order],
    )
    assert second.weights == pytest.approx(first.weights)
    assert second.reason == first.reason
    assert sum(first.weights.values()) == pytest.approx(1)


def test_combine_is_the_weighted_mean():
    truth = labels_of(60)
    predictions = {"a": told(truth, 1.5, 1), "b": told(truth, 1.5, 2)}
    choice = choose(truth, predictions, [Named("a"), Named("b")], "labels", np.arange(60))
    choice = choice._replace(weights={"a": 0.25, "b": 0.75})
    mean = 0.25 * predictions["a"] + 0.75 * predictions["b"]
    np.testing.assert_allclose(combine(choice, predictions), mean)
