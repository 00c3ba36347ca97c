"""Whole models, of one label and of many: who takes notice of the order of slices, and who not."""

from __future__ import annotations

import numpy as np
import pytest
from model_checks import check_padding

from medseq_tf import models
from medseq_tf import recipe as recipes

SHAPE = (8, 8, 1)
LENGTHS = np.array([5, 1, 3], "int32")
ORDER_BLIND = {
    "mean": {"name": "mean"},
    "sum": {"name": "sum"},
    "max": {"name": "max"},
    "log_sum_exp": {"name": "log_sum_exp"},
    "statistics": {"name": "statistics", "of": ["mean", "max", "std", "count"]},
    "attention": {"name": "attention", "units": 4},
    "transformer": {"name": "transformer", "units": 8, "heads": 2, "feed_forward": 6},
    "slice_scores": {"name": "slice_scores"},
}
ORDER_READING = {
    "lstm": {"name": "lstm", "units": 4, "layers": 1},
    "gru": {"name": "gru", "units": 4, "layers": 1},
    "transformer": {**ORDER_BLIND["transformer"], "positions": True},
    "cnn_3d": {"name": "cnn_3d", "depth": 5, "filters": [3], "pooling": "max"},
}


def logits(aggregator, labels):
    settings = recipes.Model(encoder={"name": "pixels"}, aggregator=aggregator, head={"units": []})
    model = models.build(settings, SHAPE, labels, seed=0)
    return lambda slices, lengths: model({"slices": slices, "lengths": lengths})


@pytest.fixture
def slices(rng):
    return rng.normal(size=(3, 5, *SHAPE)).astype("float32")


def in_another_order(slices):
    slices = slices.copy()
    for study, length in zip(slices, LENGTHS, strict=True):
        study[:length] = np.roll(study[:length], 1, axis=0)
    return slices


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", ORDER_BLIND)
def test_neither_order_nor_padding_changes_a_logit(slices, name, labels):
    call = logits(ORDER_BLIND[name], labels)
    np.testing.assert_allclose(
        call(in_another_order(slices), LENGTHS), call(slices, LENGTHS), atol=1e-5
    )
    check_padding(call, slices, LENGTHS)


@pytest.mark.parametrize("name", ORDER_READING)
def test_order_changes_logits_and_padding_none(slices, name):
    call = logits(ORDER_READING[name], labels=3)
    moved = np.abs(call(in_another_order(slices), LENGTHS) - call(slices, LENGTHS))
    assert (moved[[0, 2]] > 1e-4).all()
    assert moved[1].max() <= 1e-6  # a study of one slice has one order
    check_padding(call, slices, LENGTHS)
