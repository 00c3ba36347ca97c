"""Runs whose head is solved: what they predict, against scikit-learn, and what they refuse."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import tiny_network
from covariate_columns import age_and_sex, with_covariates
from linear_recipe import linear_recipe
from runs_compared import assert_same_weights
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.explain.explain import explain_study
from medseq_tf.evaluation.predictions import predict_split
from medseq_tf.input.batches import evaluation_batches
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import applications
from medseq_tf.runs.run import Run
from medseq_tf.serving.export import export
from medseq_tf.training import linear_fitting
from medseq_tf.training.linear_head import fit_linear, study_vectors
from medseq_tf.training.train import train

NETWORK = applications.network


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        tiny_network.install(patch)
        patch.setenv("MEDSEQ_TF_FEATURES", str(tmp_path_factory.mktemp("features")))
        yield


def solved(data, out, *overrides, **arguments):
    arguments = {"track": False, "verbose": False, **arguments}
    return train(linear_recipe(*overrides), data, out, **arguments)


@pytest.fixture(scope="module")
def finished(demo_data, tmp_path_factory):
    return solved(demo_data, tmp_path_factory.mktemp("runs") / "linear")


def statistics(run, prepared):
    """Mean, maximum and deviation of every study's features, computed one slice by one."""
    recipe, model = run.experiment, run.model()
    vectors = np.zeros((len(prepared), 3 * 6))
    batches = evaluation_batches(prepared, np.arange(len(prepared)), recipe, batch_size=1)
    for inputs, _, (row,) in batches:
        features = np.asarray(model.extract(inputs["slices"], inputs["lengths"]))[0]
        vectors[int(row)] = [*features.mean(0), *features.max(0), *features.std(0)]
    return vectors


def expected_probabilities(run, prepared, truth, vectors=None):
    """`(studies, outputs)` by scikit-learn, at the run's strength."""
    ids = prepared.studies["study_id"]
    train_rows = np.flatnonzero(ids.isin(run.splits["train"]))
    vectors = statistics(run, prepared) if vectors is None else vectors
    standardise = StandardScaler().fit(vectors[train_rows])
    model = LogisticRegression(C=run.history["strength"].item(), tol=1e-9, max_iter=10_000)
    model.fit(standardise.transform(vectors[train_rows]), truth[train_rows])
    table = pd.DataFrame(model.predict_proba(standardise.transform(vectors)), index=ids)
    return table if table.shape[1] > 2 else table[[1]]


def predicted(run, split="test"):
    table = run.predictions.query("split == @split")
    names = list(dict.fromkeys(table["label"]))
    return table.pivot(index="study", columns="label", values="probability")[names]


def test_a_label_is_predicted_as_scikit_learn_does(demo_data, finished):
    prepared = Prepared.open(demo_data)
    expected = expected_probabilities(finished, prepared, prepared.labels[:, 0])
    for split in ("validation", "test"):
        found = predicted(finished, split)
        np.testing.assert_allclose(found, expected.loc[found.index], atol=1e-5)


def test_there_is_one_epoch_with_the_strength_that_was_chosen(finished):
    (row,) = finished.history.to_dict("records")
    assert row["epoch"] == 1
    assert row["strength"] > 0
    assert {"loss", "val_loss", "val_auroc", "seconds"} < set(row)
    assert finished.thresholds


class Logged:
    """A tracker that keeps the metrics of each step."""

    run_id = reference = None

    def __init__(self):
        self.steps = {}

    def metrics(self, values, step=0):
        self.steps.setdefault(step, {}).update(values)

    def params(self, *values, **settings):
        pass

    dataset = artifact = tags = params


def test_the_strength_is_logged(demo_data, finished, tmp_path):
    logged = Logged()
    solved(demo_data, tmp_path / "run", track=logged)
    assert logged.steps[1]["strength"] == finished.history["strength"].item()
    assert "val_auroc" in logged.steps[1]


