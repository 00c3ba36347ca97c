"""The encoder of paper 2 as a recipe describes it: whose network it is, then dense layers."""

from __future__ import annotations

from medseq_tf.layers.layer import child_seeds
from medseq_tf.models import hub_network
from medseq_tf.models.keras_application import KerasNetwork, PretrainedEncoder
from medseq_tf.recipe import KerasApplication as KerasApplicationSettings


def keras_application(
    settings: KerasApplicationSettings, seed: int | None, skip_padding: bool
) -> PretrainedEncoder:
    """Return the encoder of paper 2: a pretrained network, then dense layers.

    Args:
        settings: the recipe's `model.encoder`.
        seed: seed of random weights and of dropout.
        skip_padding: see `TimeDistributed`.

    Returns:
        A `PretrainedEncoder`, not built; `build` loads the weights that the recipe names.

    Raises:
        InputError: see `hub_network.hub_network`.
    """
    network_seed, dense_seed = child_seeds(seed, 2)
    return PretrainedEncoder(
        network_of(settings, network_seed),
        dense=[(layer.units, layer.activation) for layer in settings.dense],
        dropout=settings.dropout,
        skip_padding=skip_padding,
        seed=dense_seed,
        name="encoder",
    )


def network_of(settings: KerasApplicationSettings, seed: int | None) -> KerasNetwork:
    """Return the network that settings name, not built, with random weights of a seed or theirs."""
    if settings.network == hub_network.NAME:
        network = hub_network.hub_network(settings.weights, settings.output, settings.frozen, seed)
    else:
        network = KerasNetwork(
            settings.network, settings.output, settings.frozen, seed, name="network"
        )
    network.source = settings.weights
    return network
