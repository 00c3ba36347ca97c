"""Networks of `keras.applications`, and one like them, up to some outputs, with their weights."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from medseq_tf.errors import InputError, did_you_mean
from medseq_tf.layers.layer import child_seeds
from medseq_tf.models import efficientnet_lite

POOLINGS = {"average": "avg", "max": "max"}
POOLS = {
    3: (keras.layers.GlobalAveragePooling1D, keras.layers.GlobalMaxPooling1D),
    4: (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D),
}
"""Axes of an output -> its pooling by average and by maximum over all positions."""
OURS = {"EfficientNetLite0": efficientnet_lite.EfficientNetLite0}
"""Networks that `keras.applications` lacks."""

# The statistics that Keras's EfficientNet files hold as mean and variance (RGB).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

PIXELS = 2 * 224 * 224
"""About how many pixels are enough for the statistics of a random network."""


def find(name: str) -> Callable[..., keras.Model]:
    """Return the function, of `keras.applications` or `OURS`, that makes the network of this name.

    Raises:
        InputError: if there is none, with the names most like it.
    """
    function = OURS.get(name) or getattr(keras.applications, name, None)
    if inspect.isfunction(function):
        return function
    known = sorted(n for n, f in vars(keras.applications).items() if inspect.isfunction(f))
    raise InputError(
        f"model.encoder.network = {name}: keras.applications has no such network"
        f"{did_you_mean(name, [*known, *OURS])}; it has {', '.join(known)}; there is also "
        f"{', '.join(OURS)}"
    )


def preprocessing(name: str) -> Callable[[Any], Any]:
    """Return what turns pictures in 0..255 into the network's input, its module's own."""
    if name in OURS:
        return efficientnet_lite.preprocess_input
    module = find(name).__module__.rpartition(".")[2]
    return getattr(keras.applications, module).preprocess_input


def network(
    name: str,
    output: str | Sequence[str],
    input_shape: tuple[int, int, int],
    weights: str | None = "none",
    seed: int | None = None,
) -> tuple[keras.Model, list[keras.layers.Layer]]:
    """Return a network from preprocessed pictures to features, under the dtype policy set.

    Args:
        name: in `keras.applications` or `OURS`.
        output: `average` or `max`: the last feature map, pooled over height and width; or a layer's
            name: its output, pooled by `average` where it is a map. A layer of the classification
            top needs pictures of the network's own size. Names that Keras numbers through a
            session (`activation_94`) are counted from the network's first. Several names give
            their features one after the other, in this order.
        input_shape: `(H, W, 3)`.
        weights: `imagenet`, a file's path, `none` (random, see `randomize`), or None: whatever
            Keras draws, for weights that are set later.
        seed: seed of random weights and of the network's own dropout.

    Returns:
        The network up to that output, and `layers` of the whole one, by which frozen layers count.

    Raises:
        InputError: if there is no such network or layer, `input_shape` does not fit, or the weights
            cannot be had or do not fit.
    """
    outputs = [output] if isinstance(output, str) else list(output)
    whole, options = _unweighted(name, outputs, input_shape)
    if weights is None or weights == "none":
        pass
    elif name in OURS and (weights == "imagenet" or os.fspath(weights).endswith(".pth")):
        efficientnet_lite.load_weights(whole, weights)
    elif weights == "imagenet":
        whole = _download(name, options)
    else:
        _load(whole, name, os.fspath(weights), options)
    model = whole
    if "pooling" not in options:
        model = up_to(outputs, whole, name, lambda layer: named_layers(whole)[layer].output)
    if weights == "none":
        randomize(model, preprocessing(name), seed)
    seed_dropout(model.layers, seed)
    return model, whole.layers


def seed_dropout(layers: Iterable[keras.layers.Layer], seed: int | None) -> None:
    """Let each layer that draws at random draw by a seed of its own, or anew for None."""
    generators = [g for g in map(_seed_generator, layers) if g is not None]
    for generator, child in zip(generators, child_seeds(seed, len(generators)), strict=True):
        if child is not None:
            generator.state.assign([child, 0])


def _seed_generator(layer: keras.layers.Layer) -> Any:
    return getattr(layer, "seed_generator", None)


# ------------------------------------------------------------------------------ the layers


def _unweighted(
    name: str, outputs: list[str], input_shape: tuple[int, int, int]
) -> tuple[keras.Model, dict[str, Any]]:
    """Return the whole network that has these outputs, and the options that it is made with.

    It has its classification top only where an output is a layer of that.
    """
    options: dict[str, Any] = {"include_top": False, "input_shape": input_shape}
    if len(outputs) == 1 and outputs[0] in POOLINGS:
        options["pooling"] = POOLINGS[outputs[0]]
    try:
        whole = _construct(name, None, options)
    except ValueError as error:
        height, width, _ = input_shape
        raise InputError(
            f"input.size: slices of {height} x {width} do not fit {name}: {_first_line(error)}"
        ) from None
    layers = [output for output in outputs if output not in POOLINGS]
    above = [output for output in layers if output not in named_layers(whole)]
    if not above:
        return whole, options
    last_map = [*named_layers(whole)][-1]
    options = {"include_top": True}
    whole = _construct(name, None, options)
    known = named_layers(whole)
    for output in above:
        if output not in known:
            raise InputError(
                f"model.encoder.output = {output}: {name} has no such layer"
                f"{did_you_mean(output, known)}; give average, max or a layer's name"
            )
    own, asked = whole.input_shape[1:3], input_shape[:2]
    if own != asked:
        raise InputError(
            f"model.encoder.output = {above[0]}: this layer of {name} needs slices of {own[0]} x "
            f"{own[1]}, got {asked[0]} x {asked[1]}; set input.size={own[0]}, or "
            "model.encoder.output=average for any size"
        )
    if layers != outputs:
        raise InputError(
            f"model.encoder.output = [{', '.join(outputs)}]: average and max cannot be joined with "
            f"{above[0]}, a layer of the classification top; name {last_map} in their place"
        )
    return whole, options


def _construct(name: str, weights: str | None, options: dict[str, Any]) -> keras.Model:
    with warnings.catch_warnings():
        # MobileNet warns that at sizes of one's own it takes the weights of 224 pixels, as wanted.
        warnings.simplefilter("ignore")
        if name in OURS:
            return find(name)(**options)
        return find(name)(weights=weights, **options)


def named_layers(network: keras.Model) -> dict[str, keras.layers.Layer]:
    """Return the layers by their names, as they are in a session without any other network.

    Keras numbers layers without a name of their own (`conv2d`, `conv2d_1`...) through a session:
    what `activation_9` means would depend on what was built before.
    """
    numbers: dict[str, list[int]] = {}
    matches = {layer: re.fullmatch(r"(\w+?)(?:_(\d+))?", layer.name) for layer in network.layers}
    automatic = {
        layer: (match[1], int(match[2] or 0))
        for layer, match in matches.items()
        if match and match[1] == _automatic_name(layer)
    }
    for kind, number in automatic.values():
        numbers.setdefault(kind, []).append(number)
    names = {}
    for layer in network.layers:
        name = layer.name
        if layer in automatic:
            kind, number = automatic[layer]
            number -= min(numbers[kind])
            name = f"{kind}_{number}" if number else kind
        names[name] = layer
    return names


def _automatic_name(layer: keras.layers.Layer) -> str:
    """Return the name that Keras gives a layer: `conv2d` to a `Conv2D`."""
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", type(layer).__name__)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def up_to(
    outputs: list[str], whole: keras.Model, name: str, output_of: Callable[[str], Any]
) -> keras.Model:
    """Return a network up to some outputs, made vectors and joined.

    Args:
        outputs: `average` or `max` of the last output, or names of others.
        whole: the network.
        name: what it is called in errors.
        output_of: gives the output of a name.
    """
    if len(outputs) == 1:
        features = _vectors(outputs[0], whole, name, output_of, "average")
    else:
        vectors = [_vectors(one, whole, name, output_of, f"{one}_pooled") for one in outputs]
        features = keras.layers.Concatenate(name="joined")(vectors)
    return keras.Model(whole.input, features, name=whole.name)


def _vectors(
    output: str, whole: keras.Model, name: str, output_of: Callable[[str], Any], pooling: str
) -> Any:
    """Return one output, by a layer of the name `pooling` where it has positions."""
    features = whole.output if output in POOLINGS else output_of(output)
    rank = len(features.shape)
    if rank in POOLS:
        by_average, by_max = POOLS[rank]
        features = (by_max if output == "max" else by_average)(name=pooling)(features)
    elif rank != 2:
        raise InputError(
            f"model.encoder.output = {output}: this layer of {name} gives neither a vector nor a "
            "map; give average, max or another layer's name"
        )
    return features


@contextmanager
def dtype_policy(policy: keras.DTypePolicy) -> Iterator[None]:
    """Let networks made inside compute under this policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


