"""The call of a class: the most probable one or the one of least expected cost."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from small_models import CLASSES, COLUMN, TEMPERATURE, description_of

from medseq_tf.serving.class_call import ClassCall

PROBABILITY = np.float32([0.2, 0.5, 0.3])


def call(probability=PROBABILITY, **changes):
    return ClassCall.of(description_of("uint8", outputs="classes", **changes), probability)


def test_the_most_probable_class_is_called():
    found = call()
    assert (found.column, found.called, found.expected_cost) == (COLUMN, CLASSES[1], None)
    np.testing.assert_array_equal(list(found.probabilities.values()), PROBABILITY)
    assert list(found.probabilities) == list(found.calibrated) == CLASSES


def test_of_equal_classes_the_first_is_called():
    assert call(np.float32([0.2, 0.4, 0.4])).called == CLASSES[1]


def test_calibrated_probabilities_are_the_softmax_of_scaled_logarithms():
    expected = special.softmax(np.log(PROBABILITY.astype(float)) / TEMPERATURE)
    found = list(call().calibrated.values())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert sum(found) == pytest.approx(1, abs=1e-12)


def test_with_costs_the_class_of_least_expected_cost_is_called():
    costs = [[0, 1, 9], [2, 0, 4], [1, 3, 0]]
    expected = [sum(PROBABILITY[t] * costs[t][c] for t in range(3)) for c in range(3)]
    found = call(costs=costs)
    assert found.called == CLASSES[int(np.argmin(expected))] == CLASSES[1]
    assert found.expected_cost == pytest.approx(min(expected), rel=1e-6)
    dear = [[0, 1, 1], [1, 0, 1], [50, 50, 0]]
    assert call(costs=dear).called == CLASSES[2]
    assert call(costs=dear).probabilities == call().probabilities


def test_yes_no_labels_have_no_call_of_a_class():
    assert ClassCall.of(description_of("uint8"), np.float32([0.2, 0.9])) is None
