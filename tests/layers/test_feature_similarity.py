"""The feature similarity module against figure 8 written out place by place."""

from __future__ import annotations

import numpy as np
import pytest
from model_checks import check_round_trip, randomize_moving_statistics
from references import FeatureSimilarity, feature_similarity, position_of


def built(channels=12, positions=1, **arguments):
    layer = FeatureSimilarity(positions=positions, seed=3, **arguments)
    layer.build((None, 5, 4, positions * channels))
    for number, variable in enumerate(layer.trainable_variables):
        rng = np.random.default_rng(number)
        scale = 0.5 if variable.ndim == 4 else 0.2
        variable.assign(variable + rng.normal(0, scale, variable.shape))
    randomize_moving_statistics(layer)
    return layer


@pytest.mark.parametrize("attention", ["softmax", "none", "scaled"])
@pytest.mark.parametrize("positions", [1, 3])
def test_equals_figure_8(rng, attention, positions):
    layer = built(attention=attention, positions=positions)
    inputs = rng.normal(size=(2, 5, 4, positions * 12)).astype("float32")
    outputs = layer(inputs)
    assert outputs.shape == inputs.shape
    for image, output in zip(inputs, outputs, strict=True):
        for position in range(positions):
            expected = feature_similarity(position_of(image, position, positions), layer, position)
            np.testing.assert_allclose(
                position_of(output, position, positions), expected, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(("channels", "reduced", "projected"), [(48, 16, 8), (6, 4, 2)])
def test_channels_of_the_paper(channels, reduced, projected):
    layer = built(channels=channels)
    assert layer.reduce.filters == reduced
    assert layer.project.filters == 3 * projected
    assert layer.expand.filters == channels


def test_a_wrong_attention_is_refused():
    with pytest.raises(ValueError, match="softmax, none, scaled, got 'sigmoid'"):
        FeatureSimilarity(attention="sigmoid")


def test_round_trip(rng):
    layer = built(
        channels=12, positions=2, attention="scaled", activation="elu", momentum=0.7, epsilon=1e-2
    )
    check_round_trip(layer, rng.normal(size=(2, 5, 4, 24)).astype("float32"))
