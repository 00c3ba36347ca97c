"""Metrics of classes that exclude each other, against scikit-learn, SciPy and their definitions."""

from __future__ import annotations

import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics
from medseq_tf.readers.classes import Classes

examples = settings(max_examples=50, deadline=None)
ORDERED = ("kappa_quadratic", "mean_absolute_error")
COLUMN = "grade"


def classes_of(count, ordered=True):
    return Classes(COLUMN, tuple("abcdefg"[:count]), ordered)


@st.composite
def predictions(draw, every_class=True, most_unknown=3):
    """True classes, -1 where unknown, and probabilities of 2 to 7 classes with many ties."""
    classes = draw(st.integers(2, 7))
    n = draw(st.integers(2 * classes, 40))
    truth = draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    if every_class:
        truth[:classes] = np.arange(classes)
    truth[classes : classes + draw(st.integers(0, most_unknown))] = -1
    shares = draw(hnp.arrays(np.int64, (n, classes), elements=st.integers(0, 4))) + 0.0
    shares[shares.sum(axis=1) == 0] = 1
    return truth, shares / shares.sum(axis=1, keepdims=True)


def one_hot(truth, classes):
    rows = (truth[:, None] == np.arange(classes)).astype(float)
    return np.where(truth[:, None] < 0, np.nan, rows)


def sample(n=60, classes=3, shift=1.5, seed=0):
    """One-hot classes of n studies and the probabilities of a model of them."""
    rng = np.random.default_rng(seed)
    truth = np.resize(np.arange(classes), n)
    logits = rng.normal(size=(n, classes)) + shift * np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.eye(classes)[truth], probabilities


def together(table):
    return table[table["label"] == COLUMN].set_index("metric")


# ----------------------------------------------------------------------------------------- points


def reference(truth, probabilities, called):
    """The figures by scikit-learn; those of a ranking need every class."""
    classes = probabilities.shape[1]
    numbers = list(range(classes))
    values = {
        "accuracy": sklearn_metrics.accuracy_score(truth, called),
        "f1_macro": sklearn_metrics.f1_score(truth, called, average="macro"),
        "mean_absolute_error": sklearn_metrics.mean_absolute_error(truth, called),
        "log_loss": sklearn_metrics.log_loss(truth, probabilities, labels=numbers),
        "brier": sklearn_metrics.brier_score_loss(
            truth, probabilities, labels=numbers, scale_by_half=False
        ),
    }
    present = np.unique(truth)
    values["balanced_accuracy"] = sklearn_metrics.recall_score(
        truth, called, average="macro", labels=present
    )
    if len(np.unique([truth, called])) > 1:
        values["kappa"] = sklearn_metrics.cohen_kappa_score(truth, called)
        values["kappa_quadratic"] = sklearn_metrics.cohen_kappa_score(
            truth, called, weights="quadratic", labels=numbers
        )
    if len(present) == classes:
        values["balanced_accuracy"] = sklearn_metrics.balanced_accuracy_score(truth, called)
        values |= {"auroc": areas(truth, probabilities, "ovr")}
        values |= {"auroc_pairwise": areas(truth, probabilities, "ovo")}
    return values


def areas(truth, probabilities, kind):
    if probabilities.shape[1] == 2:
        return sklearn_metrics.roc_auc_score(truth, probabilities[:, 1])
    # scikit-learn wants sums of exactly 1.
    return sklearn_metrics.roc_auc_score(truth, probabilities, multi_class=kind)


@examples
@given(predictions(), st.data())
def test_the_metrics_equal_scikit_learn(drawn, data):
    truth, probabilities = drawn
    known, classes = truth >= 0, probabilities.shape[1]
    called = data.draw(
        st.sampled_from([probabilities.argmax(axis=1), np.zeros(len(truth), np.int64)])
    )
    values = metrics.class_point_metrics(one_hot(truth, classes), probabilities, called, True)
    expected = reference(truth[known], probabilities[known], called[known])
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-12), name
    assert set(values) == {*expected, "expected_calibration_error"}


