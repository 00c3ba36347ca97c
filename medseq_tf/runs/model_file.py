"""The file `model.keras`: loaded, or refused in one line that says what is wrong with it.

The file is a ZIP archive of a configuration (JSON) and weights (HDF5). Both are looked through
before Keras builds anything: the configuration may name this package's layers alone, so that no
code stands in it and no other file is read; and the weights lie in the archive, as large as it is.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medseq_tf.errors import InputError

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
LARGEST_CONFIG = 4 * 2**20
"""Bytes; those of our presets have some 10 KiB."""
DEEPEST = 40
"""Levels of a configuration, and of the weights of layers within layers."""
SMALL, LARGEST = 1024, 32_768
"""A number up to the first is believed; up to the second, the widest layer of a recipe, where there
are as many weights: a layer of so many units has more."""
_NO_SIZES = ("seed", "shared_object_id")
_OF_KERAS = (("keras", "DTypePolicy"), ("keras.layers", "Flatten"))


class _Unusable(ValueError):
    """The reason why a file is no model of ours."""


def load_model_file(path: Path) -> Any:
    """Load a Keras model that `train` wrote.

    Raises:
        InputError: one line that names the file and the reason.
    """
    try:
        _check(path)
        return _load(path)
    except _Unusable as error:
        reason = str(error)
    except (zipfile.BadZipFile, EOFError, NotImplementedError):
        reason = "damaged or cut short"
    except MemoryError:
        reason = "takes more memory than there is"
    raise InputError(
        f"{path}: cannot be used ({reason}); take the model.keras that train wrote there, or train "
        "anew"
    )


def _load(path: Path) -> Any:
    """Load a file that was looked through."""
    import keras

    import medseq_tf.models  # registers the layers

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except InputError:
        raise
    except (zipfile.BadZipFile, EOFError, MemoryError):
        raise
    except Exception:  # Keras, HDF5 and TensorFlow raise their own, over many lines
        raise _Unusable("its layers and weights do not fit together") from None
    if not isinstance(model, medseq_tf.models.SequenceClassifier):
        raise _Unusable("a model of another kind")
    return model


def _check(path: Path) -> None:
    """Look through a file, of which Keras has built nothing yet."""
    with zipfile.ZipFile(path) as archive:
        _check_members(archive.infolist(), path.stat().st_size)
        try:
            config = json.loads(archive.read(CONFIG))
        except (ValueError, RecursionError):
            raise _Unusable("damaged or cut short") from None
        weights = _count_weights(archive.read(WEIGHTS))
    if not isinstance(config, dict):
        raise _Unusable("damaged or cut short")
    for key, value, level in _walk(config):
        if level > DEEPEST:
            raise _Unusable("a configuration deeper than any of ours")
        if isinstance(value, dict) and "class_name" in value:
            _check_class(value)
        is_size = isinstance(value, int | float) and key not in _NO_SIZES
        if is_size and abs(value) > min(LARGEST, max(SMALL, weights)):
            raise _Unusable(f"{key} = {value} stands in its configuration, with {weights} weights")


def _check_members(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Look through the table of contents of an archive of so many bytes."""
    members = {info.filename: info for info in infos}
    if len(members) != len(infos) or not set(members) <= {CONFIG, WEIGHTS, METADATA}:
        raise _Unusable("holds other files than a model of this package")
    if CONFIG not in members:
        raise _Unusable("holds no configuration of a model")
    if WEIGHTS not in members:
        raise _Unusable("holds no weights")
    if members[CONFIG].file_size > LARGEST_CONFIG:
        raise _Unusable("a configuration far larger than any of ours")
    if any(info.file_size > size for name, info in members.items() if name != CONFIG):
        raise _Unusable("unpacks to more than it holds, which train's never do")
    if any(info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise _Unusable("is encrypted or packed, which train's never are")


def _walk(value: Any) -> Iterator[tuple[str, Any, int]]:
    """Yield everything in nested values with its key and level, without recursion."""
    waiting = [("", value, 0)]
    while waiting:
        key, value, level = waiting.pop()
        yield key, value, level
        if isinstance(value, dict):
            waiting += [(str(k), v, level + 1) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(key, v, level + 1) for v in value]


def _check_class(value: dict[str, Any]) -> None:
    """Refuse any class but this package's layers and the few of Keras that they hold."""
    is_ours = str(value.get("registered_name")).startswith("medseq_tf>")
    if not is_ours and (value.get("module"), value["class_name"]) not in _OF_KERAS:
        name = str(value["class_name"])[:40]
        raise _Unusable(f"holds a {name!r}, which is no layer of this package")


def _count_weights(data: bytes) -> int:
    """Look through an HDF5 file; return how many numbers its arrays are."""
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            arrays = list(_arrays(file))
    except _Unusable:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        raise _Unusable("its weights are damaged or cut short") from None
    if not arrays:
        raise _Unusable("holds no weights")
    if sum(size * width for size, width in arrays) > len(data):
        raise _Unusable("declares more weights than it holds")
    return sum(size for size, _ in arrays)


def _arrays(file: Any) -> Iterator[tuple[int, int]]:
    """Yield the size of every array, and the bytes of a number in it; nothing may be linked."""
    import h5py

    waiting = [(file, 0)]
    seen = set()
    while waiting:
        group, level = waiting.pop()
        identity = h5py.h5o.get_info(group.id).addr
        if level > DEEPEST or identity in seen:
            raise _Unusable("its weights lie in circles")
        seen.add(identity)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _Unusable("its weights are links to elsewhere")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((item, level + 1))
            elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
                raise _Unusable("its weights are links to elsewhere")
            elif item.size is not None:
                yield int(np.prod(item.shape, dtype=object)), item.dtype.itemsize
