"""The end of an automatic run, on predictions that are made up: what depends on what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from medseq_tf.automl.conclusion import procedure_table
from medseq_tf.automl.fingerprint import fingerprint_of
from medseq_tf.automl.plan import Plan
from medseq_tf.automl.predicted import Candidates
from medseq_tf.automl.procedure import CandidatePredictions
from medseq_tf.dataset.prepared import Prepared

FOLDS = 3


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


def made_up(prepared, truth=None, seed=0):
    """Two candidates whose predictions tell something of the data set's truth."""
    rng = np.random.default_rng(seed)
    fold_of = np.stack([rng.permutation(np.arange(len(prepared)) % FOLDS) for _ in range(2)])
    told = prepared.labels.astype(float)
    if truth is not None:
        prepared = dataclasses.replace(
            prepared, studies=prepared.studies.assign(**{"label.lesion": truth(fold_of)})
        )
    candidates = [
        {
            "name": name,
            "kind": "linear",
            "role": "baseline",
            "recipe": "handcrafted",
            "complexity": number,
            "reason": "a test",
        }
        for number, name in enumerate("ab")
    ]
    plan = Plan.model_validate(
        {
            **{"seed": 0, "folds": FOLDS, "repeats": 2, "minutes": 1, "conclude": True},
            **{"candidates": candidates, "cohort": fingerprint_of(prepared)},
        }
    )
    found = Candidates(plan, prepared, fold_of)
    for name, sharp in (("a", 1.0), ("b", 1.5)):
        own = []
        for folds in fold_of:
            inner = told + rng.normal(scale=1 / sharp, size=(FOLDS, *told.shape))
            outer = told + rng.normal(scale=1 / sharp, size=told.shape)
            inner[np.arange(FOLDS)[:, None] == folds] = np.nan
            own.append(CandidatePredictions(expit(outer), expit(inner)))
        found.add(name, own)
    return found


def expit(values):
    return 1 / (1 + np.exp(-4 * (values - 0.5)))


def test_a_folds_calls_depend_on_no_truth_of_it(prepared):
    """Whatever the truth in a fold, its thresholds, temperatures and shares stay what they are."""

    def table(candidates):
        outcome = candidates.choose()
        tables, points = procedure_table(candidates, outcome, [0, 1], "youden")
        return outcome.choices, tables, points

    choices, tables, points = table(made_up(prepared))
    assert len(tables) == 2 * FOLDS
    for fold in range(FOLDS):

        def turned(fold_of, fold=fold):
            labels = prepared.labels[:, 0]
            return np.where(fold_of[0] == fold, 1 - labels, labels)

        others, of_turned, points_turned = table(made_up(prepared, turned))
        assert others[0][fold] == choices[0][fold]
        assert points_turned[fold] == points[fold]
        columns = ["study", "probability", "calibrated", "threshold", "positive"]
        assert of_turned[fold][columns].equals(tables[fold][columns])
        assert not of_turned[fold]["truth"].equals(tables[fold]["truth"])


def test_a_study_that_a_linear_candidate_does_not_read_is_left_out_and_named(prepared):
    found = made_up(prepared)
    for own in found.predictions:
        own["a"].outer[5] = np.nan
        own["a"].inner[:, 5] = np.nan
    assert np.flatnonzero(~found.part).tolist() == [5]
    assert np.isnan(found.choose().outer[:, 5]).all()
    (note,) = found.left_out()
    assert prepared.studies["study_id"].iat[5] in note