@examples
@given(predictions(every_class=False))
def test_a_class_without_a_study_is_left_out_of_means_as_scikit_learn_does(drawn):
    truth, probabilities = drawn
    known, classes = truth >= 0, probabilities.shape[1]
    called = probabilities.argmax(axis=1)
    values = metrics.class_point_metrics(one_hot(truth, classes), probabilities, called, True)
    for name, value in reference(truth[known], probabilities[known], called[known]).items():
        assert values[name] == pytest.approx(value, abs=1e-12), name


def test_hand_and_till_is_its_equation():
    truth, probabilities = sample(classes=4)
    number, terms = truth.argmax(axis=1), []
    for i, j in itertools.combinations(range(4), 2):
        of_pair = []
        for own, other in ((i, j), (j, i)):
            pairs = itertools.product(
                probabilities[number == own, own], probabilities[number == other, own]
            )
            of_pair.append(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))
        terms.append(np.mean(of_pair))
    values = metrics.class_point_metrics(truth, probabilities)
    assert values["auroc_pairwise"] == pytest.approx(np.mean(terms))


def test_calibration_error_is_that_of_the_most_probable_class():
    truth, probabilities = sample()
    right = probabilities.argmax(axis=1) == truth.argmax(axis=1)
    top, total = probabilities.max(axis=1), 0.0
    for low in np.arange(10) / 10:
        inside = (top >= low) & (top < low + 0.1)
        total += abs((right[inside] - top[inside]).sum()) / len(top)
    # Costs change the call, not what the probabilities say.
    for called in (None, np.zeros(60, int)):
        values = metrics.class_point_metrics(truth, probabilities, called)
        assert values["expected_calibration_error"] == pytest.approx(total)
    labels, confidence = metrics.top_class(truth, probabilities)
    np.testing.assert_array_equal(labels, right)
    np.testing.assert_array_equal(confidence, top)


def test_of_two_classes_the_metrics_are_those_of_a_label():
    truth, probabilities = sample(classes=2)
    values = metrics.class_point_metrics(truth, probabilities)
    of_label = metrics.all_metrics(truth[:, 1], probabilities[:, 1], names=metrics.CATALOGUE)
    for name in ("accuracy", "balanced_accuracy", "auroc", "f1_macro"):
        assert values[name] == pytest.approx(of_label[name]), name
    assert values["auroc_pairwise"] == pytest.approx(of_label["auroc"])
    assert values["brier"] == pytest.approx(2 * of_label["brier"])
    table = metrics.evaluate_classes(truth, probabilities, classes_of(2, ordered=False))
    label = metrics.evaluate_predictions(truth[:, 1:], probabilities[:, 1:], ["b"])
    rows, expected = (part.set_index("metric") for part in (table[table["label"] == "b"], label))
    for name in rows.index:
        assert rows.loc[name, "low"] == pytest.approx(expected.loc[name, "low"]), name
        assert rows.loc[name, "high"] == pytest.approx(expected.loc[name, "high"]), name
    assert together(table).loc["accuracy", "low"] == pytest.approx(expected.loc["accuracy", "low"])


@examples
@given(predictions(), st.data())
def test_weights_are_how_often_a_study_stands_in_the_sample(drawn, data):
    truth, probabilities = drawn
    labels = one_hot(truth, probabilities.shape[1])
    weights = data.draw(hnp.arrays(np.int64, (2, len(truth)), elements=st.integers(0, 3)))
    weighted = metrics.class_point_metrics(labels, probabilities, None, True, weights=weights)
    for i, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(truth)), counts)
        repeated = metrics.class_point_metrics(labels[rows], probabilities[rows], None, True)
        for name, value in repeated.items():
            assert weighted[name][i] == pytest.approx(value, nan_ok=True), name


