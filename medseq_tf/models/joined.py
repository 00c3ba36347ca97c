"""Hand-made features and those of a frozen network, side by side."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from medseq_tf.layers.layer import Layer, Shape, Tensor
from medseq_tf.models.handcrafted import HandcraftedFeatures
from medseq_tf.models.keras_application import KerasNetwork


@keras.saving.register_keras_serializable(package="medseq_tf")
class JoinedFeatures(Layer):
    """What formulas and a frozen network make of the same slices, in one vector.

    Args:
        handcrafted: the formulas.
        network: a network that is frozen whole.

    Call arguments:
        slices: `(N, H, W, C)` in [0, 1], of one or three channels.

    Returns:
        `(N, F)` float32: the hand-made features, then the network's.

    Raises:
        InputError: from `build`, as the parts do.
    """

    frozen = "all"
    """As of a network that is never trained."""

    def __init__(self, handcrafted: HandcraftedFeatures, network: KerasNetwork, **kwargs: Any):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.handcrafted = handcrafted
        self.network = network

    @property
    def parts(self) -> tuple[HandcraftedFeatures, KerasNetwork]:
        """The layers whose features stand side by side."""
        return self.handcrafted, self.network

    @property
    def made_by(self) -> list[Any]:
        """What decides on the features, besides weights and the shape of a slice."""
        made_by = [[*part.made_by, part.dtype_policy.name] for part in self.parts]
        return ["joined", *made_by]

    def build(self, slices_shape: Shape) -> None:
        """Build both parts."""
        for part in self.parts:
            if not part.built:
                part.build(slices_shape)

    def call(self, slices: Tensor) -> Tensor:
        """Return the features of every slice."""
        return self._joined([part(slices) for part in self.parts])

    def with_gradient(self, slices: Tensor) -> Tensor:
        """Return what `call` returns, with the network's gradient, of all slices at once."""
        return self._joined([self.handcrafted(slices), self.network.with_gradient(slices)])

    @staticmethod
    def _joined(features: list[Tensor]) -> Tensor:
        return ops.concatenate([ops.cast(part, "float32") for part in features], axis=-1)

    def compute_output_shape(self, slices_shape: Shape) -> Shape:
        """Return the shape of the features."""
        widths = [part.compute_output_shape(slices_shape)[-1] for part in self.parts]
        return (slices_shape[0], sum(widths))
