"""The weights of paper 1's PyTorch network for a `fsm_bilstm_paper` model.

`recipe/presets/WEIGHTS.md` says which tensor goes where. NumPy is enough: a checkpoint is read with
PyTorch elsewhere, `{name: tensor.numpy() for name, tensor in state_dict.items()}`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.layers import (
    BatchNormalization,
    PerPosition,
    PerPositionConv2D,
    RecurrentLayer,
)
from medseq_tf.models.classifier import SequenceClassifier
from medseq_tf.models.encoders import ConvFSMStack

ANCHOR = "sequence_convolutions.0.convs.0.weight"
TORCH_EPSILON = 1e-5
LARGEST = 2**30
"""Bytes of a file's tensors; the paper's network has some 4 MiB."""
FSM_BLOCKS = {
    "reduce": ("for_x",),
    "project": ("for_theta", "for_phi", "for_g"),
    "restore": ("y_conv",),
    "expand": ("last_conv",),
}

Pairs = Iterator[tuple[keras.Variable, np.ndarray, str]]
"""A variable, its value and the name of the (first) tensor that the value is made of."""


class _Tensors:
    """The tensors by name, which remembers what was taken."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        prefixes = [name.removesuffix(ANCHOR) for name in tensors if name.endswith(ANCHOR)]
        if len(prefixes) != 1:
            raise InputError(
                f"expected the tensors of one FSM + Bi-LSTM network, found {len(prefixes)} of "
                f"the name {ANCHOR}"
            )
        self.prefix = prefixes[0]
        self.tensors = tensors
        self.left = {
            name
            for name in tensors
            if name.startswith(self.prefix) and not name.endswith("num_batches_tracked")
        }

    def take(self, name: str) -> np.ndarray:
        """Return a tensor by its name without the prefix."""
        name = self.prefix + name
        if name not in self.tensors:
            raise InputError(f"the PyTorch weights have no tensor {name}")
        self.left.discard(name)
        tensor = np.asarray(self.tensors[name])
        is_number = tensor.dtype.kind in "fiu"
        if not is_number or not (np.abs(tensor) <= np.finfo("float32").max).all():
            raise InputError(f"{name} of the PyTorch weights is not of finite numbers alone")
        return tensor


def load_torch_weights(path: str | os.PathLike, model: SequenceClassifier) -> None:
    """Set a model's weights from a file of the PyTorch network's tensors.

    Args:
        path: a file of `numpy.savez`, the tensors by their names in `state_dict()`.
        model: as in `fsm_bilstm_from_torch`.

    Raises:
        InputError: for a file that cannot be read, and as `fsm_bilstm_from_torch`.
    """
    setting = f"model.initial_weights = {path}"
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LARGEST:
            raise ValueError
        with np.load(path, allow_pickle=False) as arrays:
            tensors = dict(arrays)
    except Exception:  # whatever zipfile, zlib and NumPy make of a file that is none
        raise InputError(
            f"{setting}: is no file of tensors that can be read; write one with numpy.savez"
        ) from None
    try:
        fsm_bilstm_from_torch(tensors, model)
    except InputError as error:
        raise InputError(f"{setting}: {error}") from None


def fsm_bilstm_from_torch(
    state_dict_as_numpy: Mapping[str, np.ndarray], model: SequenceClassifier
) -> None:
    """Set every weight and moving statistic of `model` from paper 1's PyTorch network.

    Args:
        state_dict_as_numpy: tensors by their names in the public code's `state_dict()`, with any
            one prefix, such as `net.`, before them.
        model: a built classifier of a `conv_fsm` encoder with weights per position, a
            bidirectional `lstm` aggregator and one hidden layer in the head.

    Raises:
        InputError: for another kind of model, or a tensor that is missing, left over or of the
            wrong shape. The model keeps its weights then.
    """
    tensors, stack = _Tensors(state_dict_as_numpy), _paper_stack(model)
    try:
        values = [*_encoder(tensors, stack), *_recurrent(tensors, model), *_head(tensors, model)]
    except InputError:
        raise
    except ValueError as error:  # InputError is one
        raise InputError(f"tensors of the PyTorch weights do not fit together: {error}") from None
    if tensors.left:
        raise InputError(
            f"the model has no place for {len(tensors.left)} tensors of the PyTorch weights, "
            f"such as {min(tensors.left)}"
        )
    for variable, value, name in values:
        if tuple(variable.shape) != value.shape:
            raise InputError(
                f"{name} of the PyTorch weights makes {value.shape}, the model needs "
                f"{tuple(variable.shape)} for {variable.path}"
            )
    for variable, value, _ in values:
        variable.assign(value)