@examples
@given(predictions(), st.randoms(use_true_random=False))
def test_neither_the_order_of_classes_nor_that_of_studies_matters(drawn, random):
    truth, probabilities = drawn
    classes = probabilities.shape[1]
    labels, order = one_hot(truth, classes), list(range(classes))
    random.shuffle(order)
    rows = list(range(len(truth)))
    random.shuffle(rows)
    called = probabilities.argmax(axis=1)
    position = np.argsort(order)
    before = metrics.class_point_metrics(labels, probabilities, called)
    after = metrics.class_point_metrics(
        labels[rows][:, order], probabilities[rows][:, order], position[called[rows]]
    )
    for name, value in before.items():
        # Of equally probable classes the first is the top one.
        if name != "expected_calibration_error":
            assert after[name] == pytest.approx(value, nan_ok=True), name
    grades = [
        metrics.class_point_metrics(labels[:, ::step], probabilities[:, ::step], calls, True)
        for step, calls in ((1, called), (-1, classes - 1 - called))
    ]
    for name in ORDERED:
        assert grades[0][name] == pytest.approx(grades[1][name], nan_ok=True), name


def test_impossible_input_is_refused():
    truth, probabilities = sample(n=6)
    with pytest.raises(InputError, match=r"truth \(6, 3\) and probabilities \(6, 2\) do not fit"):
        metrics.class_point_metrics(truth, probabilities[:, :2])
    with pytest.raises(InputError, match=r"\[1.0, 1.0, 0.0\] of study 1: expected one 1"):
        metrics.class_point_metrics(np.vstack([truth[:1], [[1, 1, 0]] * 5]), probabilities)
    with pytest.raises(InputError, match="of study 0: expected one 1"):
        metrics.class_point_metrics(np.where(truth == 1, np.nan, truth), probabilities)
    with pytest.raises(InputError, match=r"of study 0: expected numbers .* add up to 1"):
        metrics.class_point_metrics(truth, probabilities * 0.9)
    with pytest.raises(InputError, match="expected the number of a class, 0 to 2"):
        metrics.class_point_metrics(truth, probabilities, np.full(6, 3))
    with pytest.raises(InputError, match="expected the number of a class, 0 to 2"):
        metrics.confusion_table(truth, np.full(6, 3), classes_of(3))
    with pytest.raises(InputError, match=r"costs \(2, 2\) of 3 classes: expected \(3, 3\)"):
        metrics.class_point_metrics(truth, probabilities, costs=np.ones((2, 2)))


# ------------------------------------------------------------------------------------------ tables


def test_the_table_has_each_class_against_the_rest_and_all_together():
    truth, probabilities = sample(80, 4)
    called = np.random.default_rng(1).integers(4, size=80)
    table = metrics.evaluate_classes(truth, probabilities, classes_of(4), called, costs=np.eye(4))
    assert list(table["label"].unique()) == [COLUMN, "a", "b", "c", "d"]
    for k, name in enumerate("abcd"):
        rows, hits = table[table["label"] == name].set_index("metric")["value"], called == k
        assert rows["recall"] == sklearn_metrics.recall_score(truth[:, k], hits)
        assert rows["precision"] == sklearn_metrics.precision_score(truth[:, k], hits)
        assert rows["f1"] == pytest.approx(sklearn_metrics.f1_score(truth[:, k], hits))
        assert rows["auroc"] == sklearn_metrics.roc_auc_score(truth[:, k], probabilities[:, k])
        assert not {"accuracy", *metrics.TRADE_OFFS} & set(rows.index)
    points = metrics.class_point_metrics(truth, probabilities, called, True, np.eye(4))
    pd.testing.assert_series_equal(
        together(table)["value"].astype(float),
        pd.Series(points).astype(float),
        check_names=False,
    )
    assert table["threshold"].isna().all()
    has_interval = table["low"].notna()
    assert list(table[~has_interval]["metric"]) == ["expected_calibration_error"]
    assert (table["interval"] != "").eq(has_interval).all()
    assert (table["low"] <= table["value"] + 1e-12)[has_interval].all()
    assert (table["value"] <= table["high"] + 1e-12)[has_interval].all()
    only_named = metrics.evaluate_classes(truth, probabilities, classes_of(4, ordered=False))
    assert not {*ORDERED, "expected_cost"} & set(only_named["metric"])


