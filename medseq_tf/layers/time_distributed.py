"""Sequences of slices through one layer, slice by slice."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import ops

from medseq_tf.layers.layer import Tensor, Training
from medseq_tf.layers.lengths import sequence_mask, zero_padding


@keras.saving.register_keras_serializable(package="medseq_tf")
class TimeDistributed(keras.layers.TimeDistributed):
    """`keras.layers.TimeDistributed` with the same call, plus `lengths`.

    Only real slices pass through the layer, and padded ones give zeros. Slices are folded into the
    batch axis, so the layer runs once however many steps there are, one trace serves all lengths,
    and batch statistics are those of the real slices.

    On JAX, whose shapes are fixed when it compiles, and with `skip_padding=False` all slices pass
    through the layer. Then a layer whose call takes `real` gets it, `(B * T,)` bool, to
    leave padding out of its batch statistics.

    Args:
        layer: the layer to apply to every slice.
        skip_padding: whether padded slices are left out of the computation; False where it has to
            have fixed shapes, as under XLA.

    Call arguments:
        inputs: `(B, T, ...)`.
        training: passed to the layer if its call takes it.
        mask: `(B, T)` bool, which slices are real.
        lengths: `(B,)` number of real slices of each study, another way to say `mask`. With
            neither, all slices are real.

    Returns:
        `(B, T, ...)`.

    Raises:
        ValueError: where a Keras batch normalisation inside the layer would learn from padding.
    """

    def __init__(self, layer: keras.layers.Layer, skip_padding: bool = True, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.skip_padding = skip_padding

    def call(
        self,
        inputs: Tensor,
        training: Training = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Return what the layer makes of every slice."""
        mask = self._real(inputs, mask, lengths)
        batch, steps = ops.shape(inputs)[:2]
        slices = ops.reshape(inputs, (-1, *inputs.shape[2:]))
        if mask is None:
            outputs = self._apply(slices, training)
        elif self.skip_padding and keras.config.backend() != "jax":
            real = ops.cast(ops.nonzero(ops.reshape(mask, (-1,)))[0], "int32")
            outputs = self._apply(ops.take(slices, real, axis=0), training)
            shape = (batch * steps, *outputs.shape[1:])
            outputs = ops.scatter(ops.expand_dims(real, 1), outputs, shape)
        else:
            outputs = self._apply(slices, training, ops.reshape(mask, (-1,)))
        outputs = ops.reshape(outputs, (batch, steps, *outputs.shape[1:]))
        return outputs if mask is None else zero_padding(outputs, mask)

    def _real(self, inputs: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
        if mask is not None:
            mask = ops.cast(mask, "bool")
        if lengths is None:
            return mask
        of_lengths = sequence_mask(lengths, ops.shape(inputs)[1])
        return of_lengths if mask is None else ops.logical_and(mask, of_lengths)

    def _apply(self, slices: Tensor, training: Training, real: Tensor | None = None) -> Tensor:
        takes = inspect.signature(self.layer.call).parameters
        kwargs: dict[str, Any] = {"training": training} if "training" in takes else {}
        if real is not None:
            if isinstance(self.layer, keras.layers.BatchNormalization):
                everywhere = ops.ones(ops.shape(slices)[:-1], dtype="bool")
                per_slice = ops.reshape(real, (-1, *(1 for _ in slices.shape[2:])))
                kwargs["mask"] = ops.logical_and(everywhere, per_slice)
            elif training and _learns_from_padding(self.layer):
                raise ValueError(
                    f"{self.layer.name} would take padding into its batch statistics: skip_padding "
                    "is off, or the backend is JAX. Use medseq_tf.layers.BatchNormalization, in a "
                    "layer whose call takes `real`"
                )
            elif "real" in takes:
                kwargs["real"] = real
        return self.layer(slices, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return the wrapped layer's configuration and `skip_padding`."""
        return {**super().get_config(), "skip_padding": self.skip_padding}


def _learns_from_padding(layer: keras.layers.Layer) -> bool:
    return any(
        isinstance(part, keras.layers.BatchNormalization) and part.trainable
        for part in layer._flatten_layers()
    )
