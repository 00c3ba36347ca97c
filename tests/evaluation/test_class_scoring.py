"""Tables of predictions of classes: calls by cost, folds, confusion, calibration, text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from class_predictions import class_predictions
from scipy import special
from sklearn import metrics as reference

from medseq_tf.evaluation import cross_validation, metrics, results_text, scoring
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.comparison import compare_tables
from medseq_tf.evaluation.cross_validation import ClassFolds
from medseq_tf.evaluation.evaluate import evaluate_predictions
from medseq_tf.evaluation.predictions import calibrated, fit_temperatures
from medseq_tf.readers.classes import Classes

CLASSES = Classes("tumour", ("glioma", "meningioma", "pituitary"))
GRADES = Classes("grade", ("low", "middle", "high"), ordered=True)


def by_name(table):
    return table.set_index(["label", "metric"])


def folded(classes=CLASSES, **settings):
    return class_predictions(classes, **{"folds": 5, "repeats": 2, **settings})


def score(predictions, classes=CLASSES, **settings):
    return scoring.score(predictions, classes.names, 300, classes, **settings)


# ------------------------------------------------------------------------------------ invariance


@pytest.mark.parametrize("make", [class_predictions, folded])
def test_neither_the_order_of_rows_nor_of_classes_nor_their_names_change_a_figure(make, rng):
    table = make(classes=CLASSES)
    found = by_name(score(table))
    mixed = table.iloc[rng.permutation(len(table))]
    others = {"glioma": "c", "meningioma": "a", "pituitary": "b"}
    renamed = mixed.assign(label=mixed["label"].map(others))
    again = by_name(score(renamed, Classes("tumour", ("a", "b", "c"))))
    again = again.rename(index={new: name for name, new in others.items()})
    columns = ["value", "low", "high"]
    pd.testing.assert_frame_equal(
        again[columns].sort_index(), found[columns].sort_index(), atol=1e-9, rtol=1e-9
    )


def test_predictions_as_arrays_are_those_of_the_table(rng):
    table = class_predictions(CLASSES, unknown=4)
    studies = ClassTable.of(table.iloc[rng.permutation(len(table))], CLASSES)
    assert (len(studies), len(studies.known)) == (60, 56)
    for row, study in enumerate(studies.studies["study"]):
        own = table[table["study"] == study].set_index("label").loc[list(CLASSES.names)]
        np.testing.assert_array_equal(studies.probabilities[row], own["probability"])
        np.testing.assert_array_equal(studies.calibrated[row], own["calibrated"])
        np.testing.assert_array_equal(studies.truth[row], own["truth"])
        assert own["positive"].to_numpy().nonzero()[0] == [studies.called[row]]


# ----------------------------------------------------------------------------------------- folds


def test_folds_are_ranked_apart_and_called_together():
    table = folded(GRADES, count=150)
    studies, found = ClassTable.of(table, GRADES), by_name(score(table, GRADES))["value"]["grade"]
    truth = studies.truth.argmax(axis=1)
    kappa = reference.cohen_kappa_score(truth, studies.called, weights="quadratic")
    expected = {
        "accuracy": (truth == studies.called).mean(),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, studies.called),
        "f1_macro": reference.f1_score(truth, studies.called, average="macro"),
        "kappa": reference.cohen_kappa_score(truth, studies.called),
        "kappa_quadratic": kappa,
        "mean_absolute_error": np.abs(truth - studies.called).mean(),
        "log_loss": reference.log_loss(truth, studies.probabilities),
        "brier": ((studies.probabilities - studies.truth) ** 2).sum(axis=1).mean(),
    }
    fold = studies.studies["fold"].to_numpy()
    for name, kind in (("auroc", "ovr"), ("auroc_pairwise", "ovo")):
        by_fold = [
            reference.roc_auc_score(
                truth[fold == f], studies.probabilities[fold == f], multi_class=kind
            )
            for f in np.unique(fold)
        ]
        expected[name] = np.mean(by_fold)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_an_interval_of_folds_holds_its_figure_and_is_wider_than_that_of_a_fitted_model():
    table = class_predictions(CLASSES, count=120, folds=5)
    of_folds, of_model = (by_name(score(rows)) for rows in (table, table.drop(columns="fold")))
    having = of_folds[of_folds["low"].notna()]
    assert ((having["low"] <= having["value"]) & (having["value"] <= having["high"])).all()
    assert set(having["interval"]) == {cross_validation.METHOD}
    width = (of_folds["high"] - of_folds["low"]) / (of_model["high"] - of_model["low"])
    together = width["tumour"].dropna()
    assert len(together) == 7
    assert (together > 1.2).all()
    assert of_folds.loc[("tumour", "log_loss"), "note"].startswith("no interval: gross errors")


def test_a_class_against_the_rest_is_what_a_label_of_it_would_be():
    table = folded()
    found = by_name(score(table))
    own = table[table["label"] == "glioma"]
    cross_validated = cross_validation.held_out(own, ["glioma"])
    label = by_name(cross_validation.evaluate_folds(cross_validated, 300))
    for name in ("auroc", "average_precision", "brier"):
        columns = ["value", "low", "high"]
        pd.testing.assert_series_equal(
            found.loc[("glioma", name), columns], label.loc[("glioma", name), columns]
        )


def test_a_fold_without_a_class_and_a_class_without_a_study_are_said():
    table = folded(absent="pituitary")
    found = by_name(score(table))
    lacking = table["study"].isin(
        table.query("label == 'glioma' and truth == 1 and fold == 2")["study"]
    )
    partly = by_name(score(table[~(lacking & (table["fold"] == 2))]))
    assert "glioma: without fold 2: not both classes" in partly.loc[("tumour", "auroc"), "note"]
    assert "without pituitary" in found.loc[("tumour", "balanced_accuracy"), "note"]
    assert np.isfinite(found.loc[("tumour", "accuracy"), ["value", "low", "high"]].tolist()).all()
    assert np.isnan(found.loc[("pituitary", "auroc"), "value"])


def test_a_recipe_compared_with_itself_is_alike_and_a_far_better_one_is_found():
    first, second = (
        ClassTable.of(folded(seed=seed, sharpness=sharpness, count=120), CLASSES)
        for seed, sharpness in ((0, 3.0), (1, 0.3))
    )
    same = by_name(cross_validation.compare_class_folds(first, first, 200))
    known = same.drop("expected_calibration_error", level="metric")
    assert (known[["difference", "low", "high"]].abs().to_numpy() < 1e-9).all()
    assert known.loc[("tumour", "auroc"), "p"] == 1
    other = by_name(cross_validation.compare_class_folds(first, second, 200)).loc["tumour"]
    for name in ("accuracy", "balanced_accuracy", "auroc", "auroc_pairwise", "f1_macro", "kappa"):
        assert other.loc[name, "low"] > 0, name
    for name in ("log_loss", "brier"):
        assert other.loc[name, "high"] < 0, name
    assert other.loc["auroc", "p"] < 0.001
    assert other["p"].notna().sum() == 2


def test_a_comparison_is_the_difference_of_the_figures():
    tables = [folded(seed=seed) for seed in (0, 1)]
    first, second = (by_name(score(table))["value"] for table in tables)
    studies = [ClassTable.of(table, CLASSES) for table in tables]
    found = by_name(cross_validation.compare_class_folds(*studies, 50))["difference"]
    pd.testing.assert_series_equal((first - second)[found.index], found, check_names=False)


def test_the_mean_of_folds_is_of_their_own_figures():
    table = folded()
    summary = by_name(scoring.fold_summary(table, CLASSES))
    by_fold = scoring.fold_table(table, CLASSES)
    assert by_fold["label"].tolist() == ["tumour"] * 10
    assert summary.loc[("tumour", "kappa"), "mean"] == pytest.approx(by_fold["kappa"].mean())
    text = results_text.folds_text(table, CLASSES)
    assert "balanced_accuracy" in text


# ----------------------------------------------------------------------------------------- calls


def test_costs_change_calls_and_their_expectation_is_measured():
    table = class_predictions(CLASSES, count=600, sharpness=1.0)
    costs = np.array([[0, 1, 1], [1, 0, 1], [20, 20, 0]], float)
    studies = ClassTable.of(table, CLASSES)
    called = metrics.call(studies.probabilities, costs)
    names = np.array(CLASSES.names)[called]
    by_costs = table.assign(
        positive=table["label"]
        == table["study"].map(dict(zip(studies.studies["study"], names, strict=True)))
    )
    found, before = by_name(score(by_costs, costs=costs)), by_name(score(table, costs=costs))
    truth = studies.truth.argmax(axis=1)
    assert found.loc[("tumour", "expected_cost"), "value"] == costs[truth, called].mean()
    cost = ("tumour", "expected_cost")
    assert found.loc[cost, "value"] < before.loc[cost, "value"]
    assert found.loc[("tumour", "auroc"), "value"] == before.loc[("tumour", "auroc"), "value"]
    assert cost not in by_name(score(table)).index


def test_the_confusion_matrix_counts_every_study_and_means_over_repeats():
    table = folded(unknown=3)
    found = scoring.confusion_table(table, CLASSES)
    studies = ClassTable.of(table, CLASSES).known
    expected = reference.confusion_matrix(studies.truth.argmax(axis=1), studies.called) / 2
    np.testing.assert_array_equal(found["count"].to_numpy().reshape(3, 3), expected)
    np.testing.assert_allclose(found.groupby("true")["share"].sum(), 1)
    assert found["count"].sum() == 57
    text = results_text.confusion_text(found, CLASSES)
    assert "57 test studies" in text
    for name in CLASSES.names:
        row = next(line for line in text.splitlines() if line.startswith(f"    {name} "))
        assert row.count("(") == 3


def test_a_cell_of_the_folds_matrix_has_the_interval_of_the_recipe():
    table = folded(count=150)
    found, recall = scoring.confusion_table(table, CLASSES), by_name(score(table))
    for name in CLASSES.names:
        cell = found.query("true == @name and called == @name").iloc[0]
        expected = recall.loc[(name, "recall"), ["value", "low", "high"]].astype(float)
        np.testing.assert_allclose(
            cell[["share", "low", "high"]].astype(float), expected, atol=0.02
        )


@pytest.mark.parametrize("make", [class_predictions, folded])
def test_where_no_class_is_known_there_are_no_figures(make):
    table = make(classes=CLASSES, unknown=60)
    found = evaluate_predictions(table, list(CLASSES.names), 50, None, CLASSES)
    assert found.table["value"].isna().all()
    assert found.confusion["count"].eq(0).all()
    assert "60" not in found.text()


# ----------------------------------------------------------------------------------- calibration


def test_repeats_of_a_study_make_no_one_surer_of_its_calibration():
    once = class_predictions(CLASSES, folds=5)
    thrice = pd.concat(
        [once.assign(repeat=repeat, fold=once["fold"] + 5 * repeat) for repeat in range(3)]
    )
    nulls = [
        scoring.calibration_table(table, CLASSES)["before_null_high"].dropna()
        for table in (once, thrice)
    ]
    np.testing.assert_allclose(*nulls, atol=0.005)


def test_one_temperature_scales_the_classes_together():
    table = class_predictions(CLASSES, count=300, sharpness=1.0).drop(columns="calibrated")
    probabilities = ClassTable.of(table, CLASSES).probabilities
    sharp = special.softmax(3 * np.log(probabilities), axis=1)  # three times too sure
    told = pd.DataFrame(sharp, ClassTable.of(table, CLASSES).studies["study"], CLASSES.names)
    table["probability"] = [
        told.loc[s, n] for s, n in zip(table["study"], table["label"], strict=True)
    ]
    temperatures, notes = fit_temperatures(table.assign(split="validation"), CLASSES)
    assert (notes, list(temperatures)) == ([], ["tumour"])
    assert temperatures["tumour"] > 1.5
    scaled = calibrated(table, temperatures, CLASSES)
    studies = ClassTable.of(scaled, CLASSES)
    expected = special.softmax(np.log(studies.probabilities) / temperatures["tumour"], axis=1)
    np.testing.assert_allclose(studies.calibrated, expected, atol=1e-6)
    measured = scoring.calibration_table(scaled, CLASSES)
    error = measured[measured["metric"] == "expected_calibration_error"].set_index("label").iloc[0]
    assert error.name == "tumour"
    assert error["after"] < error["before"]


def test_a_validation_of_one_class_scales_nothing():
    table = class_predictions(CLASSES).assign(split="validation")
    only = table[table["study"].isin(table.query("label == 'glioma' and truth == 1")["study"])]
    for split in (only, table.assign(split="test")):
        temperatures, notes = fit_temperatures(split, CLASSES)
        assert temperatures == {"tumour": 1.0}
        assert notes == [
            "tumour: validation does not have two classes, so probabilities are not scaled"
        ]


# -------------------------------------------------------------------------------------- all of it


@pytest.mark.parametrize("make", [class_predictions, folded])
def test_everything_is_printed_those_of_all_classes_first(make):
    table = make(classes=GRADES)
    groups = pd.DataFrame({"site": ["a", "b"] * 30}, table["study"].unique())
    found = evaluate_predictions(table, list(GRADES.names), 50, groups, GRADES)
    text = found.text()
    lines = text.splitlines()
    assert lines[1].split()[1:3] == ["grade", "accuracy"]
    assert "kappa_quadratic" in text
    assert "site a" in text
    assert set(found.subgroups["metric"]) == {"accuracy", "balanced_accuracy", "auroc"}
    assert len(found.json_lines().splitlines()) > 50
    assert "macro" not in set(found.table["label"])


def test_no_figure_of_validation_speaks_of_a_threshold():
    own = class_predictions(CLASSES).assign(split="validation")
    tested = class_predictions(CLASSES, seed=1, truth_seed=1)
    both = pd.concat([own, tested.assign(study="t" + tested["study"])], ignore_index=True)
    evaluation = evaluate_predictions(both, list(CLASSES.names), 50, classes=CLASSES)
    other = class_predictions(CLASSES, seed=2).assign(split="validation")
    compared = compare_tables({"a": own, "b": other}, CLASSES.names, 50, CLASSES)
    for text in (evaluation.text(), compared.text()):
        assert "the epoch and the temperature were chosen on the validation studies" in text
        assert "threshold" not in text


def test_pairs_and_classes_are_of_the_same_patients():
    folds = ClassFolds.of(ClassTable.of(folded(), CLASSES))
    assert (len(folds.pairs), len(folds.against_rest)) == (6, 3)
    assert {label.everyone for label in (*folds.pairs, *folds.against_rest)} == {30}
    assert folds.counts == (60, 60, 30)


def test_what_validation_chose_and_what_calibration_is_of_are_said_as_of_classes():
    table = class_predictions(CLASSES)
    table = pd.concat([table, table.assign(split="validation")], ignore_index=True)
    text = evaluate_predictions(table, list(CLASSES.names), 50, classes=CLASSES).text()
    assert "the epoch and the temperature were chosen on the validation studies" in text
    assert "threshold" not in text
    assert "tumour: the most probable class, and whether it is the right one" in text