def test_the_order_of_the_classes_changes_no_row_of_the_table():
    truth, probabilities = sample(50, 3)
    costs, order = np.array([[0, 2, 1], [3, 0, 1], [5, 4, 0.0]]), [2, 0, 1]
    turned = Classes(COLUMN, tuple("cab"))
    first = metrics.evaluate_classes(truth, probabilities, classes_of(3, False), costs=costs)
    second = metrics.evaluate_classes(
        truth[:, order], probabilities[:, order], turned, costs=costs[np.ix_(order, order)]
    )
    keys = ["label", "metric"]
    pd.testing.assert_frame_equal(
        first.sort_values(keys, ignore_index=True), second.sort_values(keys, ignore_index=True)
    )


def test_accuracy_has_wilson_of_studies_or_of_as_many_as_the_patients_give():
    truth, probabilities = sample()
    row = together(metrics.evaluate_classes(truth, probabilities, classes_of(3))).loc["accuracy"]
    assert row["interval"] == "Wilson"
    expected = stats.binomtest(round(row["value"] * 60), 60).proportion_ci(method="wilson")
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    # Every study three times over says no more than once.
    thrice = [np.repeat(part, 3, axis=0) for part in (truth, probabilities, np.arange(60))]
    copied = metrics.evaluate_classes(*thrice[:2], classes_of(3), patients=thrice[2])
    many = together(copied).loc["accuracy"]
    assert many["interval"] == "Wilson, effective n"
    assert (many["low"], many["high"]) == pytest.approx((row["low"], row["high"]), abs=0.005)
    once = together(metrics.evaluate_classes(truth, probabilities, classes_of(3)))
    wide = (once["high"] - once["low"]).dropna()
    np.testing.assert_allclose(wide, together(copied).eval("high - low").dropna(), rtol=0.05)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_model_without_error_has_intervals_of_some_width(classes):
    truth = np.eye(classes)[np.resize(np.arange(classes), 57)]
    rows = together(
        metrics.evaluate_classes(truth, truth, classes_of(classes), costs=1 - np.eye(classes))
    )
    least = ["mean_absolute_error", "log_loss", "brier", "expected_cost"]
    for name, row in rows.drop(index="expected_calibration_error").iterrows():
        assert row["value"] == pytest.approx(0 if name in least else 1, abs=1e-12), name
        assert row["high"] - row["low"] > 0.01, name


def test_what_cannot_be_said_has_a_note():
    truth, probabilities = sample(60, 4)
    truth[truth[:, 3] == 1] = np.nan
    absent = together(metrics.evaluate_classes(truth, probabilities, classes_of(4)))
    for name in ("auroc", "auroc_pairwise", "balanced_accuracy"):
        assert absent.loc[name, "note"].startswith("without d: no study"), name
        assert absent.loc[name, "low"] < absent.loc[name, "value"]
    truth[3] = [0, 0, 0, 1]
    alone = together(metrics.evaluate_classes(truth, probabilities, classes_of(4)))
    for name in ("auroc", "auroc_pairwise", "balanced_accuracy", "f1_macro"):
        assert np.isnan(alone.loc[name, "low"]), name
        assert alone.loc[name, "note"] == "no interval: one patient of d", name
    assert alone.loc["accuracy", "note"].startswith("1 patient of d: ")
    few = together(metrics.evaluate_classes(*sample(27), classes_of(3)))
    assert few.loc["kappa", "note"].startswith("9 patients of a: these figures describe them")
    one_class = np.eye(3)[np.zeros(20, int)]
    rows = together(metrics.evaluate_classes(one_class, one_class, classes_of(3)))
    assert rows.loc["kappa", "note"] == "undefined: all studies are of one class and called it"
    assert np.isnan(rows.loc["auroc", "value"])
    nothing = together(
        metrics.evaluate_classes(np.full((5, 3), np.nan), np.eye(3)[[0] * 5], classes_of(3))
    )
    assert nothing["value"].isna().all()
    assert (nothing["note"] != "").all()


