"""Where in the slices a prediction comes from: lesion maps, Grad-CAM and integrated gradients.

A map is (slices, height, width), at the size of the model's input: the mean over the sequences that
the study is predicted by, nan for a slice that is in none.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import tensorflow as tf

from medseq_tf.evaluation.explain.shown_study import AT_ONCE, ShownStudy

STEPS = 32
"""Points on the path of integrated gradients."""


def lesion_map(study: ShownStudy) -> np.ndarray:
    """Return a segmenter's probability that a pixel is lesion."""

    def of_sequence(sequence: np.ndarray) -> np.ndarray:
        return study.graphs.lesion_probability(tf.gather(study.inputs, sequence)).numpy()

    return _mean_map(study, of_sequence)


def grad_cam(study: ShownStudy, label: int) -> np.ndarray:
    """Return Grad-CAM of a label's logit, at least 0.

    The weight of a feature map is the mean of its gradient over the slice, each slice by itself
    (Selvaraju et al. 2017, equations 1 and 2).
    """

    def of_sequence(sequence: np.ndarray) -> np.ndarray:
        slices, told = tf.gather(study.inputs, sequence), study.told_of(sequence[None])
        maps, gradient = (
            _by_slice(study, tensor.numpy(), len(sequence))
            for tensor in study.graphs.maps_and_gradient(slices, label, told)
        )
        weights = gradient.mean(axis=(1, 2), keepdims=True)
        heat = np.maximum((weights * maps).sum(axis=-1), 0)
        height, width = study.inputs.shape[1:3]
        resized = [
            cv2.resize(one.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
            for one in heat
        ]
        return study.graphs.moved_back(np.stack(resized), slices)

    return _mean_map(study, of_sequence)


def _by_slice(study: ShownStudy, maps: np.ndarray, steps: int) -> np.ndarray:
    """Return maps as (steps, height, width, channels), also of positions packed in channels."""
    if not study.graphs.by_position:
        return maps
    _, height, width, packed = maps.shape
    positions = study.model.encoder.backbone.positions
    maps = maps.reshape(height, width, positions, packed // positions)
    return np.moveaxis(maps, 2, 0)[:steps]


def integrated_gradients(
    study: ShownStudy, label: int, steps: int = STEPS
) -> tuple[np.ndarray, float]:
    """Return integrated gradients of a label's logit on the path from a black study.

    The `steps` on the path are spaced and weighted after Gauss and Legendre.

    Returns:
        The map, summed over the channels; and by how much its sum misses the difference of the two
        logits, as a share of it.
    """
    missed = []

    def of_sequence(sequence: np.ndarray) -> np.ndarray:
        gradients, share = _integrated_gradients(study, sequence, label, steps)
        missed.append(share)
        return gradients

    return _mean_map(study, of_sequence), float(np.mean(missed))


def _integrated_gradients(
    study: ShownStudy, sequence: np.ndarray, label: int, steps: int
) -> tuple[np.ndarray, float]:
    slices, told = tf.gather(study.inputs, sequence), study.told_of(sequence[None])
    black = tf.fill(tf.shape(slices), tf.cast(study.black, slices.dtype))
    points, weights = np.polynomial.legendre.leggauss(steps)
    total = tf.zeros_like(slices)
    at_once = max(1, AT_ONCE // len(sequence))
    for start in range(0, steps, at_once):
        share = (points[start : start + at_once].astype(np.float32) + 1) / 2
        path = black + (slices - black) * share[:, None, None, None, None]
        weight = weights[start : start + at_once].astype(np.float32) / 2
        gradient = study.graphs.gradient(path, label, told)
        total += tf.reduce_sum(gradient * weight[:, None, None, None, None], axis=0)
    gradients = ((slices - black) * total).numpy()
    ends = study.graphs.whole_logits(tf.stack([slices, black]), told)[:, label].numpy()
    difference = float(ends[0] - ends[1])
    missed = abs(float(gradients.sum()) - difference) / max(abs(difference), 1e-6)
    return gradients.sum(axis=-1), missed


def _mean_map(study: ShownStudy, of_sequence: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the mean of the sequences' maps, at the slices of the study."""
    height, width = study.inputs.shape[1:3]
    total, count = np.zeros((study.length, height, width)), np.zeros(study.length)
    for sequence in study.sequences:
        np.add.at(total, sequence, of_sequence(sequence))
        np.add.at(count, np.unique(sequence), 1)
    with np.errstate(invalid="ignore"):
        return (total / count[:, None, None]).astype(np.float32)
