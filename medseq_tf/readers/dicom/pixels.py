"""The intensities of DICOM pictures: HU for CT, for MR see `readers.intensities`.

Rescale slope and intercept are applied, frame by frame. MONOCHROME1 images are inverted within the
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
from collections.abc import Iterator, Sequence

import numpy as np

from medseq_tf.readers.dicom.frame import Picture, PlainPixels
from medseq_tf.readers.dicom.header import CT, MR
from medseq_tf.readers.storage import local_files
from medseq_tf.readers.study import AuditEntry

AIR = {CT: -1024, MR: 0}
"""The least intensity that air has: HU, and that of MR."""

Decoded = tuple[Picture, np.ndarray | None, np.ndarray | None]
"""A picture, its intensities (None: it cannot be read), and where it is padding (None: nowhere)."""


def decode(root: str, pictures: Sequence[Picture]) -> Iterator[Decoded]:
    """Decode pictures, in order.

    Unpacked values are read from where they lie; SimpleITK decodes the others, file by file.
    """
    from medseq_tf.readers.simpleitk_volume import read_dicom_frames

    names = [picture.path for picture in pictures]
    counts = Counter(names)
    several: dict[str, np.ndarray | None] = {}
    with local_files(root, names) as path_of:
        for picture in pictures:
            path = path_of(picture.path)
            if picture.plain:
                yield picture, *_plain_intensities(path, picture, picture.plain)
                continue
            if picture.path in several:
                frames = several[picture.path]
            else:
                frames = read_dicom_frames(path)
                if counts[picture.path] > 1:
                    several[picture.path] = frames
            if frames is None or frames.shape[1:] != picture.shape or picture.place >= len(frames):
                yield picture, None, None
            else:
                yield picture, *_rescaled(frames[picture.place], picture)


def _plain_intensities(
    path: str, picture: Picture, plain: PlainPixels
) -> tuple[np.ndarray | None, np.ndarray | None]:
    count = math.prod(picture.shape)
    offset = plain.offset + picture.place * count * np.dtype(plain.dtype).itemsize
    try:
        values = np.fromfile(path, plain.dtype, count, offset=offset)
    except OSError:
        return None, None
    if values.size < count:
        return None, None
    if plain.unused_bits:  # which may hold an overlay
        values = (values << plain.unused_bits) >> plain.unused_bits
    values = values.reshape(picture.shape)
    padding = _between(values, *picture.padding) if picture.padding else None
    slope, intercept = picture.frame.slope, picture.frame.intercept
    if slope == 1 and intercept.is_integer():
        return values + np.int32(intercept), padding
    return values * slope + intercept, padding


def _rescaled(image: np.ndarray, picture: Picture) -> tuple[np.ndarray, np.ndarray | None]:
    """Give a frame its own slope and intercept in place of the first frame's."""
    first, frame = picture.first_frame, picture.frame
    padding = None
    if picture.padding:
        low, high = sorted(value * first.slope + first.intercept for value in picture.padding)
        half_a_step = abs(first.slope) / 2
        padding = _between(image, low - half_a_step, high + half_a_step)
    if (first.slope, first.intercept) != (frame.slope, frame.intercept):
        image = (image - first.intercept) / first.slope * frame.slope + frame.intercept
    return image, padding


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
