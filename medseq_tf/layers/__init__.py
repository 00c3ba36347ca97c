"""The Keras layers that models are made of, for padded sequences of slices and their lengths.

In shapes, B is the number of studies in a batch, T the slices of the longest one, H, W and C the
height, width and channels of a slice, F the features of one, P the positions that have weights of
their own, which stand side by side in the channels.

A sequence layer is called with `lengths`, `(B,)`, the number of real slices of each study. A slice
layer sees slices folded into the batch; it is called with `real`, `(B,)` or `(B, P)` bool, where it
has to know which of them are padding.
"""

from medseq_tf.layers.batch_normalization import BatchNormalization
from medseq_tf.layers.convolution import ConvolutionBlock, PerPositionConv2D
from medseq_tf.layers.feature_similarity import FeatureSimilarity
from medseq_tf.layers.layer import Layer
from medseq_tf.layers.mirrored import Mirrored
from medseq_tf.layers.per_position import PerPosition
from medseq_tf.layers.recurrent import RecurrentLayer
from medseq_tf.layers.time_distributed import TimeDistributed

__all__ = [
    "BatchNormalization",
    "ConvolutionBlock",
    "FeatureSimilarity",
    "Layer",
    "Mirrored",
    "PerPosition",
    "PerPositionConv2D",
    "RecurrentLayer",
    "TimeDistributed",
]
