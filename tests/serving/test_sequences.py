"""The sequences that the graph chooses and averages: those of evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from medseq_tf import recipe as recipes
from medseq_tf.input import sampling
from medseq_tf.serving import sequences


@pytest.mark.parametrize("policy", ["paper", "all", "even"])
@pytest.mark.parametrize(
    ("length", "limit", "fill"), [(6, None, False), (6, 9, True), (1, 1, True)]
)
def test_sequences_are_those_of_evaluation(policy, length, limit, fill):
    recipe = recipes.Sequence(
        length=length, fill=fill, evaluation=recipes.Evaluation(policy=policy, length=limit)
    )
    lengths = np.arange(1, 41, dtype=np.int32)
    found = sequences.evaluation_sequences(tf.constant(lengths), recipe)
    positions, counts = found.positions.numpy(), found.lengths.numpy()
    own = [p[:n].tolist() for p, n in zip(positions, counts, strict=True)]
    expected = [
        (study, sequence.tolist())
        for study, n in enumerate(lengths)
        for sequence in sampling.evaluation_sequences(int(n), recipe)
    ]
    assert list(zip(found.study.numpy().tolist(), own, strict=True)) == expected


def test_what_is_known_after_each_slice(rng):
    """By hand: two sequences of one study, one of another."""
    chosen = sequences.Sequences(
        study=tf.constant([0, 0, 1]),
        positions=tf.constant([[1, 3, 3], [2, 4, 5], [0, 0, 0]]),
        lengths=tf.constant([2, 3, 1]),
    )
    steps = rng.random((3, 3, 2)).astype(np.float32)
    lengths = tf.constant([6, 2])
    found = sequences.mean_of_sequences(tf.constant(steps), chosen, lengths, tf.constant(7))
    a, b, c = steps
    expected = np.zeros((2, 7, 2))
    expected[0, :2] = a[0]  # before the first chosen slice its answer stands
    expected[0, 2] = (a[0] + b[0]) / 2
    expected[0, 3] = (a[1] + b[0]) / 2
    expected[0, 4] = (a[1] + b[1]) / 2
    expected[0, 5] = (a[1] + b[2]) / 2
    expected[1, :2] = c[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
