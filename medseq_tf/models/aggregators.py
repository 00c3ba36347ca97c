"""The catalogue of aggregators, and the one of both papers: a stack of LSTM or GRU layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import ops

from medseq_tf.layers import RecurrentLayer
from medseq_tf.layers.layer import Shape, Tensor, Training, check_choice, child_seeds
from medseq_tf.models.aggregator import Aggregator
from medseq_tf.models.pooling import GatedAttention, Pooling, SliceScores, Statistics
from medseq_tf.models.transformer import Transformer
from medseq_tf.models.volume import VolumeNetwork
from medseq_tf.recipe import BACKWARD_READOUTS, AnyAggregator, choices
from medseq_tf.recipe import Recurrent as RecurrentSettings

READOUTS = choices(RecurrentSettings, "readout")


@keras.saving.register_keras_serializable(package="medseq_tf")
class Recurrent(Aggregator):
    """A stack of LSTM or GRU layers over the slices, with dropout between the layers.

    Paper 1: three bidirectional LSTM layers of 64 units, dropout 0.3, read out by `last_backward`.
    Padded steps change nothing, whatever they hold and however many they are.

    Args:
        units: size of the state of one direction.
        layers: number of layers.
        cell: `lstm` or `gru`.
        bidirectional: whether each layer also reads the slices backward.
        dropout: share of a layer's outputs that are dropped before the next layer in training.
        readout: `last`: the last layer's forward state after the last real slice;
            `last_backward`: its backward state after the first slice; `concat`: both; `mean` or
            `max`: of its states over the real slices, in all directions that it has.
        seed: seed of the initial weights and of dropout.

    Returns:
        `(B, units)`, or `(B, 2 * units)` for `concat` and for a bidirectional `mean` or
        `max`.
    """

    def __init__(
        self,
        units: int,
        layers: int,
        cell: str,
        bidirectional: bool,
        dropout: float,
        readout: str,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice("readout", readout, READOUTS)
        if not bidirectional and readout in BACKWARD_READOUTS:
            raise ValueError(
                f"readout={readout!r} needs bidirectional=True; without: 'last', 'mean' or 'max'"
            )
        self.units = units
        self.layers = layers
        self.cell = cell
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.readout = readout
        self.seed = seed
        policy = self.dtype_policy
        seeds = child_seeds(seed, 2 * layers - 1)
        self.stack = [
            RecurrentLayer(units, cell, bidirectional, child, name=f"{cell}_{n}", dtype=policy)
            for n, child in enumerate(seeds[:layers], start=1)
        ]
        pooled = readout in ("mean", "max")
        self.pool = Pooling(readout, name="pool", dtype=policy) if pooled else None
        self.drops = [
            keras.layers.Dropout(dropout, seed=child, name=f"dropout_{n}", dtype=policy)
            for n, child in enumerate(seeds[layers:], start=1)
        ]

    def build(self, features_shape: Shape) -> None:
        """Build the layers, one after the other."""
        for layer in self.stack:
            layer.build(features_shape)
            features_shape = layer.compute_output_shape(features_shape)

    def call(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return what is read out of the last layer's states."""
        states = self._states(features, lengths, training)
        if self.pool is not None:
            return self.pool(states, lengths)
        last = ops.reshape(ops.cast(lengths, "int32") - 1, (-1, 1, 1))
        forward = ops.take_along_axis(states[..., : self.units], last, axis=1)[:, 0]
        if self.readout == "last":
            return forward
        backward = states[:, 0, self.units :]
        if self.readout == "last_backward":
            return backward
        return ops.concatenate([forward, backward], axis=-1)

    @property
    def causal(self) -> bool:
        """Whether `steps` gives the vector after each slice: one direction, read out by `last`."""
        return not self.bidirectional and self.readout == "last"

    def steps(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the state after each slice, from that slice and those before it alone.

        Returns:
            `(B, T, units)`, zeros where a study has ended.

        Raises:
            ValueError: for a bidirectional stack, whose states also know the slices to come, and
                for readouts that join the states.
        """
        if not self.causal:
            raise ValueError(
                "an output a step needs bidirectional=False and readout='last': the states of a "
                "bidirectional stack know the slices to come"
            )
        return self._states(features, lengths, training)

    def _states(self, features: Tensor, lengths: Tensor, training: Training) -> Tensor:
        states = self.stack[0](features, lengths=lengths)
        for drop, layer in zip(self.drops, self.stack[1:], strict=True):
            states = layer(drop(states, training=training), lengths=lengths)
        return states

    def compute_output_shape(self, features_shape: Shape) -> Shape:
        """Return the shape of the vectors."""
        both = self.readout == "concat" or (self.pool is not None and self.bidirectional)
        return (features_shape[0], self.units * (2 if both else 1))


AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "lstm": partial(Recurrent, cell="lstm"),
    "gru": partial(Recurrent, cell="gru"),
    "mean": partial(Pooling, mode="mean"),
    "max": partial(Pooling, mode="max"),
    "sum": partial(Pooling, mode="sum"),
    "log_sum_exp": partial(Pooling, mode="log_sum_exp"),
    "statistics": Statistics,
    "attention": GatedAttention,
    "transformer": Transformer,
    "slice_scores": partial(SliceScores, dtype="float32"),  # as the head's logits
    "cnn_3d": VolumeNetwork,
}
"""`model.aggregator.name` -> what makes it of its settings."""


def build_aggregator(
    settings: AnyAggregator, slice_shape: tuple[int, int, int], seed: int | None
) -> Aggregator:
    """Return the aggregator of a recipe, not built.

    Args:
        settings: the recipe's `model.aggregator`.
        slice_shape: `(H, W, C)`, for those that ask for it.
        seed: seed of the initial weights and of dropout, likewise.
    """
    make = AGGREGATORS[settings.name]
    offered = {"slice_shape": slice_shape, "seed": seed}
    wanted = {k: v for k, v in offered.items() if k in inspect.signature(make).parameters}
    return make(**settings.model_dump(by_alias=True, exclude={"name"}), **wanted, name="aggregator")
