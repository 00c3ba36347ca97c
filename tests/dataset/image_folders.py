"""Small folders of images, and data sets prepared from them."""

from __future__ import annotations

from pathlib import Path

import cv2

from medseq_tf.dataset.prepare import prepare


def make(reader, source=None, **settings):
    return prepare(reader, source, **{"workers": 1, "progress": False, **settings})


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
