"""Which class is called, and what a wrong call costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics

NAMES = ("low", "middle", "high")


def test_the_most_probable_class_is_called_and_of_equal_ones_the_first():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_array_equal(metrics.call(probabilities), [1, 0, 0])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(0, 1000))
def test_with_equal_costs_it_is_the_most_probable_and_else_the_cheapest(classes, seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.multinomial(12, np.ones(classes) / classes, 20) / 12
    equal = 1 - np.eye(classes)
    np.testing.assert_array_equal(metrics.call(probabilities, equal), metrics.call(probabilities))
    costs = rng.integers(0, 9, (classes, classes)).astype(float)
    for row, called in zip(probabilities, metrics.call(probabilities, costs), strict=True):
        expected = [sum(row[i] * costs[i, j] for i in range(classes)) for j in range(classes)]
        assert expected[called] == pytest.approx(min(expected))


def test_to_miss_what_costs_much_is_avoided():
    costs = np.array([[0, 1, 1], [1, 0, 1], [10, 10, 0]])
    probabilities = np.array([[0.7, 0.1, 0.2], [0.9, 0.05, 0.05]])
    np.testing.assert_array_equal(metrics.call(probabilities, costs), [2, 0])


def write(path, text):
    path.write_text(text, "utf-8")
    return path


def test_costs_are_read_in_any_order(tmp_path):
    text = "\ufefftrue, high,low,middle\n\nmiddle,2,1,0\nlow,4,0,1\nhigh,0,8.5,3\n"
    costs = metrics.read_costs(write(tmp_path / "costs.csv", text), NAMES)
    np.testing.assert_array_equal(costs, [[0, 1, 4], [1, 0, 2], [8.5, 3, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the header is '': expected true,low,middle,high"),
        ("class,low,middle,high\n", "the header is 'class,low,middle,high': expected true,low"),
        ("true,low,middle\n", "a column for each of low, middle: expected one for each of low, "),
        ("true,low,middle,high\nlow,0,1,1\n", "a row for each of low: expected one for each"),
        (
            "true,low,middle,high\nlow,0,1,1\nlow,0,1,1\nmiddle,1,0,1\nhigh,1,1,0\n",
            "a row for each of low, low, middle, high: expected",
        ),
        (
            "true,low,middle,high\nlow,0,1\nmiddle,1,0,1\nhigh,1,1,0\n",
            "the row 'low' has 2 costs, the header 3",
        ),
        (
            "true,low,middle,high\nlow,0,x,1\nmiddle,1,0,1\nhigh,1,1,0\n",
            "'low' called 'middle' costs 'x': expected a finite number of 0 or more",
        ),
        (
            "true,low,middle,high\nlow,0,-1,1\nmiddle,1,0,1\nhigh,1,1,0\n",
            "'low' called 'middle' costs '-1': expected",
        ),
        (
            "true,low,middle,high\nlow,0,inf,1\nmiddle,1,0,1\nhigh,1,1,0\n",
            "'low' called 'middle' costs 'inf': expected",
        ),
    ],
)
def test_a_table_of_costs_that_is_in_doubt_is_refused(tmp_path, text, message):
    path = write(tmp_path / "costs.csv", text)
    with pytest.raises(InputError) as error:
        metrics.read_costs(path, NAMES)
    assert str(error.value).startswith(f"{path}: {message}")


def test_no_table_of_costs(tmp_path):
    with pytest.raises(InputError, match="no table of costs can be read"):
        metrics.read_costs(tmp_path / "none.csv", NAMES)