def test_the_training_loss_is_that_of_the_training_studies(demo_data, finished):
    prepared = Prepared.open(demo_data)
    expected = expected_probabilities(finished, prepared, prepared.labels[:, 0])
    truth = prepared.studies.set_index("study_id")[f"label.{prepared.label_names[0]}"]
    told, true = (values.loc[finished.splits["train"]] for values in (expected[1], truth))
    loss = -np.log(np.where(true == 1, told, 1 - told)).mean()
    assert finished.history["loss"].item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("settings", [(), ("fit.strength=0.02", "loss.weights=balanced")])
def test_classes_are_predicted_as_scikit_learn_does(class_data, tmp_path, settings):
    prepared = Prepared.open(class_data)
    run = solved(prepared, tmp_path / "run", *settings)
    assert not settings or run.history["strength"].item() == 0.02
    if not settings:
        expected = expected_probabilities(run, prepared, prepared.labels.argmax(1))
        found = predicted(run)[list(prepared.label_names)]
        np.testing.assert_allclose(found, expected.loc[found.index], atol=1e-5)
    np.testing.assert_allclose(predicted(run).sum(axis=1), 1, atol=1e-6)


def test_the_same_run_twice_is_the_same_to_the_bit(demo_data, finished, tmp_path):
    assert_same_weights(solved(demo_data, tmp_path / "run"), finished)


def test_batches_in_place_of_features_give_the_same(demo_data, finished, tmp_path):
    run = solved(demo_data, tmp_path / "run", "features.use=never")
    assert run.history["strength"].item() == finished.history["strength"].item()
    np.testing.assert_allclose(predicted(run), predicted(finished), atol=1e-5)


def test_only_the_head_differs_from_a_new_model(finished):
    names = {v.path for v in finished.model().trainable_variables}
    assert {name.rsplit("/", 1)[-1] for name in names} == {"kernel", "bias"}
    assert all("head" in name for name in names)


def test_validation_may_be_empty(demo_data, tmp_path):
    run = solved(demo_data, tmp_path / "run", "split.validation=0", "fit.strength=0.1")
    assert "val_loss" not in run.history
    assert set(run.predictions["split"]) == {"test"}


def test_covariates_join_the_vector(demo_data, tmp_path):
    told = age_and_sex(demo_data)
    run = solved(told, tmp_path / "run", "model.covariates=[age, sex]")
    ids, splits = told.studies["study_id"], run.splits
    age, sex = (told.studies[f"covariate.{name}"] for name in ("age", "sex"))
    mean, deviation = (
        age[ids.isin(splits["train"])].agg(how) for how in ("mean", lambda a: a.std(ddof=0))
    )
    joined = [((age - mean) / deviation).fillna(0), sex == "f", sex == "m"]
    vectors = np.column_stack([statistics(run, told), *joined]).astype(float)
    expected = expected_probabilities(run, told, told.labels[:, 0], vectors)
    found = predicted(run)
    np.testing.assert_allclose(found, expected.loc[found.index], atol=1e-5)


@pytest.mark.slow
def test_what_only_a_covariate_tells_is_learned(demo_data, tmp_path):
    prepared, rng = Prepared.open(demo_data), np.random.default_rng(3)
    (label,) = prepared.label_names
    truth = rng.permutation(np.arange(len(prepared)) % 2)
    studies = prepared.studies.assign(**{f"label.{label}": truth.astype(float)})
    prepared = dataclasses.replace(prepared, studies=studies)
    prepared = with_covariates(prepared, age=55 + 20 * truth + rng.normal(0, 4, len(truth)))
    run = solved(prepared, tmp_path / "run", "model.covariates=[age]", folds=2)
    assert run.metrics.set_index(["split", "metric"]).loc[("test", "auroc"), "value"] > 0.85


