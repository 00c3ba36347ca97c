"""The names of the weights in model files: those of version 0.1.0, whose files still open."""

from __future__ import annotations

import hashlib
import io
import zipfile

import h5py
import pytest

from medseq_tf import models
from medseq_tf import recipe as recipes

STAGES = {"filters": [2, 2], "kernels": [3, 3], "strides": [2, 2], "paddings": [1, 1]}
MOBILE = {"name": "keras_application", "network": "MobileNet", "weights": "none"}
CASES = {
    "lstm": ({}, {"units": 2}),
    "gru": ({"mirrored": True, "pooling": "lesion_map"}, {"name": "gru", "readout": "mean"}),
    "attention": ({"weights": "per_position"}, {"name": "attention", "units": 2}),
    "transformer": ({"fsm": None}, {"name": "transformer", "units": 4}),
    "slice_scores": ({**MOBILE, "dense": [{"units": 2}]}, {"name": "slice_scores"}),
    "cnn_3d": ({"name": "pixels"}, {"name": "cnn_3d", "depth": 4, "filters": [2, 2]}),
    "xnet": ({"name": "segmenter", "network": "xnet", "width": 2}, {"name": "sum"}),
    "unet": ({"name": "segmenter", "network": "unet", "width": 2}, {"name": "max"}),
    "dunet": ({"name": "segmenter", "network": "dunet", "width": 2}, {"name": "mean"}),
}
DIGESTS = {
    "lstm": "65f283df4df28314",
    "gru": "ba40fd314e2138f9",
    "attention": "ec1b6f831c93d503",
    "transformer": "a0d1b4836f516c98",
    "slice_scores": "0d862cb2e00ea93b",
    "cnn_3d": "ec650769af7f9681",
    "xnet": "954f1c191158c06b",
    "unet": "2e8a37527d174048",
    "dunet": "690cb1f461d68e43",
}
"""SHA-256 of the names, a line each, as version 0.1.0 wrote them."""


def weight_names(encoder, aggregator, path):
    encoder = encoder if "name" in encoder else {**STAGES, **encoder}
    settings = recipes.Model(encoder=encoder, aggregator=aggregator)
    channels = 5 if encoder.get("network") == "dunet" else 1
    models.build(settings, (32, 32, channels), labels=1, seed=0).save(path)
    names = []
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        file.visititems(lambda name, item: names.append(name) if item is not file else None)
    return sorted(names)


@pytest.mark.parametrize("case", CASES)
def test_weights_have_the_names_of_version_0_1_0(case, tmp_path):
    names = "\n".join(weight_names(*CASES[case], tmp_path / "model.keras"))
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == DIGESTS[case], names