def _paper_stack(model: SequenceClassifier) -> ConvFSMStack:
    per_position = getattr(model.encoder, "slices_to_features", None)
    cell = getattr(model.aggregator, "cell", None)
    if not (
        isinstance(per_position, PerPosition)
        and getattr(per_position.layer, "fsm", None)
        and cell == "lstm"
        and model.aggregator.bidirectional
        and len(model.head.hidden) == 1
    ):
        raise InputError(
            "the PyTorch weights fit a model with encoder.weights=per_position and an fsm, a "
            "bidirectional lstm and one hidden layer in the head"
        )
    if model.head.exclusive:
        raise InputError(
            "the PyTorch weights tell yes or no to a label, and the data set has classes"
        )
    if per_position.layer.epsilon != TORCH_EPSILON:
        raise InputError(
            f"batch_norm_epsilon is {per_position.layer.epsilon:g}; the PyTorch network's is 1e-5"
        )
    return per_position.layer


def _encoder(tensors: _Tensors, stack: ConvFSMStack) -> Pairs:
    for number, stage in enumerate(stack.stages):
        name = f"sequence_convolutions.{number}"
        convolutions = [f"{name}.convs.{position}" for position in range(stack.positions)]
        yield from _convolution(tensors, stage.convolution, convolutions)
        yield from _normalization(tensors, stage.normalization, [f"{name}.bn"])
    for block, parts in FSM_BLOCKS.items():
        names = [
            f"fsms.fsms.{position}.{part}.layer"
            for position in range(stack.positions)
            for part in parts
        ]
        ours = getattr(stack.fsm, block)
        yield from _convolution(tensors, ours.convolution, [f"{name}.0" for name in names])
        yield from _normalization(tensors, ours.normalization, [f"{name}.1" for name in names])


def _convolution(tensors: _Tensors, layer: PerPositionConv2D, names: list[str]) -> Pairs:
    kernels = [tensors.take(f"{name}.weight").transpose(2, 3, 1, 0) for name in names]
    biases = [tensors.take(f"{name}.bias") for name in names]
    yield layer.kernel, np.concatenate(kernels, axis=-1), f"{names[0]}.weight"
    yield layer.bias, np.concatenate(biases), f"{names[0]}.bias"


def _normalization(tensors: _Tensors, layer: BatchNormalization, names: list[str]) -> Pairs:
    ours = {
        "weight": layer.gamma,
        "bias": layer.beta,
        "running_mean": layer.moving_mean,
        "running_var": layer.moving_variance,
    }
    for theirs, variable in ours.items():
        parts = [tensors.take(f"{name}.{theirs}") for name in names]
        yield variable, np.concatenate(parts), f"{names[0]}.{theirs}"


def _recurrent(tensors: _Tensors, model: SequenceClassifier) -> Pairs:
    for number, layer in enumerate(model.aggregator.stack):
        yield from _lstm(tensors, layer, number, model if number == 0 else None)


def _lstm(
    tensors: _Tensors, layer: RecurrentLayer, number: int, first_of: SequenceClassifier | None
) -> Pairs:
    ends = (f"l{number}", f"l{number}_reverse")
    kernels = [tensors.take(f"lstm.weight_ih_{end}").T for end in ends]
    if first_of is not None:
        kernels = [_channels_last(kernel, first_of) for kernel in kernels]
    states = [tensors.take(f"lstm.weight_hh_{end}").T for end in ends]
    biases = [
        np.add(*np.stack([tensors.take(f"lstm.bias_{of}_{end}") for of in ("ih", "hh")]))
        for end in ends
    ]
    yield layer.kernel, np.stack(kernels, axis=1), f"lstm.weight_ih_{ends[0]}"
    yield layer.recurrent_kernel, np.stack(states), f"lstm.weight_hh_{ends[0]}"
    yield layer.bias, np.stack(biases), f"lstm.bias_ih_{ends[0]}"


def _channels_last(kernel: np.ndarray, model: SequenceClassifier) -> np.ndarray:
    """Bring rows of `kernel` from the order channel, height, width to height, width, channel."""
    stack = model.encoder.slices_to_features.layer
    if stack.pooling != "flatten":
        return kernel
    height, width, channels = stack.maps_shape(model.slice_shape)
    if kernel.shape[:1] != (height * width * channels,):
        return kernel  # refused by its shape
    rows = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
    return rows.reshape(kernel.shape)


def _head(tensors: _Tensors, model: SequenceClassifier) -> Pairs:
    # dense.1 and dense.2 are the activation and the dropout, which have no tensors.
    for layer, name in zip((model.head.hidden[0], model.head.logits), ("0", "3"), strict=True):
        yield layer.kernel, tensors.take(f"dense.{name}.weight").T, f"dense.{name}.weight"
        yield layer.bias, tensors.take(f"dense.{name}.bias"), f"dense.{name}.bias"
