"""A backbone of KerasHub (DINOv2 and others) from a preset's folder on this machine.

KerasHub is imported where a recipe or a model file names it, and never asked to download: its class
is made by its settings, and its weights are read from the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from medseq_tf.errors import InputError, did_you_mean, printable
from medseq_tf.models import applications
from medseq_tf.models.keras_application import KerasNetwork

NAME = "keras_hub"
ARCHITECTURE, WEIGHTS, SCALING = "config.json", "model.weights.h5", "image_converter.json"
LARGEST = 2**20
"""Bytes of a preset's JSON files, which have some 2 KiB."""
OF_EVERY_LAYER = ("name", "trainable", "dtype")


@keras.saving.register_keras_serializable(package="medseq_tf")
class HubNetwork(KerasNetwork):
    """A backbone of KerasHub up to its outputs, for slices in [0, 1].

    Otherwise as `KerasNetwork`. Its configuration holds all that makes the backbone, so that a
    saved model needs KerasHub and no preset.

    Args:
        backbone: the class in `keras_hub.models`.
        settings: the arguments of its constructor.
        scale: of pixels in 0..255, a number or one for red, green and blue.
        offset: what is then added.
        output_name: `average` or `max` over the positions of the last output, a layer's name, or a
            name of the backbone's pyramid (`stage3`); or several.
        frozen: as of `KerasNetwork`.
        seed: seed of the backbone's own dropout.

    Attributes:
        source: the preset's folder, or None.
    """

    def __init__(
        self,
        backbone: str,
        settings: Mapping[str, Any],
        scale: float | Sequence[float],
        offset: float | Sequence[float],
        output_name: str | Sequence[str],
        frozen: str | int,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(backbone, output_name, frozen, seed, **kwargs)
        self.backbone = backbone
        self.settings = dict(settings)
        self.scale, self.offset = scale, offset

    @property
    def made_by(self) -> list[Any]:
        """What decides on the features, besides weights and the shape of a slice."""
        import keras_hub

        return [
            *super().made_by,
            self.settings,
            self.scale,
            self.offset,
            keras_hub.__version__,
        ]

    def _preprocessing(self) -> Callable[[Any], Any]:
        scale, offset = (keras.ops.array(value, "float32") for value in (self.scale, self.offset))

        def preprocess(pictures: Any) -> Any:
            dtype = pictures.dtype
            return pictures * keras.ops.cast(scale, dtype) + keras.ops.cast(offset, dtype)

        return preprocess

    def _network(
        self, input_shape: tuple[int, int, int]
    ) -> tuple[keras.Model, list[keras.layers.Layer]]:
        backbone = self._backbone(input_shape)
        if self.source is not None:
            _load(backbone, Path(self.source))
        (pictures,) = keras.tree.flatten(backbone.input)
        whole = keras.Model(pictures, backbone.output, name=self.backbone)
        outputs = {
            **{name: layer.output for name, layer in applications.named_layers(whole).items()},
            **getattr(backbone, "pyramid_outputs", {}),
        }
        names = [self.output_name] if isinstance(self.output_name, str) else [*self.output_name]
        for name in names:
            if name not in (*applications.POOLINGS, *outputs):
                raise InputError(
                    f"model.encoder.output = {name}: {self.backbone} has no such output"
                    f"{did_you_mean(name, outputs)}; give average, max or one of "
                    f"{', '.join(outputs)}"
                )
        applications.seed_dropout(backbone._flatten_layers(include_self=False), self.seed)
        return applications.up_to(names, whole, self.backbone, outputs.__getitem__), whole.layers

    def _backbone(self, input_shape: tuple[int, int, int]) -> Any:
        settings = dict(self.settings)
        if "image_shape" in settings:
            settings["image_shape"] = input_shape
        try:
            backbone = find(self.backbone)(**settings)
        except (ValueError, TypeError) as error:
            height, width, _ = input_shape
            raise InputError(
                f"input.size: slices of {height} x {width} do not fit {self.backbone}: "
                f"{first_line(error)}"
            ) from None
        shapes = [tensor.shape[1:] for tensor in keras.tree.flatten(backbone.input)]
        fits = len(shapes) == 1 and len(shapes[0]) == 3
        if not fits or any(a not in (None, b) for a, b in zip(shapes[0], input_shape, strict=True)):
            raise InputError(
                f"model.encoder.network = {NAME}: {self.backbone} does not take one picture of "
                f"{' x '.join(map(str, input_shape))}"
            )
        return backbone


def hub_network(
    folder: str, output: str | Sequence[str], frozen: str | int, seed: int | None
) -> HubNetwork:
    """Return the network of a preset's folder, not built; `build` loads its weights.

    Raises:
        InputError: the folder is no preset of a backbone for pictures, or KerasHub is missing.
    """
    path = Path(folder)
    setting = f"model.encoder.weights = {folder}"
    if not path.is_dir():
        raise InputError(
            f"{setting}: no such folder; network {NAME} takes the folder of a preset on this "
            f"machine, which holds {ARCHITECTURE}, {WEIGHTS} and {SCALING}"
        )
    backbone, settings = _described(path / ARCHITECTURE, setting)
    find(backbone)
    _, scaling = _described(path / SCALING, setting)
    scale, offset = scaling.get("scale"), scaling.get("offset")
    return HubNetwork(
        backbone,
        {key: value for key, value in settings.items() if key not in OF_EVERY_LAYER},
        1.0 if scale is None else scale,
        0.0 if offset is None else offset,
        output,
        frozen,
        seed,
        name="network",
    )


def find(backbone: str) -> Any:
    """Return the class of a backbone.

    Raises:
        InputError: KerasHub is not installed, or has no backbone of this name.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise InputError(
            f"model.encoder.network = {NAME}: KerasHub cannot be imported ({first_line(error)}); "
            "pip install keras-hub"
        ) from None
    found, base = getattr(keras_hub.models, backbone, None), keras_hub.models.Backbone
    if not isinstance(found, type) or not issubclass(found, base) or found is base:
        raise InputError(
            f"model.encoder.network = {NAME}: KerasHub {keras_hub.__version__} has no backbone "
            f"{printable(backbone)[:60]}"
        )
    return found


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return printable(str(error).strip().partition("\n")[0])


def _described(file: Path, setting: str) -> tuple[str, dict[str, Any]]:
    """Return class and arguments that a preset's file names; nothing in it is made by Keras."""
    try:
        with open(file, "rb") as opened:
            text = opened.read(LARGEST + 1)
        described = json.loads(text) if len(text) <= LARGEST else {}
        name, arguments = described["class_name"], described["config"]
        is_plain = isinstance(name, str) and isinstance(arguments, dict)
    except OSError as error:
        raise InputError(f"{setting}: {file.name} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        is_plain = False
    if not is_plain:
        raise InputError(f"{setting}: {file.name} is not as KerasHub writes it")
    parts = [
        key
        for key, value in arguments.items()
        if isinstance(value, dict) and "class_name" in value and key not in OF_EVERY_LAYER
    ]
    if parts:
        raise InputError(f"{setting}: {name} is made of other models ({parts[0]}); take a backbone")
    return name, arguments


def _load(backbone: Any, folder: Path) -> None:
    file = folder / WEIGHTS
    if not file.is_file():
        raise InputError(f"model.encoder.weights = {folder}: holds no {WEIGHTS}")
    try:
        backbone.load_weights(os.fspath(file))
    except Exception as error:  # Keras and HDF5 raise their own, over many lines
        raise InputError(
            f"model.encoder.weights = {folder}: {WEIGHTS} does not fit {type(backbone).__name__}: "
            f"{first_line(error)}"
        ) from None