def several_labels(demo_data):
    """The demo cohort with a second label, unknown of every third study."""
    prepared, rng = Prepared.open(demo_data), np.random.default_rng(0)
    second = rng.permutation(np.arange(len(prepared)) % 2).astype(float)
    second[::3] = np.nan
    info = {**prepared.info, "label_names": [*prepared.label_names, "second"]}
    studies = prepared.studies.assign(**{"label.second": second})
    return dataclasses.replace(prepared, info=info, studies=studies)


def test_several_labels_have_a_strength_each(demo_data, tmp_path):
    prepared = several_labels(demo_data)
    run = solved(prepared, tmp_path / "run")
    first = prepared.label_names[0]
    assert {f"strength_{first}", "strength_second"} < set(run.history)
    (vectors,) = study_vectors(run.experiment, SliceStore(prepared, run.experiment))
    np.testing.assert_allclose(vectors, statistics(run, prepared), atol=1e-4)
    rows = np.flatnonzero(prepared.studies["study_id"].isin(run.splits["train"]))
    fit = fit_linear(
        vectors[rows], prepared.labels[rows], "labels", prepared.studies["patient_id"].iloc[rows]
    )
    found = predicted(run)
    expected = pd.DataFrame(fit.probabilities(vectors), index=prepared.studies["study_id"])
    np.testing.assert_allclose(found, expected.loc[found.index], atol=1e-5)


@pytest.mark.slow
def test_folds_are_solved_and_pooled(demo_data, tmp_path):
    run = solved(demo_data, tmp_path / "run", folds=3)
    assert [len(fold.history) for fold in run.folds] == [1, 1, 1]
    assert len(run.predictions.query("split == 'test'")) == len(Prepared.open(demo_data))


def test_a_run_predicts_and_evaluates_like_any_other(demo_data, finished):
    again = predict_split(finished, Prepared.open(demo_data), "test").set_index("study")
    kept = predicted(finished).iloc[:, 0]
    np.testing.assert_allclose(again.loc[kept.index, "probability"], kept, atol=1e-6)
    assert len(evaluate(finished, demo_data, resamples=20).predictions)


def test_a_stopped_run_goes_on(demo_data, finished, tmp_path, monkeypatch):
    from medseq_tf.training.linear_fitting import LinearFitting

    vectors = LinearFitting._vectors
    monkeypatch.setattr(LinearFitting, "_vectors", lambda self, _: vectors(self, lambda: True))
    with pytest.raises(Stopped, match=r"run: stopped at \d+/\d+ studies; --resume goes on"):
        solved(demo_data, tmp_path / "run", "features.use=never")
    monkeypatch.setattr(LinearFitting, "_vectors", vectors)
    assert Run(tmp_path / "run").info["status"] == "stopped"
    run = solved(demo_data, tmp_path / "run", "features.use=never", resume=True)
    np.testing.assert_allclose(predicted(run), predicted(finished), atol=1e-5)


def test_every_line_of_progress_is_one(demo_data, tmp_path, capsys):
    solved(demo_data, tmp_path / "run", "fit.strength=0.1", verbose=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "strength" in line]
    assert len(lines) == 1
    assert lines[0].startswith("Solved: loss ")
    assert lines[0].endswith("strength 0.1")


def test_ordered_classes_are_told_apart_by_a_softmax_alone(class_data, tmp_path):
    prepared = Prepared.open(class_data)
    classes = {**prepared.info["classes"], "ordered": True}
    prepared = dataclasses.replace(prepared, info={**prepared.info, "classes": classes})
    with pytest.raises(InputError, match=r"softmax alone: set model\.ordered=softmax"):
        solved(prepared, tmp_path / "run")
    run = solved(prepared, tmp_path / "run", "model.ordered=softmax")
    expected = expected_probabilities(run, prepared, prepared.labels.argmax(1))
    found = predicted(run)[list(prepared.label_names)]
    np.testing.assert_allclose(found, expected.loc[found.index], atol=1e-5)


