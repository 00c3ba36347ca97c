"""Takes padded batches of sequences and their lengths: the Keras layers that models are made of."""

from medseq_tf.layers.batch_normalization import BatchNormalization
from medseq_tf.layers.convolution import ConvolutionBlock, PerPositionConv2D
from medseq_tf.layers.feature_similarity import FeatureSimilarity
from medseq_tf.layers.mirrored import Mirrored
from medseq_tf.layers.per_position import PerPosition
from medseq_tf.layers.recurrent import RecurrentLayer
from medseq_tf.layers.time_distributed import TimeDistributed

__all__ = [
    "BatchNormalization",
    "ConvolutionBlock",
    "FeatureSimilarity",
    "Mirrored",
    "PerPosition",
    "PerPositionConv2D",
    "RecurrentLayer",
    "TimeDistributed",
]
