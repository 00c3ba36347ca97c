"""The intensities of DICOM pictures: HU for CT, for MR see `readers.intensities`.

Rescale slope and intercept are applied, frame by frame. They are those of the modality (PS3.3,
C.11.1, and for multi-frame images C.7.6.16.2.9); a real world value mapping is none: there may be
several, each of other units, and scanners write both. MONOCHROME1 images are inverted within the
range of their stored bits first, as SimpleITK does. Pixels that the file calls padding
(PixelPaddingValue, to PixelPaddingRangeLimit; PS3.3, C.7.5.1.1.2), such as those outside the
scanner's field of view, take the study's smallest other value, and are counted in the audit. They
stay as they are where they look like air already: no more than any other pixel, and no less than
-1024 HU, or 0 in MR. Where the value of padding lies among those of other pixels, the header is not
believed, and nothing is changed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from medseq_tf.readers.dicom.compressed import decompressed
from medseq_tf.readers.dicom.elements import (
    DEFLATED,
    UnreadableDicom,
    compressed_pictures,
    unpacked_data_set,
)
from medseq_tf.readers.dicom.encoding import own_bits
from medseq_tf.readers.dicom.frame import Picture, PixelFormat
from medseq_tf.readers.dicom.header import CT, MR
from medseq_tf.readers.storage import local_files
from medseq_tf.readers.study import AuditEntry

AIR = {CT: -1024, MR: 0}
"""The least intensity that air has: HU, and that of MR."""

Decoded = tuple[Picture, np.ndarray | None, np.ndarray | None]
"""A picture, its intensities (None: it cannot be read), and where it is padding (None: nowhere)."""
ValuesOf = Callable[[str, int], np.ndarray | None]
"""Gives the (H, W) stored values of a picture by the path of its file, and its place in it."""


def decode(root: str, pictures: Sequence[Picture]) -> Iterator[Decoded]:
    """Decode pictures under a folder or URL, in order."""
    with local_files(root, [picture.path for picture in pictures]) as path_of:
        yield from decode_at(path_of, pictures)


def decode_at(path_of: Callable[[str], str], pictures: Sequence[Picture]) -> Iterator[Decoded]:
    """Decode pictures, in order.

    Of uncompressed files each picture is read from where it lies; others are read whole, once.
    `path_of` says where each file can be opened.
    """
    uses = Counter(picture.path for picture in pictures)
    read: dict[str, ValuesOf] = {}
    for picture in pictures:
        path, name = path_of(picture.path), picture.path
        if name not in read:
            read[name] = _reader(path, picture)
        uses[name] -= 1
        values = (read[name] if uses[name] else read.pop(name))(path, picture.place)
        if values is None:
            yield picture, None, None
        else:
            yield picture, *_rescaled(values, picture)


def _reader(path: str, picture: Picture) -> ValuesOf:
    """What gives the stored values of a file's pictures, while it has this path or another."""
    stored, shape = picture.format, picture.shape
    if stored.is_compressed:
        pictures = compressed_pictures(path, stored.offset, stored.frames)
        return lambda _, place: decompressed(pictures[place], stored, shape) if pictures else None
    if stored.syntax == DEFLATED:
        frames = _deflated_frames(path, stored, shape)
        return lambda _, place: None if frames is None else frames[place]
    return lambda path, place: _values_at(path, stored, shape, place)


def _values_at(
    path: str, stored: PixelFormat, shape: tuple[int, int], place: int
) -> np.ndarray | None:
    """The (H, W) stored values of a picture of an uncompressed file; None where there are fewer."""
    count = math.prod(shape)
    offset = stored.offset + place * count * np.dtype(stored.dtype).itemsize
    try:
        values = np.fromfile(path, stored.dtype, count, offset=offset)
    except OSError:
        return None
    return own_bits(values, stored).reshape(shape) if values.size == count else None


def _deflated_frames(path: str, stored: PixelFormat, shape: tuple[int, int]) -> np.ndarray | None:
    """The (frames, H, W) stored values of a deflated file; None where there are fewer."""
    count = stored.frames * math.prod(shape)
    size = stored.offset + count * np.dtype(stored.dtype).itemsize
    try:
        data = unpacked_data_set(path, size)
    except UnreadableDicom:
        return None
    if len(data) < size:
        return None
    values = np.frombuffer(data, stored.dtype, count, offset=stored.offset)
    return own_bits(values, stored).reshape(stored.frames, *shape)


def _rescaled(values: np.ndarray, picture: Picture) -> tuple[np.ndarray, np.ndarray | None]:
    """The intensities of stored values, and where they are padding."""
    padding = _between(values, *picture.padding) if picture.padding else None
    if picture.format.is_inverted:
        values = values.dtype.type(2**picture.format.bits - 1) - values
    slope, intercept = picture.frame.slope, picture.frame.intercept
    if slope == 1 and intercept.is_integer():
        whole = np.int32 if values.itemsize < 4 else np.int64
        return values + whole(intercept), padding
    return values * slope + intercept, padding


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray | None:
    is_between = values == low if low == high else (values >= low) & (values <= high)
    return is_between if is_between.any() else None


def fill_padding(
    volume: np.ndarray, paddings: Sequence[np.ndarray | None], modality: str, where: str
) -> list[AuditEntry]:
    """Give the pixels of padding the smallest value of the others, in place.

    Args:
        volume: (T, H, W).
        paddings: of each slice: (H, W) bool, or None where it has no padding.
        modality: `CT` or `MR`.
        where: what audit entries call the study.
    """
    slices = list(zip(volume, paddings, strict=True))
    padded = [(image, padding) for image, padding in slices if padding is not None]
    if not padded:
        return []
    others = [image if padding is None else image[~padding] for image, padding in slices]
    ranges = [(values.min(), values.max()) for values in others if values.size]
    if not ranges:
        return []
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    count = sum(int(padding.sum()) for _, padding in padded)
    values = [image[padding] for image, padding in padded]
    if all(AIR[modality] <= v.min() and v.max() <= low for v in values):
        return []
    if any(v.max() > low and v.min() < high for v in values):
        detail = f"its value lies among the other pixels'; {count} pixels are left as they are"
        return [AuditEntry("pixel padding", where, detail)]
    for image, padding in padded:
        image[padding] = low
    detail = f"{count} of {volume.size} pixels took the study's smallest other value, {low:g}"
    return [AuditEntry("pixel padding", where, detail)]
