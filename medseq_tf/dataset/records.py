"""A study's record: its slices brought to their stored size, encoded and hashed.

This is what runs in the worker processes of `prepare`, so it imports neither TensorFlow nor pandas.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import google_crc32c
import numpy as np

from medseq_tf.dataset.tfrecord import Value, encode_example, frame, unframe
from medseq_tf.readers import AuditEntry, Slices, StudySource, UnreadableStudy
from medseq_tf.readers.storage import UnavailableStudy

Aspect = Literal["pad", "stretch"]

STORAGE: dict[str, dict[str, Any]] = {
    "uint8": {"dtype": "uint8", "offset": 0},
    "uint16": {"dtype": "uint16", "offset": 0},
    "int16": {"dtype": "uint16", "offset": -32768},
}
"""How intensities of each dtype stand in a PNG: intensity = stored + offset."""

FEWEST_TELLING_PIXELS = 16
"""Two patients' slices with fewer pixels than this off their background may well be the same."""

HASHED_BYTES = 8192

# A slice at least so flat (a mask, a volume of few tones) is a tenth as large packed.
_PACKED_WITH_SAME_NEIGHBOURS = 0.9

# To pack a CT slice costs half as much as to decode a JPEG file, and halves it; it is stored as it
# is, which also decodes four times as fast. Run lengths pack flat slices as well as a search does.
# OpenCV before 4.12 tries five filters on each row.
_NO_FILTER = (
    (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
    if hasattr(cv2, "IMWRITE_PNG_FILTER")
    else ()
)
_STORED = (cv2.IMWRITE_PNG_COMPRESSION, 0, *_NO_FILTER)
_PACKED = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *_NO_FILTER,
)


@dataclass(frozen=True)
class StorageSpec:
    """How slices are stored: (size, size), `pad` or `stretch`, intensities of `dtype`.

    Slices of several `channels` are (size, size, channels).
    """

    label_names: tuple[str, ...]
    dtype: str
    size: int
    aspect: Aspect
    channels: int = 1


@dataclass(frozen=True)
class StudyRecord:
    """A study as it goes into a shard, or why it does not.

    Attributes:
        framed: its TFRecord frame; empty if the study is left out.
        content_hash: SHA-256 over the hashes of all slices, in order, and of their masks.
        slice_hashes: one hash a slice, see `slice_hash`; None for a slice of which fewer than
            `FEWEST_TELLING_PIXELS` native pixels differ from its most common value, which says too
            little about where it came from.
        slice_names: what the slices are called in audit entries; empty: by their number.
        series: the number of each slice's series; empty where they are not told apart.
        audit_entries: what was odd about the study.
        pictures: which of the study's pictures each slice is, see `Slices.pictures`.
    """

    framed: bytes = b""
    content_hash: str = ""
    slice_hashes: list[str | None] = field(default_factory=list)
    slice_names: list[str] = field(default_factory=list)
    series: list[int] = field(default_factory=list)
    audit_entries: list[AuditEntry] = field(default_factory=list)
    pictures: tuple[int, ...] | None = None

    @property
    def example(self) -> bytes:
        """The serialised `tf.train.Example`; for a study that is not left out."""
        return unframe(self.framed)


def start_worker() -> None:
    """Let a worker process use one thread, SimpleITK included where it is imported later."""
    cv2.setNumThreads(1)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"


def study_record_of(task: tuple[StudySource, str, StorageSpec]) -> StudyRecord:
    """Make the `study_record` of a study, its id and a storage spec, in one argument."""
    return study_record(*task)


