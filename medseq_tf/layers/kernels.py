"""Convolutions, normalisation and loops, each by the backend's best way.

Everything else in `layers` and `models` is `keras.ops` alone. These few operations leave it on
TensorFlow, and only there: `keras.ops.conv` compiles a grouped convolution with XLA on the CPU,
whose gradient takes seconds where TensorFlow's own takes milliseconds, `keras.ops.moments` passes
over the activations several times where the fused kernel passes once, no loop of `keras.ops`
takes chunks of different sizes, and the gradient that TensorFlow derives of an LSTM's loop does at
each step what can be done for all steps at once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from medseq_tf.layers.layer import Tensor


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


def convolution(
    inputs: Tensor, kernel: Tensor, strides: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """Convolve in 2-D, in `groups` independent groups of channels, with zeros on all four sides.

    Args:
        inputs: `(B, H, W, groups * C)`.
        kernel: `(kernel height, kernel width, C, groups * filters)`.
        strides: the same along both axes.
        padding: rows and columns of zeros added on each side.
        groups: number of groups; channels and filters stand group by group.

    Returns:
        `(B, H', W', groups * filters)`.
    """
    if padding:
        # Ahead of the convolution: with padding of its own oneDNN has no gradient for groups.
        inputs = ops.pad(inputs, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    if _on_tensorflow():
        return _tensorflow_convolution(inputs, kernel, strides, groups)
    return ops.conv(inputs, kernel, strides, "valid", data_format="channels_last")


def _tensorflow_convolution(inputs: Tensor, kernel: Tensor, strides: int, groups: int) -> Tensor:
    import tensorflow as tf

    if groups == 1 or _grouped_gradient_works():
        return tf.nn.conv2d(inputs, kernel, strides, "VALID")
    pairs = zip(tf.split(inputs, groups, axis=-1), tf.split(kernel, groups, axis=-1), strict=True)
    return tf.concat([tf.nn.conv2d(x, k, strides, "VALID") for x, k in pairs], axis=-1)


def normalize_by_batch(
    inputs: Tensor, scale: Tensor, offset: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by its mean and variance over all other axes.

    Args:
        inputs: `(B, H, W, C)` float32.
        scale: `(C,)`.
        offset: `(C,)`.
        epsilon: added to the variance.

    Returns:
        The normalised inputs, the means `(C,)` and the biased variances `(C,)`.
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


def normalize_by_shares(
    inputs: Tensor,
    weights: Tensor,
    scale: Tensor,
    offset: Tensor,
    epsilon: float,
    summed: Callable[[list[Tensor]], Sequence[Tensor]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each channel by its mean and variance over several shares of a batch.

    Moments of the shares are joined as those of parts of a sample are (Chan et al. 1983). The
    gradient that TensorFlow would derive passes over the activations several times as often.

    Args:
        inputs: `(B, H, W, C)` float32, this share.
        weights: 1 for what is real, else 0; of rank 4, and broadcast to the inputs.
        scale: `(C,)`.
        offset: `(C,)`.
        epsilon: added to the variance.
        summed: tensors to their sums over all shares.

    Returns:
        The normalised inputs, the means `(C,)`, the biased variances `(C,)` and how many values
        each channel has in all shares; the last three without a gradient.
    """
    import tensorflow as tf

    channels, axes = inputs.shape[-1], (0, 1, 2)
    each = tf.reduce_prod(tf.shape(inputs)[:-1] // tf.shape(weights)[:-1])
    count = tf.broadcast_to(tf.reduce_sum(weights, axes) * tf.cast(each, "float32"), [channels])
    is_whole = tf.reduce_all(weights > 0)
    ones, zeros = tf.ones(channels), tf.zeros(channels)

    def of_whole() -> tuple[Tensor, Tensor]:
        return normalize_by_batch(inputs, ones, zeros, epsilon)[1:]

    def of_real() -> tuple[Tensor, Tensor]:
        some = tf.maximum(count, 1.0)
        mean = tf.reduce_sum(tf.where(weights > 0, inputs, 0.0), axes) / some
        squares = tf.where(weights > 0, tf.math.squared_difference(inputs, mean), 0.0)
        return mean, tf.reduce_sum(squares, axes) / some

    @tf.custom_gradient
    def normalized(inputs: Tensor, scale: Tensor, offset: Tensor) -> Any:
        mine, spread = tf.cond(is_whole, of_whole, of_real)
        known, total = summed([count, count * mine])
        some = tf.maximum(known, 1.0)
        mean = total / some
        [squares] = summed([count * (spread + tf.math.squared_difference(mine, mean))])
        variance = squares / some
        # Padding becomes 0 first: times 0 it would stay what it is if it is not finite.
        real = tf.cond(is_whole, lambda: inputs, lambda: tf.where(weights > 0, inputs, 0.0))
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=real,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=epsilon,
            is_training=False,
        )[0]

        def gradient(of_outputs: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            of_inputs, of_scale, of_offset, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=of_outputs,
                x=real,
                scale=scale,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=[],
                epsilon=epsilon,
                is_training=False,
            )
            by_scale, by_offset = summed([of_scale, of_offset])
            slope = scale * tf.math.rsqrt(variance + epsilon) / some
            tilt = slope * by_scale * tf.math.rsqrt(variance + epsilon)
            of_inputs -= real * tilt + (slope * by_offset - tilt * mean)
            of_inputs = tf.cond(
                is_whole, lambda: of_inputs, lambda: tf.where(weights > 0, of_inputs, 0.0)
            )
            return of_inputs, of_scale, of_offset

        return (outputs, mean, variance, known), gradient

    return normalized(inputs, tf.convert_to_tensor(scale), tf.convert_to_tensor(offset))


