"""Takes sequences of slices, gives what one layer makes of every slice."""

from __future__ import annotations

import inspect

import keras
from keras import ops

from medseq_tf.layers.lengths import sequence_mask, zero_padding


@keras.saving.register_keras_serializable(package="medseq_tf")
class TimeDistributed(keras.layers.TimeDistributed):
    """Only real slices pass through the layer, and padded ones give zeros.

    `keras.layers.TimeDistributed` with the same call, plus `lengths`. Slices are folded into the
    batch axis, so the layer runs once however many steps there are, one trace serves all lengths,
    and batch statistics are those of the real slices.

    On JAX, whose shapes are fixed when it compiles, and with `skip_padding=False` all slices pass
    through the layer. Then a layer whose call takes `real` gets it, `(batch * steps,)` bool, to
    leave padding out of its batch statistics.

    Args:
        layer: the layer to apply to every slice.
        skip_padding: whether padded slices are left out of the computation; False where it has to
            have fixed shapes, as under XLA.

    Call arguments:
        inputs: `(batch, steps, ...)`.
        training: passed to the layer if its call takes it.
        mask: `(batch, steps)` bool, which slices are real.
        lengths: `(batch,)` number of real slices of each study, another way to say `mask`. With
            neither, all slices are real.

    Returns:
        `(batch, steps, ...)`.

    Raises:
        ValueError: where a Keras batch normalisation inside the layer would learn from padding.
    """

    def __init__(self, layer, skip_padding=True, **kwargs):
        super().__init__(layer, **kwargs)
        self.skip_padding = skip_padding

    def call(self, inputs, training=None, mask=None, lengths=None):
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

    def _real(self, inputs, mask, lengths):
        if mask is not None:
            mask = ops.cast(mask, "bool")
        if lengths is None:
            return mask
        of_lengths = sequence_mask(lengths, ops.shape(inputs)[1])
        return of_lengths if mask is None else ops.logical_and(mask, of_lengths)

    def _apply(self, slices, training, mask=None):
        takes = inspect.signature(self.layer.call).parameters
        kwargs = {"training": training} if "training" in takes else {}
        if mask is not None:
            if isinstance(self.layer, keras.layers.BatchNormalization):
                everywhere = ops.ones(ops.shape(slices)[:-1], dtype="bool")
                per_slice = ops.reshape(mask, (-1, *(1 for _ in slices.shape[2:])))
                kwargs["mask"] = ops.logical_and(everywhere, per_slice)
            elif training and _learns_from_padding(self.layer):
                raise ValueError(
                    f"{self.layer.name} would take padding into its batch statistics: skip_padding "
                    "is off, or the backend is JAX. Use medseq_tf.layers.BatchNormalization, in a "
                    "layer whose call takes `real`"
                )
            elif "real" in takes:
                kwargs["real"] = mask
        return self.layer(slices, **kwargs)

    def get_config(self):
        return {**super().get_config(), "skip_padding": self.skip_padding}


def _learns_from_padding(layer) -> bool:
    return any(
        isinstance(part, keras.layers.BatchNormalization) and part.trainable
        for part in layer._flatten_layers()
    )