def study_record(study: StudySource, study_id: str, storage: StorageSpec) -> StudyRecord:
    """Read a study, bring its slices to one size and encode them."""
    try:
        slices = study.read()
    except UnreadableStudy as error:
        return left_out(study, error.reason, error.audit_entries)
    except UnavailableStudy as error:
        return left_out(study, str(error))
    except MemoryError:
        return left_out(study, "takes more memory than a process may have")
    _check(slices, storage)
    hashes = [slice_hash(image) for image in slices.images]
    mask_hashes = [slice_hash(mask) for mask in slices.masks or []]
    first = dict(zip(reversed(hashes), reversed(slices.images), strict=True))
    tells = {digest: is_telling(image) for digest, image in first.items()}
    features: dict[str, Value] = {
        "labels": np.array([study.labels[name] for name in storage.label_names], np.float32),
        "slices": _encoded(stored_slice(image, storage) for image in slices.images),
        "study_id": [study_id.encode()],
    }
    if slices.masks is not None:
        features["masks"] = _encoded(stored_mask(mask, storage) for mask in slices.masks)
    try:
        framed = frame(encode_example(features))
    except ValueError:
        return left_out(study, "takes more than 2 GiB; prepare with a smaller size")
    return StudyRecord(
        framed=framed,
        content_hash=hashlib.sha256(f"{hashes} {mask_hashes}".encode()).hexdigest(),
        slice_hashes=[digest if tells[digest] else None for digest in hashes],
        slice_names=slices.names,
        series=slices.series,
        audit_entries=slices.audit_entries + _mixed_sizes(study, slices),
        pictures=slices.pictures,
    )


def left_out(study: StudySource, reason: str, others: Sequence[AuditEntry] = ()) -> StudyRecord:
    """Return the record of a study that is left out, with what else was odd about it."""
    return StudyRecord(audit_entries=[*others, AuditEntry("study left out", study.source, reason)])


def is_telling(image: np.ndarray) -> bool:
    """Whether `FEWEST_TELLING_PIXELS` pixels or more of a slice differ from its most common value.

    Of several channels, whether those of one do. If fewer do, the most common value is the majority
    of any 31 pixels, and so their median.
    """
    if image.ndim > 2:
        return any(map(is_telling, np.moveaxis(image, -1, 0)))
    pixels = image.ravel()
    if pixels.size < 2 * FEWEST_TELLING_PIXELS:
        return pixels.size - np.unique(pixels, return_counts=True)[1].max() >= FEWEST_TELLING_PIXELS
    median = np.sort(pixels[: 2 * FEWEST_TELLING_PIXELS - 1])[FEWEST_TELLING_PIXELS - 1]
    middle = pixels[pixels.size // 2 :][:2048]  # enough, most times
    return any(np.count_nonzero(p != median) >= FEWEST_TELLING_PIXELS for p in (middle, pixels))


def to_square(image: np.ndarray, size: int, aspect: Aspect, interpolation: int) -> np.ndarray:
    """Bring a slice (H, W) or (H, W, channels) to (size, size) or (size, size, channels).

    `pad` first pads the shorter side to a square, the slice centred (where one pixel is left over,
    it goes to the bottom or right), with 0 for uint8 and the channel's minimum otherwise. `stretch`
    does not keep the aspect ratio. `interpolation` is OpenCV's flag.
    """
    height, width = image.shape[:2]
    if aspect == "pad" and height != width:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        edges = (top, side - height - top, left, side - width - left)
        value = 0 if image.dtype == np.uint8 else image.min(axis=(0, 1)).tolist()
        image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=value)
    if image.shape[:2] == (size, size):
        return image
    return cv2.resize(image, (size, size), interpolation=interpolation)


def from_square(square: np.ndarray, height: int, width: int, aspect: Aspect) -> np.ndarray:
    """Bring values of a stored slice (size, size) back to the (H, W) that `to_square` was given.

    They are interpolated linearly, or by area to shrink.
    """
    side = max(height, width)
    rows, columns = (side, side) if aspect == "pad" else (height, width)
    if square.shape[:2] != (rows, columns):
        shrinks = max(rows, columns) <= square.shape[0]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        square = cv2.resize(square, (columns, rows), interpolation=interpolation)
    top, left = (rows - height) // 2, (columns - width) // 2
    return square[top : top + height, left : left + width]


