"""Training with covariates: what only they tell is learned, from the training studies alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny_network
from covariate_columns import age_and_sex, with_covariates
from interrupted import killed_after
from runs_compared import assert_same_weights
from scipy.special import logit
from small_run import run_small

from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import covariates_alone, metrics
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.explain.explain import explain, explain_study
from medseq_tf.evaluation.predictions import predict_split
from medseq_tf.evaluation.results_text import covariates_alone_text
from medseq_tf.runs.run import COVARIATES_ALONE
from medseq_tf.training.train import train

BOTH = "model.covariates=[age, sex]"


@pytest.fixture(scope="module")
def told(demo_data):
    """The demo cohort with an age and a sex that tell nothing."""
    return age_and_sex(demo_data)


@pytest.fixture(scope="module")
def trained(told, tmp_path_factory):
    return run_small(told, tmp_path_factory.mktemp("runs") / "told", BOTH)


def only_age_tells(demo_data):
    """The demo cohort with labels that have to do with age, and not at all with the slices."""
    prepared, rng = Prepared.load(demo_data), np.random.default_rng(3)
    (label,) = prepared.label_names
    truth = rng.permutation(np.arange(len(prepared)) % 2)
    studies = prepared.studies.assign(**{f"label.{label}": truth.astype(float)})
    prepared = dataclasses.replace(prepared, studies=studies)
    return with_covariates(prepared, age=55 + 20 * truth + rng.normal(0, 4, len(truth)))


@pytest.mark.parametrize("names", ["[]", "[age]"])
def test_what_age_alone_tells_is_learned_with_it_and_not_without(demo_data, tmp_path, names):
    settings = ("fit.epochs=30", "optimizer.learning_rate=0.03", "model.head.units=[]")
    settings += ("sequence.length=2", "augment.gaussian_noise=null")
    settings += ("split.test=0.4", "split.validation=0.1")
    settings += ("model.aggregator={name: mean}", f"model.covariates={names}")
    run = run_small(only_age_tells(demo_data), tmp_path / "run", *settings)
    table = run.metrics.set_index(["split", "metric"])
    auroc = table.loc[("test", "auroc"), "value"]
    assert auroc > 0.95 if names == "[age]" else auroc < 0.8


def test_constants_are_those_of_training_studies_alone(told, trained, tmp_path):
    studies = told.studies.set_index("study_id")
    layer = trained.model().covariates
    ages = studies.loc[trained.splits["train"], "covariate.age"]
    np.testing.assert_allclose(layer.mean, [ages.mean(), 0], rtol=1e-6)
    np.testing.assert_allclose(layer.deviation, [ages.std(ddof=0), 1], rtol=1e-6)
    wild = told.studies.copy()
    others = ~wild["study_id"].isin(trained.splits["train"])
    wild.loc[others, "covariate.age"] = 1e6
    prepared = dataclasses.replace(told, studies=wild)
    again = run_small(prepared, tmp_path / "run", BOTH, "fit.epochs=1").model().covariates
    np.testing.assert_array_equal(again.mean, layer.mean)
    np.testing.assert_array_equal(again.deviation, layer.deviation)


def test_the_model_card_names_the_covariates_among_the_inputs(trained):
    card = (trained.path / "model_card.md").read_text("utf-8")
    assert "| Inputs | The slices, and of each study age, sex." in card


def test_what_stands_for_missing_values_is_learned(trained):
    assert np.asarray(trained.model().covariates.missing).all()


def test_a_killed_run_resumes_to_bitwise_the_same_weights(told, trained, tmp_path, monkeypatch):
    settings = (BOTH, "fit.checkpoint_minutes=0")
    with killed_after(monkeypatch, 4):
        run_small(told, tmp_path / "run", *settings)
    assert_same_weights(run_small(told, tmp_path / "run", *settings, resume=True), trained)


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_features_in_place_of_slices_give_the_same(told, tmp_path, monkeypatch, accumulate):
    tiny_network.install(monkeypatch)
    monkeypatch.setenv("MEDSEQ_TF_FEATURES", str(tmp_path / "features"))
    runs = [
        train(
            tiny_network.recipe(BOTH, f"fit.accumulate={accumulate}", f"features.use={use}"),
            told,
            tmp_path / use,
            track=False,
            verbose=False,
        )
        for use in ("auto", "never")
    ]
    assert_same_weights(*runs)
    tables = [run.predictions["probability"] for run in runs]
    np.testing.assert_allclose(*tables, atol=1e-6)
    layers = [run.model().covariates for run in runs]
    assert np.asarray(layers[0].missing).all()


def test_predicting_again_gives_the_run_s_own_probabilities(told, trained):
    again = predict_split(trained, told, "test").set_index("study")["probability"]
    kept = trained.predictions.query("split == 'test'").set_index("study")["probability"]
    np.testing.assert_allclose(again[kept.index], kept, atol=1e-6)
    blank = with_covariates(told, age=[np.nan] * len(told), sex=[None] * len(told))
    blank.info["columns"]["covariates"]["sex"]["categories"] = ["f", "m"]
    missing = predict_split(trained, blank, "test").set_index("study")["probability"]
    assert np.abs(missing[kept.index] - kept).max() > 1e-4


@pytest.fixture(scope="module")
def other_cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "other"
    options = {"size": 32, "workers": 1, "progress": False}
    return prepare("demo", out=out, patients=24, seed=5, difficulty=0.0, **options)


def test_a_cohort_without_covariates_is_predicted_as_one_whose_are_missing(
    trained, other_cohort, capsys
):
    nothing = evaluate(trained, other_cohort, split="all", resamples=20).predictions
    said = capsys.readouterr().err
    assert "has no covariate age" in said
    assert "has no covariate sex" in said
    strange = with_covariates(
        other_cohort, age=[np.nan] * len(other_cohort), sex=["x"] * len(other_cohort)
    )
    unknown = evaluate(trained, strange, split="all", resamples=20).predictions
    assert "sex is x in 24 studies, which the model does not know" in capsys.readouterr().err
    np.testing.assert_array_equal(unknown["probability"], nothing["probability"])


def test_explain_shows_the_model_the_study_s_own(told, trained):
    kept = trained.predictions.query("split == 'test'").iloc[0]
    explained = explain_study(trained, told, kept["study"])
    assert explained.probabilities[kept["label"]] == pytest.approx(kept["probability"], abs=1e-5)
    assert explained.completeness[kept["label"]] < 0.2
    effects = explained.covariates.set_index("covariate")
    assert effects.index.tolist() == ["age", "sex"]
    own = told.studies.set_index("study_id").loc[kept["study"]]
    words = explain(trained, told, kept["study"]).text()
    for name in ("age", "sex"):
        unknown = told.studies.copy()
        unknown.loc[unknown["study_id"] == kept["study"], f"covariate.{name}"] = np.nan
        table = predict_split(trained, dataclasses.replace(told, studies=unknown), "test")
        without = table.set_index("study").loc[kept["study"], "probability"]
        expected = logit(kept["probability"]) - logit(without)
        assert effects.loc[name, "log_odds"] == pytest.approx(expected, abs=1e-4)
        value = own[f"covariate.{name}"]
        if pd.isna(value):
            assert (expected, effects.loc[name, "value"]) == (0, "missing")
        else:
            assert effects.loc[name, "value"] == (value if name == "sex" else f"{value:g}")
        assert f"{name} {effects.loc[name, 'value']}: {effects.loc[name, 'log_odds']:+.3f}" in words


def test_a_name_that_the_data_set_lacks_is_one_line_before_a_folder_is_made(demo_data, tmp_path):
    with pytest.raises(InputError, match=r"names 'age', but .* has no covariates"):
        run_small(demo_data, tmp_path / "run", BOTH)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------- what covariates alone reach


def test_a_run_keeps_what_covariates_alone_reach_on_the_patients_it_is_tested_on(told, trained):
    table = trained.covariates_alone.set_index("metric")
    assert trained.beyond_covariates["names"] == ["age", "sex"]
    rows = {study: row for row, study in enumerate(told.studies["study_id"])}
    train, validation, test = (
        np.array([rows[study] for study in trained.splits[name]])
        for name in ("train", "validation", "test")
    )
    own = metrics.evaluate_predictions(
        told.labels[test],
        (alone := covariates_alone.probabilities(told, train))[test],
        told.label_names,
        threshold := metrics.choose_threshold(told.labels[validation, 0], alone[validation, 0]),
        told.studies["patient_id"].to_numpy()[test],
    ).set_index("metric")
    for name in ("auroc", "recall", "specificity", "brier"):
        figures = ["value", "low", "high", "n", "positives"]
        np.testing.assert_allclose(
            table.loc[name, figures].astype(float), own.loc[name, figures].astype(float)
        )
    assert table.loc["recall", "threshold"] == pytest.approx(threshold)
    model = trained.metrics.set_index(["split", "metric"])["value"]
    differences = trained.beyond_covariates["differences"]
    (row,) = [row for row in differences if row["metric"] == "auroc"]
    expected = model["test", "auroc"] - own.loc["auroc", "value"]
    assert row["difference"] == pytest.approx(expected)
    assert "DeLong" in row["method"]
    words = covariates_alone_text(trained.covariates_alone, trained.beyond_covariates)
    assert f"AUROC {own.loc['auroc', 'value']:.3f}" in words
    assert "covariates alone (age, sex; logistic regression)" in words


def test_it_is_there_where_the_model_reads_none_and_out_of_fold_in_folds(told, tmp_path):
    run = run_small(told, tmp_path / "run", "fit.epochs=1", folds=2)
    table = pd.read_parquet(run.path / COVARIATES_ALONE)
    tested = table[table["split"] == "test"].set_index("study")["probability"]
    assert sorted(tested.index) == sorted(told.studies["study_id"])
    rows = pd.Series(range(len(told)), told.studies["study_id"])
    for fold in run.folds:
        train, test = (rows[fold.splits[name]].to_numpy() for name in ("train", "test"))
        alone = covariates_alone.probabilities(told, train)[test, 0]
        np.testing.assert_allclose(tested[fold.splits["test"]], alone)
    assert set(run.covariates_alone["metric"]) >= {"auroc", "brier"}
    assert run.beyond_covariates["differences"]


def test_a_run_without_any_says_nothing(finished):
    assert finished.covariates_alone is None
    assert "covariates_alone" not in (finished.path / "metrics.json").read_text()
    assert not (finished.path / COVARIATES_ALONE).exists()


def test_classes_too(tmp_path):
    options = {"size": 32, "workers": 1, "progress": False, "sites": 2}
    data = prepare("demo", out=tmp_path / "data", kind="grades", patients=40, **options)
    run = run_small(data, tmp_path / "run", "fit.epochs=1", "model.covariates=[sex, age]")
    assert set(run.covariates_alone["label"]) == {"grade", "mild", "moderate", "severe"}
    kept = pd.read_parquet(run.path / COVARIATES_ALONE)
    sums = kept.groupby("study")["probability"].sum()
    np.testing.assert_allclose(sums, 1)
    assert run.model().covariates.names == ["sex", "age"]
    words = covariates_alone_text(run.covariates_alone, run.beyond_covariates)
    assert "grade: AUROC" in words
