"""Takes a vector of features for each slice and lengths, gives one vector for each study."""

from __future__ import annotations

import keras
from keras import ops

from medseq_tf.layers import RecurrentLayer
from medseq_tf.layers.seeds import child_seeds
from medseq_tf.models.pooling import Pooling, attention, pooling
from medseq_tf.models.slice_scores import slice_scores
from medseq_tf.models.transformer import transformer
from medseq_tf.recipe import Recurrent as RecurrentSettings

READOUTS = ("last", "last_backward", "concat", "mean", "max")
BACKWARD_READOUTS = ("last_backward", "concat")


@keras.saving.register_keras_serializable(package="medseq_tf")
class Recurrent(keras.layers.Layer):
    """Padded steps change nothing, whatever they hold and however many they are.

    A stack of LSTM or GRU layers over the slices, with dropout between the layers (paper 1:
    three bidirectional LSTM layers of 64 units, dropout 0.3, read out by `last_backward`).

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

    Call arguments:
        features: `(batch, steps, features)`.
        lengths: `(batch,)` number of real slices of each study, at least 1.
        training: whether to drop.

    Returns:
        `(batch, units)`, or `(batch, 2 * units)` for `concat` and for a bidirectional `mean` or
        `max`.
    """

    def __init__(
        self,
        units=64,
        layers=3,
        cell="lstm",
        bidirectional=True,
        dropout=0.3,
        readout="last_backward",
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if readout not in READOUTS:
            raise ValueError(f"readout is one of {', '.join(READOUTS)}, got {readout!r}")
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
        seeds = child_seeds(seed, 2 * layers - 1)
        self.stack = [
            RecurrentLayer(
                units,
                cell,
                bidirectional,
                seeds[number],
                name=f"{cell}_{number + 1}",
                dtype=self.dtype_policy,
            )
            for number in range(layers)
        ]
        pooled = readout in ("mean", "max")
        self.pool = Pooling(readout, name="pool", dtype=self.dtype_policy) if pooled else None
        self.drops = [
            keras.layers.Dropout(
                dropout, seed=dropout_seed, name=f"dropout_{number}", dtype=self.dtype_policy
            )
            for number, dropout_seed in enumerate(seeds[layers:], start=1)
        ]

    def build(self, features_shape):
        for layer in self.stack:
            layer.build(features_shape)
            features_shape = layer.compute_output_shape(features_shape)

    def call(self, features, lengths, training=None):
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
        """Whether `steps` gives the answer after each slice: one direction, read out by `last`."""
        return not self.bidirectional and self.readout == "last"

    def steps(self, features, lengths, training=None):
        """The state after each slice, from that slice and those before it alone.

        Returns:
            `(batch, steps, units)`, zeros where a study has ended.

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

    def _states(self, features, lengths, training):
        states = self.stack[0](features, lengths=lengths)
        for drop, layer in zip(self.drops, self.stack[1:], strict=True):
            states = layer(drop(states, training=training), lengths=lengths)
        return states

    def compute_output_shape(self, features_shape, lengths_shape=None):
        both = self.readout == "concat" or (self.pool is not None and self.bidirectional)
        return (features_shape[0], self.units * (2 if both else 1))

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "layers": self.layers,
            "cell": self.cell,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            "readout": self.readout,
            "seed": self.seed,
        }


def recurrent(settings: RecurrentSettings, seed: int | None = None) -> Recurrent:
    """The aggregator of both papers: a stack of LSTM or GRU layers.

    Args:
        settings: the recipe's `model.aggregator`.
        seed: seed of the initial weights and of dropout.

    Returns:
        A `Recurrent`, not built.
    """
    return Recurrent(
        units=settings.units,
        layers=settings.layers,
        cell=settings.name,
        bidirectional=settings.bidirectional,
        dropout=settings.dropout,
        readout=settings.readout,
        seed=seed,
        name="aggregator",
    )


AGGREGATORS = {
    "lstm": recurrent,
    "gru": recurrent,
    "mean": pooling,
    "max": pooling,
    "sum": pooling,
    "log_sum_exp": pooling,
    "attention": attention,
    "transformer": transformer,
    "slice_scores": slice_scores,
}