# -------------------------------------------------------------------------- random weights


def randomize(model: keras.Model, preprocess: Callable[[Any], Any], seed: int | None) -> None:
    """Draw every weight, so that features have a scale near 1 for pictures like slices.

    Kernels are normal with variance 2 / inputs (He et al. 2015, equation 10), biases and offsets 0.
    The first kernel is divided by the scale of what it makes of random discs, and the batch
    normalisations get their moving statistics from the same pictures: at the values that Keras
    begins with, they would change nothing in inference, and deep networks would overflow or fade.

    Args:
        model: a network of `keras.applications`, in place.
        preprocess: of pictures in 0..255.
        seed: the same seed gives the same weights, bit for bit; None draws anew.
    """
    rng = np.random.default_rng(seed)
    kernels = [(layer, w) for layer in model.layers for w in layer.weights if "kernel" in w.name]
    for layer, kernel in kernels:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D) or "depth" in kernel.name
        inputs = np.prod(kernel.shape[:2] if depthwise else kernel.shape[:-1])
        draw = rng.standard_normal(kernel.shape, np.float32)
        draw *= np.sqrt(2 / inputs)
        kernel.assign(draw)
    height, width, _ = model.input_shape[1:]
    pictures = preprocess(keras.ops.convert_to_tensor(_pictures(height, width, rng)))
    layer, kernel = kernels[0]
    made = keras.Model(model.input, layer.output)(pictures)
    scale = np.sqrt(np.mean(np.square(np.asarray(made, "float32"))))
    kernel.assign(np.asarray(kernel) / scale)
    _take_statistics(model, pictures)


