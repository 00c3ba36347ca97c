"""Takes arrays, gives what the layers should compute, in plain float64 NumPy, slice by slice."""

from __future__ import annotations

import functools

import numpy as np

from medseq_tf import layers

# With the values of the papers for what the layers leave to the recipe.
STATISTICS = {"momentum": 0.9, "epsilon": 1e-5}
BatchNormalization = functools.partial(layers.BatchNormalization, **STATISTICS)
ConvolutionBlock = functools.partial(layers.ConvolutionBlock, activation="relu", **STATISTICS)
FeatureSimilarity = functools.partial(
    layers.FeatureSimilarity, attention="softmax", activation="relu", **STATISTICS
)


def convolve(image, kernel, bias, stride=1, padding=0):
    """2-D convolution of `(height, width, channels)` by `(kh, kw, channels, filters)`."""
    image = np.pad(image.astype("float64"), ((padding,) * 2, (padding,) * 2, (0, 0)))
    kh, kw = kernel.shape[:2]
    rows = range(0, image.shape[0] - kh + 1, stride)
    columns = range(0, image.shape[1] - kw + 1, stride)
    outputs = [
        [np.tensordot(image[r : r + kh, c : c + kw], kernel, 3) for c in columns] for r in rows
    ]
    return np.array(outputs) + bias


def normalize(maps, gamma, beta, mean, variance, epsilon=1e-5):
    """Batch normalisation by given statistics."""
    return (maps - mean) / np.sqrt(variance + epsilon) * gamma + beta


def normalize_by_batch(maps, gamma, beta, epsilon=1e-5):
    """Batch normalisation of `(..., channels)` by its own statistics, which are given too."""
    maps = np.asarray(maps, "float64")
    axes = tuple(range(maps.ndim - 1))
    mean, variance = maps.mean(axes), maps.var(axes)
    return normalize(maps, gamma, beta, mean, variance, epsilon), mean, variance


def position_of(variable, position, positions):
    """The share of one position in an array whose last axis stands position by position."""
    return np.split(np.asarray(variable, "float64"), positions, axis=-1)[position]


def block(maps, layer, position=0):
    """One position of a `ConvolutionBlock` with statistics of its own, in inference."""
    convolution, normalization = layer.convolution, layer.normalization
    kernel, bias, *statistics = (
        position_of(variable, position, layer.positions)
        for variable in (
            convolution.kernel,
            convolution.bias,
            normalization.gamma,
            normalization.beta,
            normalization.moving_mean,
            normalization.moving_variance,
        )
    )
    maps = convolve(maps, kernel, bias, layer.strides, convolution.margin)
    return np.maximum(normalize(maps, *statistics, epsilon=layer.epsilon), 0)


def feature_similarity(maps, layer, position=0):
    """Figure 8 for one slice `(height, width, channels)`, place by place."""
    x = block(maps, layer.reduce, position)
    height, width, _ = x.shape
    theta, phi, g = np.split(block(x, layer.project, position), 3, axis=-1)
    places = [(row, column) for row in range(height) for column in range(width)]
    y = np.zeros_like(g)
    for here in places:
        weights = np.array([theta[here] @ phi[there] for there in places])
        if layer.attention == "softmax":
            weights = np.exp(weights - weights.max())
            weights /= weights.sum()
        elif layer.attention == "scaled":
            weights /= len(places)
        y[here] = sum(w * g[there] for w, there in zip(weights, places, strict=True))
    return block(block(y, layer.restore, position) + x, layer.expand, position) + maps


def lstm(drive, recurrent_kernel):
    """States `(steps, directions, batch, units)` of an LSTM, study by study and step by step."""
    drive, recurrent_kernel = np.float64(drive), np.float64(recurrent_kernel)
    steps, directions, batch, width = drive.shape
    states = np.zeros((steps, directions, batch, width // 4))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    for direction in range(directions):
        order = range(steps) if direction == 0 else reversed(range(steps))
        h = c = np.zeros((batch, width // 4))
        for step in order:
            gates = drive[step, direction] + h @ recurrent_kernel[direction]
            i, f, g, o = np.split(gates, 4, axis=-1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            states[step, direction] = h
    return states


def gradient(function, array, step=1e-6):
    """Gradient of a number by each element of a float64 array, by central differences."""
    found = np.zeros_like(array)
    for place in np.ndindex(*array.shape):
        around = []
        for sign in (1, -1):
            moved = array.copy()
            moved[place] += sign * step
            around.append(function(moved))
        found[place] = (around[0] - around[1]) / (2 * step)
    return found
