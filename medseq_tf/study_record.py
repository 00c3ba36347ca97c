"""Takes one study that a reader found; gives its record for the prepared data set.

This is what runs in the worker processes of `prepare`, so it imports neither TensorFlow nor pandas.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from medseq_tf.readers import Finding, Slices, StudySource, UnreadableStudy
from medseq_tf.tfrecord import encode_example, frame

Aspect = Literal["pad", "stretch"]

STORAGE = {
    "uint8": {"dtype": "uint8", "offset": 0},
    "uint16": {"dtype": "uint16", "offset": 0},
    "int16": {"dtype": "uint16", "offset": -32768},
}
"""How intensities of each dtype stand in a PNG: intensity = stored + offset."""

# Run lengths alone make CT slices of this size smaller than a search does, in two thirds the time.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


@dataclass(frozen=True)
class Recipe:
    """How slices are stored: (size, size), `pad` or `stretch`, intensities of `dtype`."""

    label_names: tuple[str, ...]
    dtype: str
    size: int
    aspect: Aspect


@dataclass(frozen=True)
class StudyRecord:
    """A study as it goes into a shard, or why it does not.

    Attributes:
        framed: its TFRecord frame; empty if the study is left out.
        content_hash: SHA-256 over the pixels and shapes of all slices, in order, and their masks.
        slice_hashes: one hash a slice of its native pixels and shape; None for a constant slice,
            which says nothing about where it came from.
        slice_names: what the slices are called in findings.
        findings: what was odd about the study.
    """

    framed: bytes = b""
    content_hash: str = ""
    slice_hashes: list[str | None] = field(default_factory=list)
    slice_names: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def start_worker() -> None:
    """One thread a worker process."""
    cv2.setNumThreads(1)


def study_record(study: StudySource, study_id: str, recipe: Recipe) -> StudyRecord:
    """Reads a study, brings its slices to one size and encodes them."""
    try:
        slices = study.read()
    except UnreadableStudy as error:
        left_out = Finding("study left out", study.source, error.reason)
        return StudyRecord(findings=[*error.findings, left_out])
    _check(slices, recipe)
    labels = np.array([study.labels[name] for name in recipe.label_names], np.float32)
    features = {
        "labels": labels,
        "slices": [_encode(image, recipe) for image in slices.images],
        "study_id": [study_id.encode()],
    }
    if slices.masks is not None:
        features["masks"] = [_encode_mask(mask, recipe) for mask in slices.masks]
    hashes = [_hash(image) for image in slices.images]
    return StudyRecord(
        framed=frame(encode_example(features)),
        content_hash=_content_hash(hashes, slices.masks),
        slice_hashes=[
            None if image.min() == image.max() else digest
            for image, digest in zip(slices.images, hashes, strict=True)
        ],
        slice_names=slices.names
        or [f"{study.source} slice {number + 1}" for number in range(len(hashes))],
        findings=slices.findings + _mixed_sizes(study, slices),
    )


def to_square(image: np.ndarray, size: int, aspect: Aspect, interpolation: int) -> np.ndarray:
    """Brings a slice to (size, size).

    `pad` first pads the shorter side to a square, the slice centred (where one pixel is left over,
    it goes to the bottom or right), with 0 for uint8 and the slice's minimum otherwise. `stretch`
    does not keep the aspect ratio.

    Args:
        image: (H, W).
        size: side of the result in pixels.
        aspect: `pad` or `stretch`.
        interpolation: OpenCV's flag.
    """
    height, width = image.shape
    if aspect == "pad" and height != width:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        edges = (top, side - height - top, left, side - width - left)
        value = 0 if image.dtype == np.uint8 else int(image.min())
        image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=value)
    if image.shape == (size, size):
        return image
    return cv2.resize(image, (size, size), interpolation=interpolation)


def _encode(image: np.ndarray, recipe: Recipe) -> bytes:
    shrinks = max(image.shape) >= recipe.size
    if recipe.aspect == "stretch":
        shrinks = min(image.shape) >= recipe.size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = to_square(image, recipe.size, recipe.aspect, interpolation)
    storage = STORAGE[recipe.dtype]
    if storage["offset"]:
        resized = (resized.astype(np.int32) - storage["offset"]).astype(storage["dtype"])
    return _png(resized)


def _encode_mask(mask: np.ndarray, recipe: Recipe) -> bytes:
    nearest = cv2.INTER_NEAREST_EXACT
    return _png(to_square(np.uint8(255) * (mask > 0), recipe.size, recipe.aspect, nearest))


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, _PNG)[1].tobytes()


def _hash(image: np.ndarray) -> str:
    digest = hashlib.sha256(f"{image.dtype.str} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()[:32]


def _content_hash(hashes: list[str], masks: list[np.ndarray] | None) -> str:
    masked = [_hash(mask) for mask in masks or []]
    return hashlib.sha256(f"{hashes} {masked}".encode()).hexdigest()


def _mixed_sizes(study: StudySource, slices: Slices) -> list[Finding]:
    sizes: dict[tuple[int, int], int] = {}
    for image in slices.images:
        sizes[image.shape] = sizes.get(image.shape, 0) + 1
    if len(sizes) == 1:
        return []
    counted = ", ".join(f"{count} of {w} x {h}" for (h, w), count in sizes.items())
    return [Finding("mixed sizes in a study", study.source, counted)]


def _check(slices: Slices, recipe: Recipe) -> None:
    """Holds a reader to its contract."""
    assert slices.images, "a study without slices is an UnreadableStudy"
    assert all(i.ndim == 2 and i.size and i.dtype == recipe.dtype for i in slices.images)
    if slices.masks is not None:
        pairs = zip(slices.images, slices.masks, strict=True)
        assert all(image.shape == mask.shape for image, mask in pairs)