def _encoded(squares: Iterable[np.ndarray]) -> list[bytes]:
    """Encode each as PNG; a run of equal ones (blank slices, empty masks) is encoded once."""
    encoded, last = [], b""
    for square in squares:
        pixels = square.tobytes()
        if pixels != last:
            png, last = _png(square), pixels
        encoded.append(png)
    return encoded


def stored_slice(image: np.ndarray, storage: StorageSpec) -> np.ndarray:
    """Return a slice (H, W) as it is stored: (size, size), by area to shrink, linearly to grow."""
    sides = image.shape[:2]
    shrinks = (min(sides) if storage.aspect == "stretch" else max(sides)) >= storage.size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    square = to_square(image, storage.size, storage.aspect, interpolation)
    form = STORAGE[storage.dtype]
    if form["offset"]:
        square = (square.astype(np.int32) - form["offset"]).astype(form["dtype"])
    return square


def stored_mask(mask: np.ndarray, storage: StorageSpec) -> np.ndarray:
    """Return a mask (H, W) as it is stored: (size, size) of 0 and 255."""
    nearest = cv2.INTER_NEAREST_EXACT
    return np.uint8(255) * (to_square(mask, storage.size, storage.aspect, nearest) > 0)


def _png(image: np.ndarray) -> bytes:
    pixels = image.ravel()
    differing = np.count_nonzero(pixels[1:] != pixels[:-1])
    is_flat = differing <= (1 - _PACKED_WITH_SAME_NEIGHBOURS) * pixels.size
    coloured = image if image.ndim == 2 else image[..., png_channels(image.shape[-1])]
    return cv2.imencode(".png", coloured, _PACKED if is_flat else _STORED)[1].tobytes()


def png_channels(channels: int) -> list[int]:
    """Return which channel stands for each of a PNG's: blue, green, red and alpha.

    So a file's red is the first channel. Of two channels the second stands for blue, too.
    """
    return {2: [1, 1, 0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]


def slice_hash(image: np.ndarray) -> str:
    """Hash a slice's shape and native pixels (SHA-256); a large one's by every nth row and a CRC.

    Slices with the same pixels have the same hash, at whatever size they are stored. Two others may
    only share one if they are alike in all those rows, and of such pairs one in 2**32 does. For a
    picture of 256 x 256 it takes a fifth of the time of SHA-256 over all rows.
    """
    step = max(image.nbytes // HASHED_BYTES, 1)
    crc = google_crc32c.value(np.ascontiguousarray(image)) if step > 1 else 0
    digest = hashlib.sha256(f"{image.dtype.str} {image.shape} {crc}".encode())
    digest.update(np.ascontiguousarray(image[::step]).data)
    return digest.hexdigest()[:32]


def _mixed_sizes(study: StudySource, slices: Slices) -> list[AuditEntry]:
    sizes: dict[tuple[int, int], int] = {}
    for image in slices.images:
        height, width = image.shape[:2]
        sizes[height, width] = sizes.get((height, width), 0) + 1
    if len(sizes) == 1:
        return []
    counted = ", ".join(f"{count} of {w} x {h}" for (h, w), count in sizes.items())
    return [AuditEntry("mixed sizes in a study", study.source, counted)]


def _check(slices: Slices, storage: StorageSpec) -> None:
    """Hold a reader to its contract."""
    images, masks = slices.images, slices.masks
    if not images:
        raise TypeError("a study without slices is an UnreadableStudy")
    channels = () if storage.channels == 1 else (storage.channels,)
    if any(
        image.ndim < 2
        or image.shape[2:] != channels
        or not image.size
        or image.dtype != storage.dtype
        for image in images
    ):
        raise TypeError(f"slices are (H, W) {storage.dtype}, as the source index says")
    if slices.series and len(slices.series) != len(images):
        raise TypeError("each slice is of a series, or none is")
    if slices.pictures is not None and len(slices.pictures) != len(images):
        raise TypeError("each slice is a picture, or none is")
    if masks is not None and [m.shape for m in masks] != [image.shape[:2] for image in images]:
        raise TypeError("each slice has a mask of its own shape, or none has")