@examples
@given(predictions(every_class=False, most_unknown=6), st.data())
def test_any_table_is_whole_and_within_its_bounds(drawn, data):
    truth, probabilities = drawn
    classes = probabilities.shape[1]
    patients = data.draw(hnp.arrays(np.int64, len(truth), elements=st.integers(0, 12)))
    labels, costs = one_hot(truth, classes), np.arange(classes**2).reshape(classes, classes)
    first, second = (
        metrics.evaluate_classes(
            labels[o], probabilities[o], classes_of(classes), None, patients[o], costs
        )
        for o in (slice(None), slice(None, None, -1))
    )
    pd.testing.assert_frame_equal(first, second)
    said = first[first["low"].notna()]
    assert (said["low"] <= said["value"] + 1e-9).all()
    assert (said["value"] <= said["high"] + 1e-9).all()
    assert (first["note"] != "")[first["low"].isna()].all()
    rows = together(first)
    highest = {"brier": 2, "mean_absolute_error": classes - 1, "expected_cost": classes**2 - 1}
    for name, row in rows[rows["low"].notna()].iterrows():
        assert row["low"] >= (-1 if name.startswith("kappa") else 0) - 1e-12, name
        if name != "log_loss":
            assert row["high"] <= highest.get(name, 1) + 1e-12, name
    pairs = metrics.compare_classes(
        labels, (probabilities, probabilities[:, ::-1]), classes_of(classes), patients=patients
    )
    assert (pairs["note"] != "")[pairs["low"].isna()].all()


# --------------------------------------------------------------------------------------- confusion


def test_the_confusion_table_counts_studies_and_has_shares_of_rows():
    truth, probabilities = sample(90)
    truth[:6] = np.nan
    called = metrics.call(probabilities)
    table = metrics.confusion_table(truth, called, classes_of(3))
    known = ~np.isnan(truth[:, 0])
    expected = sklearn_metrics.confusion_matrix(truth[known].argmax(axis=1), called[known])
    np.testing.assert_array_equal(table["count"].to_numpy().reshape(3, 3), expected)
    assert list(table["true"]) == list("aaabbbccc")
    assert list(table["called"]) == list("abc") * 3
    np.testing.assert_allclose(table.groupby("true")["share"].sum(), 1)
    row = table.iloc[0]
    interval = stats.binomtest(row["count"], 28).proportion_ci(method="wilson")
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    twice = metrics.confusion_table(
        *(np.repeat(part, 2, axis=0) for part in (truth, called)),
        classes_of(3),
        np.repeat(np.arange(90), 2),
    )
    np.testing.assert_array_equal(twice["count"], 2 * table["count"])
    np.testing.assert_allclose(twice["high"], table["high"], atol=0.01)
    assert set(twice["interval"]) == {"Wilson, effective n"}
    absent = metrics.confusion_table(truth[:0], called[:0], classes_of(3))
    assert absent["share"].isna().all()
    assert not absent["count"].any()


# ------------------------------------------------------------------------------------- comparisons


def test_accuracies_are_compared_by_mcnemar():
    truth, first = sample(seed=1)
    _, second = sample(seed=2, shift=0.5)
    table = metrics.compare_classes(truth, (first, second), classes_of(3))
    rows, number = together(table), truth.argmax(axis=1)
    right = [probabilities.argmax(axis=1) == number for probabilities in (first, second)]
    alone = ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert rows.loc["accuracy", "p"] == pytest.approx(stats.binomtest(alone[0], sum(alone)).pvalue)
    assert rows.loc["accuracy", "difference"] == pytest.approx((alone[0] - alone[1]) / 60)
    swapped = together(metrics.compare_classes(truth, (second, first), classes_of(3)))
    np.testing.assert_allclose(swapped["difference"], -rows["difference"])
    np.testing.assert_allclose(swapped["low"], -rows["high"])
    assert rows["p"].notna().sum() == 1
    several = metrics.compare_classes(
        truth, (first, second), classes_of(3), patients=np.arange(60) // 2
    )
    assert together(several)["p"].isna().all()


