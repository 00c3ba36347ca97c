"""What slices are worth: exact where that is claimed, and true to the model."""

from __future__ import annotations

import numpy as np
import pytest
from direct_predictions import probability

from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStore


def game(study, monkeypatch, worth, *sequences):
    """Let the model predict `worth(positions)` of the study shown as these sequences."""
    predict = lambda sequences: np.array([[worth(list(one))] for one in sequences])  # noqa: E731
    monkeypatch.setattr(study, "probabilities_of", predict)
    monkeypatch.setattr(study, "sequences", list(sequences))
    return study


@pytest.mark.parametrize("count", [5, 14])
def test_what_slices_add_up_to_is_found_exactly(shown_studies, monkeypatch, count):
    values = np.random.default_rng(0).normal(size=count)
    one = game(
        shown_studies("shared"),
        monkeypatch,
        lambda part: values[part].sum() + 0.3,
        np.arange(count),
    )
    found = one.importance(np.array([0.3]), [0])
    np.testing.assert_allclose(found.values[:count, 0], values, atol=1e-9)


def test_two_slices_of_one_lesion_share_its_importance_and_occlusion_sees_neither(
    shown_studies, monkeypatch
):
    one = game(
        shown_studies("shared"),
        monkeypatch,
        lambda part: float(0 in part or 3 in part),
        np.arange(6),
    )
    importance = one.importance(np.array([0.0]), [0]).values[:6, 0]
    # A lesion slice decides when the other is absent, in half of the subsets.
    np.testing.assert_allclose(importance, [0.5, 0, 0, 0.5, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(one.occlusion(np.arange(6)), 0)


def test_a_study_of_several_sequences_gets_the_mean_over_those_that_show_a_slice(
    shown_studies, monkeypatch
):
    shown = np.array([0, 1, 2]), np.array([2, 3])
    one = game(shown_studies("shared"), monkeypatch, lambda part: 0.1 * sum(part) + 0.2, *shown)
    found = one.importance(np.array([0.2]), [0])
    np.testing.assert_allclose(found.values[:4, 0], [0, 0.1, 0.2, 0.3], atol=1e-9)
    assert np.isnan(found.values[4:]).all()
    assert found.subsets == 7 + 3


@pytest.mark.parametrize("kind", ["shared", "per position", "frozen", "attention"])
def test_a_slice_is_left_out_exactly(shown_studies, kind):
    study = shown_studies(kind)
    sequence = study.sequences[0]
    whole = probability(study, sequence)
    found = study.occlusion(sequence)
    for number, slice_ in enumerate(sequence):
        without = probability(study, sequence[sequence != slice_])
        np.testing.assert_allclose(found[number], whole - without, atol=2e-6)
    np.testing.assert_allclose(study.probabilities(), whole, atol=2e-6)


@pytest.mark.parametrize("kind", ["shared", "per position"])
def test_the_running_probability_is_that_of_the_slices_so_far(shown_studies, kind):
    study = shown_studies(kind)
    sequence = study.sequences[0]
    expected = [probability(study, sequence[: i + 1]) for i in range(len(sequence))]
    np.testing.assert_allclose(study.running(sequence), expected, atol=1e-5)


def test_a_slice_that_stands_twice_is_left_out_twice(shown_studies):
    study = shown_studies("shared")
    found = study.occlusion(np.array([1, 1, 4, 7]))
    expected = probability(study, [1, 1, 4, 7]) - probability(study, [4, 7])
    assert len(found) == 3
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_attention_weights_are_those_of_the_aggregator(shown_studies):
    table = shown_studies("attention").slice_table()
    shown = table[table["shown"] > 0]
    assert shown["attention"].sum() == pytest.approx(1, abs=1e-5)
    assert (shown["attention"] > 0).all()
    assert "attention" not in shown_studies("shared").slice_table()


def test_what_is_explained_is_the_mean_over_slices_as_they_are_and_mirrored(
    shown_studies, prepared
):
    study = shown_studies("mirrored")
    recipe, sequence = study.graphs.experiment, study.sequences[0]
    expected = study_probabilities(study.model, SliceStore(prepared, recipe), [3], recipe)[0]
    np.testing.assert_allclose(study.probabilities(), expected, atol=1e-5)
    np.testing.assert_allclose(study.running(sequence)[-1], expected, atol=1e-5)
    assert abs(probability(study, sequence) - expected).max() > 1e-6
