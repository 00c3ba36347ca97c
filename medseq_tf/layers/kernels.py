"""Takes tensors, gives convolution, normalisation and recurrence by the backend's best way.

Everything else in `layers` and `models` is `keras.ops` alone. These few operations leave it on
TensorFlow, and only there: `keras.ops.conv` compiles a grouped convolution with XLA on the CPU,
whose gradient takes seconds where TensorFlow's own takes milliseconds, and `keras.ops.moments`
passes over the activations several times where the fused kernel passes once.
"""

from __future__ import annotations

import functools

import keras
from keras import ops


def _on_tensorflow() -> bool:
    return keras.config.backend() == "tensorflow"


@functools.cache
def _grouped_gradient_works() -> bool:
    """Whether TensorFlow has the gradient of a grouped convolution here: by oneDNN or on a GPU."""
    import tensorflow as tf

    with tf.init_scope():
        inputs, kernel = tf.ones((1, 2, 2, 2)), tf.ones((1, 1, 1, 2))
        try:
            with tf.GradientTape() as tape:
                tape.watch((inputs, kernel))
                outputs = tf.nn.conv2d(inputs, kernel, 1, "VALID")
            tape.gradient(outputs, (inputs, kernel))
        except tf.errors.OpError:
            return False
    return True


def convolution(inputs, kernel, strides: int = 1, padding: int = 0, groups: int = 1):
    """2-D convolution in `groups` independent groups of channels, zero padding on all four sides.

    Args:
        inputs: `(batch, height, width, groups * channels)`.
        kernel: `(kernel height, kernel width, channels, groups * filters)`.
        strides: the same along both axes.
        padding: rows and columns of zeros added on each side.
        groups: number of groups; channels and filters stand group by group.

    Returns:
        `(batch, new height, new width, groups * filters)`.
    """
    if padding:
        # Ahead of the convolution: with padding of its own oneDNN has no gradient for groups.
        inputs = ops.pad(inputs, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    if _on_tensorflow():
        return _tensorflow_convolution(inputs, kernel, strides, groups)
    return ops.conv(inputs, kernel, strides, "valid", data_format="channels_last")


def _tensorflow_convolution(inputs, kernel, strides, groups):
    import tensorflow as tf

    if groups == 1 or _grouped_gradient_works():
        return tf.nn.conv2d(inputs, kernel, strides, "VALID")
    pairs = zip(tf.split(inputs, groups, axis=-1), tf.split(kernel, groups, axis=-1), strict=True)
    return tf.concat([tf.nn.conv2d(x, k, strides, "VALID") for x, k in pairs], axis=-1)


def normalize_by_batch(inputs, scale, offset, epsilon: float):
    """Normalise each channel by its mean and variance over all other axes.

    Args:
        inputs: `(batch, height, width, channels)` float32.
        scale: `(channels,)`.
        offset: `(channels,)`.
        epsilon: added to the variance.

    Returns:
        The normalised inputs, the means `(channels,)` and the biased variances `(channels,)`.
    """
    if not _on_tensorflow():
        mean, variance = ops.moments(inputs, axes=(0, 1, 2))
        outputs = ops.batch_normalization(inputs, mean, variance, -1, offset, scale, epsilon)
        return outputs, mean, variance
    import tensorflow as tf

    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=scale, offset=offset, mean=[], variance=[], epsilon=epsilon
    )
    # The kernel gives n / (n - 1) times the biased variance, for n > 1.
    count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), variance.dtype)
    return outputs, mean, variance * tf.where(count > 1, (count - 1) / count, 1.0)


def scan(step, state, inputs):
    """Outputs of a recurrence over the first axis of its inputs.

    TensorFlow's loop is told its length, which `keras.ops.scan` does not do: XLA differentiates no
    loop without one.

    Args:
        step: `(state, input) -> (state, output)`, the state and the output of unchanging shapes.
        state: the state before the first step, one tensor or a tuple; the first one's shape and
            dtype are the output's.
        inputs: `(steps, ...)`.

    Returns:
        `(steps, *output.shape)`.
    """
    if not _on_tensorflow():
        return ops.scan(step, state, inputs)[1]
    import tensorflow as tf

    steps = tf.shape(inputs)[0] if inputs.shape[0] is None else inputs.shape[0]
    like = state[0] if isinstance(state, tuple) else state
    read = tf.TensorArray(inputs.dtype, steps, element_shape=inputs.shape[1:]).unstack(inputs)
    written = tf.TensorArray(like.dtype, steps, element_shape=like.shape)

    def body(index, state, written):
        state, output = step(state, read.read(index))
        return index + 1, state, written.write(index, output)

    loop = (tf.constant(0), state, written)
    condition = lambda index, *_: index < steps  # noqa: E731
    return tf.while_loop(condition, body, loop, maximum_iterations=steps)[2].stack()


def require_at_most(size, limit: int, message: str) -> None:
    """Stop with `message` if `size`, known only when the graph runs, is above `limit`.

    Where sizes are always known (every backend but TensorFlow) the caller has checked already.
    """
    if _on_tensorflow():
        import tensorflow as tf

        tf.debugging.assert_less_equal(size, limit, message=message)