def test_features_that_are_no_numbers_are_told_by_study(demo_data, tmp_path, monkeypatch):
    def broken(*arguments, **settings):
        model, layers = tiny_network.network(*arguments, **settings)
        layers[1].bias.assign([np.inf] + 5 * [0.0])
        return model, layers

    monkeypatch.setattr("medseq_tf.models.applications.network", broken)
    with pytest.raises(InputError, match="features are no finite numbers"):
        solved(demo_data, tmp_path / "run", "features.use=never")


def test_the_importance_of_slices_is_that_of_the_definition(demo_data, tmp_path):
    even = ("sequence.policy=even", "sequence.evaluation.policy=even", "sequence.length=5")
    run = solved(demo_data, tmp_path / "run", *even)
    prepared, model = Prepared.open(demo_data), run.model()
    (study, *_), ids = run.splits["test"], prepared.studies["study_id"]
    batches = evaluation_batches(prepared, np.flatnonzero(ids == study), run.experiment)
    inputs, _, _ = next(iter(batches))
    features = np.asarray(model.extract(inputs["slices"], inputs["lengths"]))[0]
    kernel, bias = (np.asarray(value) for value in model.head.logits.get_weights())

    def probability(shown):
        kept = features[shown]
        return expit(np.concatenate([kept.mean(0), kept.max(0), kept.std(0)]) @ kernel + bias)[0]

    explanation = explain_study(run, prepared, study)
    (nothing,) = explanation.base_values.values()
    subsets = np.array(list(itertools.product([False, True], repeat=5)))
    worth = [probability(shown) if shown.any() else nothing for shown in subsets]
    expected = np.where(subsets, 1.0, -1.0).T @ worth / 16
    found = explanation.slices["importance"].dropna()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_whoever_shares_a_slice_is_left_out_together(demo_data, tmp_path, monkeypatch):
    prepared, seen = Prepared.load(demo_data), []
    studies = prepared.studies.copy()
    hashes = [["same"] if number < 3 else [str(number)] for number in range(len(studies))]
    studies["slice_hashes"] = hashes
    patients = studies["patient_id"].tolist()

    def fit(vectors, labels, outputs, owners, *settings):
        seen.append(list(owners))
        return fit_linear(vectors, labels, outputs, owners, *settings)

    monkeypatch.setattr(linear_fitting, "fit_linear", fit)
    nobody = np.empty(0, np.int64)
    everyone = {"train": np.arange(len(studies)), "validation": nobody, "test": nobody}
    linked = dataclasses.replace(prepared, studies=studies)
    solved(linked, tmp_path / "run", splits=everyone)
    assert seen == [3 * [min(patients[:3])] + patients[3:]]


def test_it_is_served_as_it_is(finished, tmp_path):
    assert export(finished, tmp_path / "served").difference <= 1e-5


def test_the_preset_trains_on_the_demo_cohort(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(applications, "network", NETWORK)
    overrides = ["model.encoder.weights=none", "input.size=32"]
    told = {"track": False, "verbose": False}
    run = train("frozen_linear", demo_data, tmp_path / "run", overrides=overrides, **told)
    assert run.model().head.logits.kernel.shape == (3 * (80 + 112), 1)
    assert np.isfinite(run.predictions["probability"]).all()
    assert any("eight depths" in note for note in run.notes)


def test_mirrored_slices_are_predicted_and_not_learned_from(demo_data, finished, tmp_path):
    prepared = Prepared.open(demo_data)
    run = solved(demo_data, tmp_path / "run", "sequence.evaluation.mirrored=true")
    np.testing.assert_array_equal(
        run.model().head.logits.kernel, finished.model().head.logits.kernel
    )
    vectors = study_vectors(run.experiment, SliceStore(prepared, run.experiment))
    assert vectors.shape[:2] == (2, len(prepared))
    model = finished.model()
    each = expit(
        vectors @ np.asarray(model.head.logits.kernel) + np.asarray(model.head.logits.bias)
    )
    ids = list(prepared.studies["study_id"])
    found = predicted(run)
    rows = [ids.index(study) for study in found.index]
    np.testing.assert_allclose(found, each.mean(axis=0)[rows], atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-4
