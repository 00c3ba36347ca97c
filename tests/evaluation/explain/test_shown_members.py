"""Explanations of a run of several models: of their weighted mean, by definition."""

from __future__ import annotations

import numpy as np
import pytest
from automatic_run import emptied

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explain import explain, explain_study
from medseq_tf.evaluation.explain.explainer import Explainer
from medseq_tf.evaluation.explain.quality import measure_quality
from medseq_tf.evaluation.explain.shown_members import ShownMembers
from medseq_tf.evaluation.explain.shown_study import only
from medseq_tf.evaluation.explain.slice_values import every_subset
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStores


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture(scope="module")
def short(prepared):
    """The study of the fewest slices."""
    return prepared.studies.sort_values("slices")["study_id"].iat[0]


@pytest.fixture(scope="module")
def explainer(automatic, prepared, short):
    return Explainer(automatic, prepared, [short])


@pytest.fixture(scope="module")
def found(explainer, short):
    return explainer.explain(short, pixels=("grad_cam", "integrated_gradients"))


def worth(member, shown, base):
    """What a model predicts where some of the slices are shown, (subsets, labels)."""
    (sequence,) = member.sequences
    steps = [only(sequence, np.flatnonzero(subset)) for subset in shown]
    values = np.full((len(shown), 1), base)
    some = [i for i, one in enumerate(steps) if len(one)]
    values[some] = member.probabilities_of([steps[i] for i in some])
    return values


def test_importance_is_the_banzhaf_value_of_the_weighted_mean(explainer, found, short):
    study = explainer.shown(short)
    assert isinstance(study, ShownMembers)
    assert {len(member.distinct) for member in study.members} != {study.length}
    base, slices = found.base_values["lesion"], study.length
    assert slices <= 12
    half = every_subset(slices)
    subsets = np.concatenate([half, ~half])
    mean = sum(
        weight * worth(member, subsets, base)
        for member, weight in zip(study.members, study.weights, strict=True)
    )[:, 0]
    expected = np.full(slices, np.nan)
    for number in study.distinct:
        shown = subsets[:, number]
        expected[number] = mean[shown].mean() - mean[~shown].mean()
    np.testing.assert_allclose(found.slices["importance"], expected, rtol=0, atol=1e-5)
    rows = found.slices
    np.testing.assert_array_equal(rows["importance_low"], rows["importance"])


def test_the_probability_and_what_is_known_of_slices_are_weighted_means(
    automatic, explainer, found, short, prepared
):
    row = explainer.row_of[short]
    stores = SliceStores(prepared)
    expected = 0
    for run, weight in automatic.members:
        recipe = run.experiment
        rows = np.array([row])
        expected += weight * study_probabilities(run.model(), stores.of(recipe), rows, recipe)[0, 0]
    assert found.probabilities["lesion"] == pytest.approx(expected, abs=1e-5)
    assert found.thresholds == {"lesion": automatic.thresholds["lesion"]}
    shown = found.shown_slices()
    assert shown["running"].iat[-1] == pytest.approx(expected, abs=1e-5)
    study = explainer.shown(short)
    for column, values in (("occlusion", "occlusion"), ("alone", "alone")):
        number = int(study.distinct[0])
        own = [
            (t := member.slice_table())[t["slice"] == number].iloc[0] for member in study.members
        ]
        known = [
            (w, one[values]) for w, one in zip(study.weights, own, strict=True) if one["shown"]
        ]
        total = sum(w * value for w, value in known)
        total /= 1 if column == "occlusion" else sum(w for w, _ in known)
        assert shown[column].iat[0] == pytest.approx(total, abs=1e-6)


def test_maps_are_of_the_heaviest_and_it_is_said(automatic, found, explainer, short):
    heaviest = automatic.heaviest
    alone = Explainer(heaviest, explainer.prepared, [short]).explain(
        short, pixels=("grad_cam", "integrated_gradients")
    )
    for method in ("grad_cam", "integrated_gradients"):
        np.testing.assert_array_equal(found.heat[method, "lesion"], alone.heat[method, "lesion"])
    assert found.images.shape[1:] == (32, 32)
    words = " ".join(found.notes)
    assert "of the mean of 4 models by their weights" in words
    assert "of one of them, members/sequence/fold_1" in words
    assert "were trained on this study" in words


def test_classes_are_explained_too(automatic_classes, class_data):
    prepared = Prepared.load(class_data)
    short = prepared.studies.sort_values("slices")["study_id"].iat[0]
    found = explain_study(automatic_classes, class_data, short)
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    sums = found.slices.groupby("slice")["importance"].sum(min_count=1)
    np.testing.assert_allclose(sums.dropna(), 0, atol=1e-5)


def test_the_command_chooses_by_the_out_of_fold_predictions(automatic, demo_data, tmp_path):
    done = explain(automatic, demo_data, out=tmp_path, pixels=("grad_cam",))
    assert 1 <= len(done.studies) <= 5
    assert "models by their weights" in done.text()
    assert any(file.name.endswith("grad_cam.png") for file in done.files)


def test_quality_needs_masks_that_no_model_has_seen(automatic, demo_data):
    with pytest.raises(InputError, match="its models were trained on all patients"):
        measure_quality(automatic, demo_data)


def test_a_run_of_no_members_explains_nothing(automatic, demo_data, short, tmp_path):
    with pytest.raises(InputError, match=r"has no model \(nothing beats chance\)"):
        explain_study(emptied(automatic, tmp_path), demo_data, short)
