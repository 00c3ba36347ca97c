"""The tree that was prepared gives the studies that were prepared, whatever its layout."""

from __future__ import annotations

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.records import StorageSpec, study_record
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_atlas, write_dicom, write_volumes
from medseq_tf.readers.intensities import DTYPES
from medseq_tf.readers.unlabelled import find_studies
from medseq_tf.serving.client import StudyProbabilities
from medseq_tf.serving.description import Description
from medseq_tf.serving.predict import predict, table

COHORT = DemoCohort(patients=4, size=24, slices=(4, 7), difficulty=0.0, prevalence=0.5)


def pictures_at(root, *names):
    """A picture of its own for every name, which its content tells."""
    for name in names:
        seed = int.from_bytes(name.encode(), "little") % 2**32
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(seed).integers(0, 256, (20, 24)).astype(np.uint8)
        assert cv2.imwrite(str(path), image)
    return root


def labelled(root, patients, place=None):
    lines = [f"{patient},{i % 2}" for i, patient in enumerate(patients)]
    path = (place or root) / "labels.csv"
    path.write_text("\n".join(["patient_id,lesion", *lines]))
    return path


def prepared_slices(prepared):
    """The stored slices of each study, by its name in the source."""
    return {
        source: prepared.encoded_slices(row)
        for row, source in enumerate(prepared.studies["source"])
    }


def predicted_slices(prepared, tree):
    """The same of what `predict` finds under a tree, and the audit entries."""
    info = json.loads(json.dumps(prepared.info))
    studies, audit_entries = find_studies(tree, info["modality"], info["preparation"])
    recipe = StorageSpec((), DTYPES[info["modality"]], info["size"], info["preparation"]["aspect"])
    found = {}
    for study in studies:
        example = study_record(study, "", recipe).example
        name = study.source.removeprefix(f"{tree}/")
        found[name] = list(decode_example(example)["slices"])
    assert len(found) == len(studies)
    return found, audit_entries


def same(prepared, tree):
    """The studies, their order, and their slices are the same; returns the audit entries."""
    found, audit_entries = predicted_slices(prepared, tree)
    expected = prepared_slices(prepared)
    assert list(found) == list(expected)
    assert found == expected
    return audit_entries


def made(reader, tree, tmp_path, **options):
    options = {"size": 16, "workers": 1, "progress": False, **options}
    return prepare(reader, tree, out=tmp_path / "prepared", **options)


CLASSES = [f"{c}/{p} ({s}).png" for c, p in (("Normal", 1), ("Normal", 10), ("Stroke", 3))
           for s in (10, 9, 2)]  # fmt: skip


def test_classes(tmp_path):
    odd = ["Normal/montage.png", "overview (1).png", "Stroke/old/9 (1).png", "docs/scan.png"]
    tree = pictures_at(tmp_path / "scans", *CLASSES, *odd)
    audit_entries = same(made("image-folder", tree, tmp_path), tree)
    assert sorted(f.where.removeprefix(f"{tree}/") for f in audit_entries) == sorted(odd)
    of_one = find_studies(tree / "Normal", "photograph", {"reader": "image-folder",
                          "options": {}, "resolved": {"layout": "class"}})  # fmt: skip
    assert [s.source for s in of_one[0]] == [str(tree / "Normal" / p) for p in ("1", "10")]


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_patients_whose_pictures_are_called_as_those_of_classes(tmp_path, where):
    patients = [f"p{n}" for n in (1, 2, 10)]
    names = [f"{p}/{q} ({s}).png" for p in patients for q in (1, 2) for s in (2, 10)]
    nested = [f"{p}/more/T1_{s}.png" for p in patients for s in (10, 9)]
    tree = pictures_at(tmp_path / "scans", *names, *nested, "overview.png")
    labels = labelled(tree, patients, None if where == "inside" else tmp_path)
    given = {} if where == "inside" else {"labels": labels}
    prepared = made("image-folder", tree, tmp_path, **given)
    assert len(prepared) == 3
    assert prepared.info["preparation"]["resolved"]["layout"] == "patient"
    (entry,) = same(prepared, tree)
    assert entry.where == str(tree / "overview.png")
    found, audit_entries = predicted_slices(prepared, tree / "p10")
    assert list(found.values()) == [prepared_slices(prepared)["p10"]]
    assert not audit_entries


