"""What a data set says of itself: its fingerprint and its audit."""

from __future__ import annotations

import numpy as np
from image_folders import make, save

BLACK = np.zeros((20, 30), np.uint8)


def test_the_fingerprint_follows_content_labels_and_preparation(folder, tmp_path):
    names = iter("abcdefgh")

    def fingerprint(**settings):
        return make("image-folder", folder, out=tmp_path / next(names), **settings).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(size=32) != first
    assert fingerprint(positive="Normal") != first
    save(folder / "Stroke" / "3 (2).png", np.eye(20, dtype=np.uint8))
    assert fingerprint() != first


def test_copies_of_slices_are_told_apart(folder, tmp_path):
    def copy(source, target):
        (folder / target).write_bytes((folder / source).read_bytes())

    copy("Normal/1 (1).png", "Normal/1 (3).png")
    copy("Normal/1 (2).png", "Stroke/1 (1).png")
    copy("Normal/2 (1).png", "Stroke/4 (3).png")
    for patient in (2, 3):
        save(next(folder.glob(f"*/{patient} (1).png")).with_stem(f"{patient} (9)"), BLACK)
    data = make("image-folder", folder, out=tmp_path / "out", same_numbers="same")
    found = {(f["kind"], f["where"]) for f in data.audit["entries"] if "copy" in f["kind"]}
    assert found == {
        ("copy of a slice in its study", "Normal/1 (3).png"),
        ("copy of a slice in another study of its patient", "Stroke/1 (1).png"),
        ("copy of a slice in another patient", "Stroke/4 (3).png"),
    }
    row = list(data.studies.source).index("Normal/2")
    assert data.studies.slice_hashes[row][2] is None


def test_nearly_blank_slices_are_no_copies(folder, tmp_path):
    dot, spot = BLACK.copy(), BLACK.copy()
    dot[5, :15], spot[5, :16] = 255, 255
    for patient in (2, 3):
        stem = next(folder.glob(f"*/{patient} (1).png"))
        save(stem.with_stem(f"{patient} (8)"), dot)
        save(stem.with_stem(f"{patient} (9)"), spot)
    data = make("image-folder", folder, out=tmp_path / "out")
    found = [f["where"] for f in data.audit["entries"] if "copy" in f["kind"]]
    assert found == ["Stroke/3 (9).png"]
    row = list(data.studies.source).index("Normal/2")
    assert [digest is None for digest in data.studies.slice_hashes[row]] == [0, 0, 1, 0]


def test_the_audit_counts_and_names(folder, tmp_path):
    (folder / "Normal" / "notes.txt").write_text("x")
    (folder / "Normal" / "1 (2).png").write_bytes(b"\x89PNG")
    save(folder / "Stroke" / "3 (3).png", np.eye(7, dtype=np.uint8))
    save(folder / "Stroke" / "9 (1).png", BLACK)
    (folder / "Stroke" / "9 (1).png").write_bytes(b"")
    data = make("image-folder", folder, out=tmp_path / "out")
    assert data.audit["counts"] == {
        "mixed sizes in a study": 1,
        "odd file": 1,
        "study left out": 1,
        "unreadable image": 2,
    }
    assert list(data.studies.source) == ["Normal/1", "Normal/2", "Stroke/3", "Stroke/4"]
    text = data.audit_text()
    assert text == (data.path / "audit.txt").read_text("utf-8")
    assert text.startswith("4 studies of 4 patients, 8 slices; 5 audit entries\n")
    for name in ("Normal/notes.txt", "Stroke/9 (1).png", "Stroke/3: 2 of 30 x 20, 1 of 7 x 7"):
        assert name in text


def test_the_printed_audit_is_short(folder, tmp_path):
    for number in range(15):
        (folder / "Normal" / f"{number}.txt").write_text("x")
    data = make("image-folder", folder, out=tmp_path / "out")
    assert "... and 12 more, see audit.txt" in data.audit_text(most=3)
    assert "Normal/14.txt" in (data.path / "audit.txt").read_text("utf-8")