def scan(step: Callable[..., Any], state: Any, inputs: Tensor) -> Tensor:
    """Return the outputs of a recurrence over the first axis of its inputs.

    TensorFlow's loop is told its length, which `keras.ops.scan` does not do: XLA differentiates no
    loop without one.

    Args:
        step: `(state, input) -> (state, output)`, the state and the output of unchanging shapes.
        state: the state before the first step, one tensor or a tuple; the first one's shape and
            dtype are the output's.
        inputs: `(T, ...)`.

    Returns:
        `(T, *output.shape)`.
    """
    if not _on_tensorflow():
        return ops.scan(step, state, inputs)[1]
    return _loop(step, state, inputs, state[0] if isinstance(state, tuple) else state)


def _loop(
    step: Callable[..., Any], state: Any, inputs: Tensor, like: Any, reverse: bool = False
) -> Any:
    """Run TensorFlow's `scan`, whose outputs are `like` a tensor, or each like one of a tuple.

    With `reverse` it goes from the last input to the first.
    """
    import tensorflow as tf

    several = isinstance(like, tuple)
    steps = tf.shape(inputs)[0] if inputs.shape[0] is None else inputs.shape[0]
    read = tf.TensorArray(inputs.dtype, steps, element_shape=inputs.shape[1:]).unstack(inputs)
    written = [
        tf.TensorArray(one.dtype, steps, element_shape=one.shape)
        for one in (like if several else [like])
    ]

    def body(count: Tensor, state: Any, written: list) -> tuple[Tensor, Any, list]:
        place = steps - 1 - count if reverse else count
        state, outputs = step(state, read.read(place))
        outputs = outputs if several else [outputs]
        pairs = zip(written, outputs, strict=True)
        return count + 1, state, [array.write(place, output) for array, output in pairs]

    loop = (tf.constant(0), state, written)
    condition = lambda count, *_: count < steps  # noqa: E731
    written = tf.while_loop(condition, body, loop, maximum_iterations=steps)[2]
    outputs = tuple(array.stack() for array in written)
    return outputs if several else outputs[0]


def each_direction(states: Tensor, weights: Tensor) -> Tensor:
    """Multiply `(directions, B, n)` by `(directions, n, m)`, one matrix product a direction.

    As a batched product the small matrices of a recurrence take several times as long: each call
    of oneDNN's has to be prepared anew.
    """
    products = [ops.matmul(states[d], weights[d]) for d in range(weights.shape[0])]
    return ops.stack(products)