def test_a_run_of_an_older_version_says_that_it_does_not_know_the_layout(tmp_path):
    patients = ["p1", "p2"]
    tree = pictures_at(tmp_path, *(f"{p}/{q} (1).png" for p in patients for q in (1, 2)))
    studies, audit_entries = find_studies(
        tree, "photograph", {"reader": "image-folder", "options": {}}
    )
    assert len(studies) == 4
    assert [entry.kind for entry in audit_entries] == ["layout not known"]


def test_volumes_of_patients_with_several(tmp_path):
    write_volumes(COHORT, tmp_path / "flat", as_photographs=True)
    tree = tmp_path / "scans"
    volumes = sorted((tmp_path / "flat").glob("*.nii.gz"))
    for number, volume in enumerate(volumes):
        (tree / f"p{number % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(volume, tree / f"p{number % 2}" / f"scan{number}.nii.gz")
    labelled(tree, ["p0", "p1"])
    prepared = made("volumes", tree, tmp_path, axis="sagittal")
    assert len(prepared) == 4
    assert prepared.studies["patient_id"].nunique() == 2
    assert not same(prepared, tree)


def test_pictures_beside_volumes(tmp_path):
    write_volumes(COHORT, tmp_path / "volumes", as_photographs=True)
    pictures_at(tmp_path / "volumes", "patient-0001.png", "preview/1.png")
    prepared = made("volumes", tmp_path / "volumes", tmp_path)
    assert len(same(prepared, tmp_path / "volumes")) == 2
    tree = pictures_at(tmp_path / "pictures", *CLASSES)
    shutil.copy(tmp_path / "volumes" / "patient-0001.nii.gz", tree / "Normal")
    shutil.rmtree(prepared.path)
    (entry,) = same(made("image-folder", tree, tmp_path), tree)
    assert entry.where == str(tree / "Normal" / "patient-0001.nii.gz")


@pytest.mark.parametrize("options", [{}, {"tilt": "correct", "spacing": 6.0}])
def test_dicom(tmp_path, options):
    tree = tmp_path / "scans"
    write_dicom(COHORT, tree)
    shutil.copy(next(iter(sorted(tree.rglob("IM*")))), tree / "loose")
    volume = tmp_path / "volume"
    write_volumes(COHORT, volume)
    shutil.copy(volume / "patient-0001.nii.gz", tree)
    prepared = made("dicom", tree, tmp_path, **options)
    found, _ = predicted_slices(prepared, tree)
    assert len(found) == 4
    assert sorted(found.values()) == sorted(prepared_slices(prepared).values())
    prepared.info["preparation"]["reader"] = "dicomweb"  # the same files of an archive
    assert predicted_slices(prepared, tree)[0] == found


def test_whole_sessions_of_an_atlas(tmp_path):
    tree = tmp_path / "atlas"
    cohort = dataclasses.replace(COHORT, prevalence=1.0, slices=(12, 14))
    write_atlas(cohort, tree)
    image = sorted(tree.rglob("*_T1w.nii.gz"))[0]
    shutil.copy(image, image.with_name("sub-r001s001_ses-1_FLAIR.nii.gz"))
    prepared = made("atlas", tree, tmp_path, whole=True, extent=(0.0, 1.0), axis="coronal")
    audit_entries = same(prepared, tree)
    assert len(prepared) == 4
    assert {entry.kind for entry in audit_entries} == {"odd file"}


def test_what_was_settled_changes_no_fingerprint(tmp_path, monkeypatch):
    from medseq_tf.dataset import prepare as module

    tree = pictures_at(tmp_path / "scans", *CLASSES)
    prepared = made("image-folder", tree, tmp_path)
    assert prepared.info["preparation"]["resolved"]["layout"] == "class"
    scan = module.READERS["image-folder"]
    monkeypatch.setitem(
        module.READERS,
        "image-folder",
        lambda source, labels=None: dataclasses.replace(scan(source), resolved={}),
    )
    shutil.rmtree(prepared.path)
    assert made("image-folder", tree, tmp_path).fingerprint == prepared.fingerprint


# ------------------------------------------------------------------- what is left out is said


class Model:
    """A model of data prepared in some way, that answers without looking."""

    def __init__(self, prepared: Prepared, answer=0.25):
        self.info, self.answer, self.asked = prepared.info, answer, []

    def describe(self):
        preparation = self.info["preparation"]
        return Description(
            "m", ["lesion"], {"lesion": 0.5}, {"lesion": 1.0}, self.info["modality"],
            self.info["unit"], 8, 0, self.info["size"], "pad", 512, preparation,
        )  # fmt: skip

    def predict(self, slices, running=False):
        self.asked.append(len(slices))
        steps = np.full((len(slices), 1), self.answer, np.float32) if running else None
        return StudyProbabilities(np.float32([self.answer]), steps)


@pytest.fixture
def with_links(tmp_path):
    """Two patients, one with links out of the tree, a patient that is one, and an odd name."""
    tree = pictures_at(tmp_path / "scans", *(f"{p}/{s}.png" for p in "ab" for s in (1, 2, 3, 4)))
    labelled(tree, "ab")
    prepared = made("image-folder", tree, tmp_path)
    elsewhere = pictures_at(tmp_path / "elsewhere", "3.png", "4.png")
    for number in (3, 4):
        (tree / "b" / f"{number}.png").unlink()
        (tree / "b" / f"{number}.png").symlink_to(elsewhere / f"{number}.png")
    (tree / "c").symlink_to(elsewhere)
    (tree / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    return prepared, tree


def test_links_reach_the_warnings_in_every_form(with_links):
    prepared, tree = with_links
    model = Model(prepared)
    first, second = predict(model, tree, workers=1)
    assert model.asked == [4, 2]
    assert sum("symbolic link out of the source" in w for w in second.warnings) == 2
    assert all(str(tree / "b") in w for w in second.warnings)
    assert any(f"({tree / 'c'})" in w for w in first.warnings)
    assert any("gone.png" in w for w in first.warnings)
    lines = [json.loads(row.to_json()) for row in (first, second)]
    assert [line["warnings"] for line in lines] == [list(first.warnings), list(second.warnings)]
    text = "\n".join(table(iter([first, second])))
    assert text.count("warning: symbolic link out of the source") == 4
    (alone,) = predict(model, tree / "b", workers=1)
    assert len(alone.warnings) == 2


def test_links_among_the_slices_of_classes_and_among_volumes(tmp_path):
    tree = pictures_at(tmp_path / "scans", *CLASSES)
    prepared = made("image-folder", tree, tmp_path)
    (tree / "Normal" / "10 (2).png").unlink()
    (tree / "Normal" / "10 (2).png").symlink_to(pictures_at(tmp_path, "x.png") / "x.png")
    rows = list(predict(Model(prepared), tree, workers=1))
    assert [len(row.warnings) for row in rows] == [0, 1, 0]
    write_volumes(COHORT, tmp_path / "volumes", as_photographs=True)
    first = tmp_path / "volumes" / "patient-0001.nii.gz"
    shutil.move(first, tmp_path / "moved.nii.gz")
    first.symlink_to(tmp_path / "moved.nii.gz")
    rows = list(predict(Model(prepared), tmp_path / "volumes", workers=1))
    assert len(rows) == 3
    assert any("patient-0001" in warning for warning in rows[0].warnings)


def test_many_findings_are_counted(tmp_path):
    tree = pictures_at(tmp_path / "scans", "a/1.png")
    for number in range(50):
        (tree / "a" / f"{number}.txt").write_text("")
    labelled(tree, "a")
    pictures_at(tree, "b/1.png")
    labelled(tree, "ab")
    prepared = made("image-folder", tree, tmp_path)
    first, second = predict(Model(prepared), tree, workers=1)
    assert len(first.warnings) == 21
    assert first.warnings[-1] == "odd file: 30 more"
    assert not second.warnings


def test_names_do_nothing_to_a_terminal(tmp_path):
    tree = pictures_at(tmp_path / "scans", "a\x1b[2Jb/1.png", "c/1.png")
    labelled(tree, ["c", "x"])
    rows = list(predict(Model(made("image-folder", tree, tmp_path)), tree, workers=1))
    assert len(rows) == 2
    assert "\x1b" not in "".join(table(iter(rows)))
    assert r"a\x1b[2Jb" in "".join(table(iter(rows)))


@pytest.mark.parametrize("answer", [np.nan, np.inf, 7.5, -0.1])
def test_what_is_no_probability_is_no_call(with_links, answer):
    prepared, tree = with_links
    for running in (False, True):
        rows = list(predict(Model(prepared, answer), tree, workers=1, running=running))
        assert [row.positive for row in rows] == [None, None]
        assert all("no probability" in row.error for row in rows)
