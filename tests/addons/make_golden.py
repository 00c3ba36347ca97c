"""Takes nothing, gives golden.npz: what TensorFlow Addons makes of small fixed inputs.

Run from the root of the repository, with Python 3.11 or older, in an environment of its own:

    python -m venv addons && addons/bin/pip install -r requirements-addons.txt
    addons/bin/python tests/addons/make_golden.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa


def adamw(rng):
    """Ten updates of one variable; the addon's weight decay is not scaled by the rate."""
    start = rng.normal(size=(4, 3)).astype("float32")
    gradients = rng.normal(size=(10, 4, 3)).astype("float32")
    variable = tf.Variable(start)
    optimizer = tfa.optimizers.AdamW(
        weight_decay=1e-4, learning_rate=1e-2, beta_1=0.9, beta_2=0.999, epsilon=1e-8
    )
    steps = []
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
        steps.append(variable.numpy().copy())
    return {"start": start, "gradients": gradients, "steps": np.stack(steps)}


def focal(rng):
    """The addon's alpha and 1 - alpha are this project's two weights of a label."""
    labels = rng.integers(0, 2, size=(8, 5)).astype("float32")
    logits = rng.normal(0, 3, size=(8, 5)).astype("float32")
    losses = [
        tfa.losses.SigmoidFocalCrossEntropy(
            from_logits=True, alpha=0.25, gamma=2.0, reduction=tf.keras.losses.Reduction.NONE
        )(labels[..., None], logits[..., None])
    ]
    return {"labels": labels, "logits": logits, "losses": losses[0].numpy()}


def f1(rng):
    """Two classes, and five labels at a threshold of 0.5."""
    truth = rng.integers(0, 2, size=40)
    probability = rng.uniform(size=40).astype("float32")
    two_classes = tfa.metrics.F1Score(num_classes=2, average="macro")
    called = (probability >= 0.5).astype(int)
    two_classes.update_state(np.eye(2, dtype="float32")[truth], np.eye(2, dtype="float32")[called])
    labels = rng.integers(0, 2, size=(40, 5)).astype("float32")
    probabilities = rng.uniform(size=(40, 5)).astype("float32")
    by_label = tfa.metrics.F1Score(num_classes=5, average=None, threshold=0.5)
    by_label.update_state(labels, probabilities)
    return {
        "truth": truth,
        "probability": probability,
        "macro": two_classes.result().numpy(),
        "labels": labels,
        "probabilities": probabilities,
        "by_label": by_label.result().numpy(),
    }


def kappa(rng):
    """Quadratic weights, four grades."""
    truth, called = rng.integers(0, 4, size=(2, 60))
    metric = tfa.metrics.CohenKappa(num_classes=4, weightage="quadratic", sparse_labels=True)
    metric.update_state(truth.astype("float32"), called.astype("float32"))
    return {"truth": truth, "called": called, "kappa": metric.result().numpy()}


def blur(images):
    """OpenCV's sigma for each kernel size: 0.3 ((size - 1) / 2 - 1) + 0.8, from 11 up."""
    return {
        f"blur_{size}": tfa.image.gaussian_filter2d(
            images, (size, size), 0.3 * ((size - 1) / 2 - 1) + 0.8, padding="REFLECT"
        ).numpy()
        for size in (11, 13, 15)
    }


def images(rng):
    """Each image operation on the same two pictures of 16 x 16."""
    images = rng.uniform(size=(2, 16, 16, 1)).astype("float32")
    flow = rng.uniform(-2, 2, size=(2, 16, 16, 2)).astype("float32")
    radians = np.float32([0.3, -1.2])
    return {
        "images": images,
        **blur(images),
        "cutout": tfa.image.cutout(images, 6, offset=np.int32([[5, 9], [8, 4]])).numpy(),
        "flow": flow,
        "warped": tfa.image.dense_image_warp(images, flow).numpy(),
        "radians": radians,
        "rotated": tfa.image.rotate(images, radians, interpolation="bilinear").numpy(),
        "translated": tfa.image.translate(
            images, np.float32([[2.5, -1.0], [-3.0, 0.25]]), interpolation="bilinear"
        ).numpy(),
    }


def main():
    """Write the file beside this script."""
    rng = np.random.default_rng(0)
    parts = {"adamw": adamw(rng), "focal": focal(rng), "f1": f1(rng), "kappa": kappa(rng)}
    parts["image"] = images(rng)
    arrays = {f"{part}.{name}": v for part, values in parts.items() for name, v in values.items()}
    np.savez_compressed(Path(__file__).with_name("golden.npz"), **arrays)


if __name__ == "__main__":
    main()