def test_the_aurocs_of_a_class_are_compared_by_delong():
    truth, first = sample(seed=1)
    _, second = sample(seed=2, shift=0.5)
    table = metrics.compare_classes(truth, (first, second), classes_of(3))
    for k, name in enumerate("abc"):
        row = table[(table["label"] == name) & (table["metric"] == "auroc")].iloc[0]
        test = metrics.delong_test(truth[:, k], first[:, k], second[:, k])
        assert (row["p"], row["low"], row["method"]) == (test.p, test.low, "DeLong")


def test_a_model_does_not_differ_from_itself():
    truth, probabilities = sample()
    table = metrics.compare_classes(truth, (probabilities, probabilities), classes_of(3))
    assert (table["difference"] == 0).all()
    said = table[table["low"].notna()]
    assert ((said["low"] <= 0) & (said["high"] >= 0)).all()
    assert set(table["p"].dropna()) == {1.0}


# ------------------------------------------------------------------------------------- calibration


def test_calibration_is_that_of_each_class_and_of_the_top_one():
    truth, probabilities = sample(120)
    truth[5] = np.nan
    patients = np.arange(120) // 2
    table = metrics.class_calibration(truth, probabilities, classes_of(3), patients)
    assert list(table["label"].unique()) == [COLUMN, "a", "b", "c"]
    columns = {name: (truth[:, k], probabilities[:, k]) for k, name in enumerate("abc")}
    columns[COLUMN] = metrics.top_class(truth, probabilities)
    for name, (labels, column) in columns.items():
        rows = table[table["label"] == name].set_index("metric")
        slope = metrics.calibration_slope(labels, column, patients)
        assert rows.loc["calibration_slope", "low"] == slope.low
        error = metrics.expected_calibration_error(labels, column)
        assert rows.loc["expected_calibration_error", "value"] == error
        null = metrics.null_calibration_error(column[~np.isnan(labels)])
        assert tuple(rows.loc["expected_calibration_error", ["null", "null_high"]]) == null


def test_temperature_of_two_classes_is_that_of_a_label():
    for shift in (0.3, 1.0, 4.0, 12.0):
        truth, probabilities = sample(40, 2, shift)
        sharp = metrics.scale_classes(probabilities, 0.4)
        np.testing.assert_allclose(sharp[:, 1], metrics.scale(probabilities[:, 1], 0.4), atol=1e-6)
        expected = metrics.fit_temperature(truth[:, 1], metrics.logits(probabilities[:, 1]))
        assert metrics.fit_class_temperature(truth, probabilities) == pytest.approx(
            expected, abs=1e-5
        )


def test_a_temperature_undoes_what_made_a_model_too_sure():
    rng = np.random.default_rng(0)
    right = rng.dirichlet(np.ones(4), 4000)
    truth = np.eye(4)[(rng.random((4000, 1)) > right.cumsum(axis=1)).sum(axis=1)]
    sure = metrics.scale_classes(right, 1 / 1.8)
    found = metrics.fit_class_temperature(truth, sure)
    assert found == pytest.approx(1.8, abs=0.1)
    np.testing.assert_allclose(metrics.scale_classes(sure, 1.8), right, atol=1e-3)
    assert metrics.fit_class_temperature(truth[:60], right[:60]) == 1.0
    order = [3, 1, 0, 2]
    assert metrics.fit_class_temperature(truth[:, order], sure[:, order]) == pytest.approx(found)
    scaled = metrics.scale_classes(sure, found)
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    np.testing.assert_array_equal(scaled.argmax(axis=1), sure.argmax(axis=1))
    with pytest.raises(InputError, match="at least two classes"):
        metrics.fit_class_temperature(np.eye(3)[[0, 0]], np.eye(3)[[0, 1]])