def each_in_its_order(sequences: Tensor) -> Tensor:
    """Reverse the backward direction's steps of `(T, directions, ...)`; its own inverse."""
    steps, directions, *shape = ops.shape(sequences)
    if directions == 1:
        return sequences
    forward = 2 * ops.arange(steps, dtype="int32")
    backward = 2 * (steps - 1) - forward + 1
    order = ops.reshape(ops.stack([forward, backward], axis=1), (-1,))
    rows = ops.take(ops.reshape(sequences, (2 * steps, *shape)), order, axis=0)
    return ops.reshape(rows, (steps, directions, *shape))


def lstm(drive: Tensor, recurrent_kernel: Tensor) -> Tensor:
    """Return the states of an LSTM that starts from zeros, in one direction or both.

        i, f, g, o = drive + h . recurrent_kernel
        c = sigmoid(f) c + sigmoid(i) tanh(g)
        h = sigmoid(o) tanh(c)

    Args:
        drive: `(T, directions, B, 4 * units)`, the inputs times their kernel plus the bias,
            gates in the order i, f, g, o; direction 1 reads the steps from the last to the first.
        recurrent_kernel: `(directions, units, 4 * units)`.

    Returns:
        `(T, directions, B, units)`, h after each step.
    """
    recurrent_kernel = ops.convert_to_tensor(recurrent_kernel)
    if _on_tensorflow():
        return _tensorflow_lstm(drive, recurrent_kernel)
    zeros = ops.zeros_like(drive[0, ..., : recurrent_kernel.shape[1]])

    def step(state: tuple[Tensor, Tensor], drive: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = state
        i, f, g, o = _gates(drive + each_direction(h, recurrent_kernel))
        c = f * c + i * g
        h = o * ops.tanh(c)
        return (h, c), h

    return each_in_its_order(scan(step, (zeros, zeros), each_in_its_order(drive)))


def _gates(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return i, f, g, o of what goes into them, `(..., 4 * units)`."""
    i, f, _, o = ops.split(ops.sigmoid(z), 4, axis=-1)
    return i, f, ops.tanh(ops.split(z, 4, axis=-1)[2]), o


def _tensorflow_lstm(drive: Tensor, recurrent_kernel: Tensor) -> Tensor:
    """Return the states of `lstm`, with a gradient by hand.

    The loop keeps h and c alone. Its gradient has all gates again from one product over all steps,
    and all that does not depend on later steps, before its own loop; the gradient of the recurrent
    kernel is one product after it.
    """
    import tensorflow as tf

    directions, units, _ = recurrent_kernel.shape

    def by_direction(sequences: Tensor) -> Tensor:
        """Turn `(T, directions, B, n)` into `(directions, T * B, n)`."""
        rows = tf.transpose(sequences, (1, 0, 2, 3))
        return tf.reshape(rows, (directions, -1, sequences.shape[-1]))

    @tf.custom_gradient
    def states(drive: Tensor, recurrent_kernel: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        drive = each_in_its_order(drive)
        steps = tf.shape(drive)[0] if drive.shape[0] is None else drive.shape[0]
        zeros = tf.zeros_like(drive[0, ..., :units])

        def step(state: Any, drive: Tensor) -> tuple[Any, Any]:
            h, c = state
            i, f, g, o = _gates(drive + each_direction(h, recurrent_kernel))
            c = f * c + i * g
            h = o * tf.tanh(c)
            return (h, c), (h, c)

        h, c = _loop(step, (zeros, zeros), drive, (zeros, zeros))

        def gradient(of_h: Tensor) -> tuple[Tensor, Tensor]:
            none = tf.zeros_like(h[:1])
            earlier_h = tf.concat([none, h[:-1]], axis=0)
            earlier_c = tf.concat([none, c[:-1]], axis=0)
            recurrent = each_direction(by_direction(earlier_h), recurrent_kernel)
            recurrent = tf.reshape(recurrent, (directions, steps, -1, 4 * units))
            i, f, g, o = _gates(drive + tf.transpose(recurrent, (1, 0, 2, 3)))
            squashed = tf.tanh(c)
            slopes = [  # of c by the drives of i, f and g; of h by that of o; of h by c
                g * i * (1 - i),
                earlier_c * f * (1 - f),
                i * (1 - g * g),
                squashed * o * (1 - o),
                o * (1 - squashed * squashed),
            ]
            known = tf.concat([each_in_its_order(of_h), f, slopes[-1], *slopes[:-1]], axis=-1)
            transposed = tf.transpose(recurrent_kernel, (0, 2, 1))

            def step_back(state: Any, known: Tensor) -> tuple[Any, Tensor]:
                of_drive, of_c = state
                of_h, f, by_c, by_drive = tf.split(known, [units, units, units, 4 * units], -1)
                of_h += each_direction(of_drive, transposed)
                of_c += of_h * by_c
                of_drive = by_drive * tf.concat([of_c, of_c, of_c, of_h], axis=-1)
                return (of_drive, of_c * f), of_drive

            start = (tf.zeros_like(drive[0]), zeros)
            of_drive = _loop(step_back, start, known, start[0], reverse=True)
            earlier_h = tf.transpose(by_direction(earlier_h), (0, 2, 1))
            of_kernel = each_direction(earlier_h, by_direction(of_drive))
            return each_in_its_order(of_drive), of_kernel

        return each_in_its_order(h), gradient

    return states(drive, tf.convert_to_tensor(recurrent_kernel))


def in_chunks(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    size: int,
    row_shape: tuple[int, ...],
    dtype: str,
) -> Tensor:
    """Return `function` of the rows of `inputs`, at most `size` of them at a time.

    One chunk is computed after the other, so memory is that of one chunk however many rows there
    are. Chunks are as even as can be: 23 rows, at most 16 at a time, are 12 and 11. Where shapes
    are fixed in a graph, as under XLA, the last chunk is filled up with zeros.

    Args:
        function: `(rows, ...)` to `(rows, *row_shape)`, each output row from its input row alone.
        inputs: `(rows, ...)`, at least one row.
        size: the most rows at a time.
        row_shape: shape of an output row.
        dtype: of the outputs.

    Returns:
        `(rows, *row_shape)`, as `function(inputs)`.
    """
    rows = inputs.shape[0]
    if rows is None:
        return _tensorflow_chunks(function, inputs, size, row_shape, dtype)
    chunks = -(-rows // size)
    if chunks == 1:
        return function(inputs)
    if _on_tensorflow() and _is_eager():
        bounds = [rows * number // chunks for number in range(chunks + 1)]
        parts = [function(inputs[a:b]) for a, b in itertools.pairwise(bounds)]
        return ops.concatenate(parts, axis=0)
    even = -(-rows // chunks)
    fill = [[0, chunks * even - rows], *([0, 0] for _ in inputs.shape[1:])]
    inputs = ops.reshape(ops.pad(inputs, fill), (chunks, even, *inputs.shape[1:]))
    unused = ops.zeros((even, *row_shape), dtype)
    outputs = scan(lambda state, chunk: (state, function(chunk)), unused, inputs)
    return ops.reshape(outputs, (chunks * even, *row_shape))[:rows]


def _is_eager() -> bool:
    import tensorflow as tf

    return tf.executing_eagerly()


def _tensorflow_chunks(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    size: int,
    row_shape: tuple[int, ...],
    dtype: str,
) -> Tensor:
    import tensorflow as tf

    rows = tf.shape(inputs)[0]
    chunks = -(-rows // size)
    written = tf.TensorArray(dtype, chunks, infer_shape=False, element_shape=(None, *row_shape))

    def body(index: Tensor, written: Any) -> tuple[Tensor, Any]:
        outputs = function(inputs[rows * index // chunks : rows * (index + 1) // chunks])
        return index + 1, written.write(index, outputs)

    loop = (tf.constant(0), written)
    condition = lambda index, _: index < chunks  # noqa: E731
    return tf.while_loop(condition, body, loop, parallel_iterations=1)[1].concat()


def require_at_most(inputs: Tensor, size: Tensor, limit: int, message: str) -> Tensor:
    """Return `inputs`, or fail when the graph runs and `size` is above `limit`.

    What fails says `message`.

    Where sizes are always known (every backend but TensorFlow) the caller has checked already.
    """
    if not _on_tensorflow():
        return inputs
    import tensorflow as tf

    check = tf.debugging.assert_less_equal(size, limit, message=message)
    # What is made of the inputs waits for the check, or would fail first, with its own message.
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(inputs)