def _pictures(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """2 to 8 pictures, 0..255: a disc of 8 x 8 random greys on black, alike in all channels."""
    count = min(max(PIXELS // (height * width), 2), 8)
    greys = rng.uniform(0, 255, (count, 8, 8, 1)).astype("float32")
    rows, columns = ((np.arange(side) + 0.5) * 8 / side for side in (height, width))
    inside = np.hypot(rows[:, None] - 4, columns - 4) < 3.5
    pictures = greys[:, rows.astype(int)][:, :, columns.astype(int)] * inside[..., None]
    return np.repeat(pictures.astype("float32"), 3, axis=-1)


def _take_statistics(model: keras.Model, pictures: Any) -> None:
    """Set the moving statistics of every batch normalisation to those of one batch."""
    kinds = {keras.layers.BatchNormalization: "momentum", keras.layers.Dropout: "rate"}
    normal = [
        (layer, name, getattr(layer, name))
        for layer in model.layers
        for kind, name in kinds.items()
        if isinstance(layer, kind)
    ]
    if not any(name == "momentum" for _, name, _ in normal):
        return
    try:
        for layer, name, _ in normal:
            setattr(layer, name, 0.0)
        model(pictures, training=True)
    finally:
        for layer, name, value in normal:
            setattr(layer, name, value)


# ------------------------------------------------------------------------- loaded weights


def _download(name: str, options: dict[str, Any]) -> keras.Model:
    try:
        whole = _construct(name, "imagenet", options)
    except Exception as error:  # Keras raises a bare Exception where a download fails
        address = re.search(r"https?://\S+?\.h5", str(error))
        if not address:
            reason = _first_line(error)
            raise InputError(f"model.encoder.weights = imagenet: {name}: {reason}") from None
        file = address[0].rpartition("/")[2]
        raise InputError(
            f"model.encoder.weights = imagenet: {name}'s weights cannot be downloaded; fetch "
            f"{address[0]} by other means and name the file: --set model.encoder.weights="
            f"PATH/{file}"
        ) from None
    if find(name).__module__.rpartition(".")[2] == "efficientnet":
        # Keras adds a layer to it that a network without `weights="imagenet"` lacks, and a loaded
        # model has to be the same network.
        plain = _construct(name, None, options)
        _copy_weights(whole, plain)
        whole = plain
        _mend_normalization(whole)
    return whole


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    pairs = zip(
        (layer for layer in source.layers if layer.weights),
        (layer for layer in target.layers if layer.weights),
        strict=True,
    )
    for old, new in pairs:
        new.set_weights(old.get_weights())
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()


def _mend_normalization(model: keras.Model) -> None:
    """Make EfficientNet's first normalisation divide by the deviation, as it was trained.

    Keras's files hold the deviation where the layer expects the variance. Keras makes up for that
    by a layer that it adds for `weights="imagenet"` alone; here the value itself is put right,
    wherever a file comes from.
    """
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Normalization) or len(layer.weights) < 2:
            continue
        mean, variance, *_ = layer.get_weights()
        if np.allclose(mean, IMAGENET_MEAN) and np.allclose(variance, IMAGENET_DEVIATION):
            layer.variables[1].assign(np.square(variance))
            layer.finalize_state()


def _load(whole: keras.Model, name: str, path: str, options: dict[str, Any]) -> None:
    """Load a file as `keras.applications` does, or raise one line that says what is wrong."""
    setting = f"model.encoder.weights = {path}"
    if not os.path.isfile(path):
        raise InputError(f"{setting}: no such file; give imagenet, none or a weights file's path")
    if not path.endswith((".h5", ".hdf5")):
        raise InputError(f"{setting}: a file of Keras weights ends in .h5 or .weights.h5")
    held, older = _held(path, setting)
    if older == path.endswith(".weights.h5"):
        right = ".h5, without .weights" if older else ".weights.h5"
        raise InputError(f"{setting}: its layout is that of a file that ends in {right}; rename it")
    if held != whole.count_params():
        raise InputError(f"{setting}: {_misfit(name, held, whole, options)}")
    try:
        whole.load_weights(path)
    except (ValueError, KeyError, OSError, RuntimeError, TypeError) as error:
        raise InputError(f"{setting}: does not fit {name}: {_first_line(error)}") from None
    _mend_normalization(whole)


def _held(path: str, setting: str) -> tuple[int, bool]:
    """How many numbers a weights file holds, and whether its layout is that of before Keras 3."""
    import h5py

    sizes: dict[str, int] = {}
    try:
        with h5py.File(path, "r") as file:
            older = "layer_names" in file.attrs or "model_weights" in file
            file.visititems(
                lambda key, item: (
                    sizes.update({key: item.size}) if isinstance(item, h5py.Dataset) else None
                )
            )
    except (OSError, RuntimeError) as error:
        raise InputError(f"{setting}: is not an HDF5 file that can be read") from error
    others = ("optimizer", "seed_generator")
    return sum(n for key, n in sizes.items() if not any(o in key for o in others)), older


def _misfit(name: str, held: int, whole: keras.Model, options: dict[str, Any]) -> str:
    """Why a file with another number of weights than the network's does not fit it."""
    top = options["include_top"]
    if held == _construct(name, None, {"include_top": not top}).count_params():
        return (
            f"holds {name} without the classification layers that this output needs; take the "
            "file without _notop in its name"
            if top
            else f"holds {name} with its classification layers, which this output does without; "
            "take the file with _notop in its name"
        )
    return (
        f"does not fit {name}: it holds {held:,} weights, the network has {whole.count_params():,}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
