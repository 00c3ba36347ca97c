"""Series of volumes and of DICOM studies: joined on one grid, one after the other, or apart."""

from __future__ import annotations

from pathlib import PurePosixPath

import cv2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_writer import series_of, stack, write

from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.index import find_dicom_studies, index_dicom
from medseq_tf.readers.series import Series
from medseq_tf.readers.unlabelled import find_studies
from medseq_tf.readers.volumes import index_volumes, study_and_series


def write_volume(path, values, origin=(0.0, 0.0, 0.0)):
    image = sitk.GetImageFromArray(values)
    image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def volumes(tmp_path, rng):
    """Two patients of two series, one whose second has another place, and one without it."""
    values = {}
    for patient in "abcd":
        for name, low in (("dwi", 0), ("adc", 2000)):
            if (patient, name) == ("d", "adc"):
                continue
            values[patient, name] = (low + rng.integers(0, 900, (3, 8, 8))).astype(np.int16)
            origin = (0.0, 0.0, 5.0) if (patient, name) == ("c", "adc") else (0.0, 0.0, 0.0)
            folder = tmp_path / f"sub-{patient}" / ("anat" if patient == "a" else name)
            write_volume(folder / f"sub-{patient}_{name}.nii.gz", values[patient, name], origin)
    rows = "".join(f"sub-{p},{i % 2}\n" for i, p in enumerate("abcd"))
    (tmp_path / "labels.csv").write_text("patient_id,sick\n" + rows)
    return tmp_path, values


def of_patient(index, patient):
    (study,) = [study for study in index.studies if study.patient == f"sub-{patient}"]
    return study


def test_volumes_on_one_grid_are_channels(volumes):
    folder, _ = volumes
    index = index_volumes(folder, modality="MR", series_as="channels", series="dwi,adc")
    assert index.series == Series(("dwi", "adc"), "channels")
    assert [study.patient for study in index.studies] == ["sub-a", "sub-b", "sub-c"]
    images = np.array(of_patient(index, "a").read().images)
    one = index_volumes(folder, modality="MR", match="folder").studies
    dwi = next(s for s in one if s.file.endswith("a_dwi.nii.gz")).read().images
    adc = next(s for s in one if s.file.endswith("a_adc.nii.gz")).read().images
    np.testing.assert_array_equal(images, np.stack([dwi, adc], axis=-1))
    with pytest.raises(Exception, match="positions differ"):
        of_patient(index, "c").read()
    (entry,) = [e for e in index.audit_entries if e.kind == "study left out"]
    assert "has no adc" in entry.detail


def test_volumes_one_after_the_other_may_lie_anywhere(volumes):
    folder, _ = volumes
    index = index_volumes(folder, modality="MR", series_as="sequence", series=["adc", "dwi"])
    assert len(index.studies) == 4
    assert of_patient(index, "c").read().series == [0, 0, 0, 1, 1, 1]
    assert of_patient(index, "d").read().series == [1, 1, 1]


def test_volumes_apart_are_studies_of_one_patient(volumes):
    folder, _ = volumes
    index = index_volumes(folder, modality="MR", series_as="separate", series="dwi,adc")
    assert index.series is None
    assert len(index.studies) == 7
    assert len({study.patient for study in index.studies}) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"series_as": "channels"}, "series_as and series go together"),
        ({"series": "dwi,adc"}, "series_as and series go together"),
        ({"series_as": "channels", "series": "dwi,t2"}, "no file of .* is of series t2"),
        ({"series_as": "sequence", "series": "dwi"}, "needs 2 to 100 series"),
    ],
)
def test_series_of_volumes_that_cannot_be_meant_are_one_line(volumes, options, words):
    with pytest.raises(InputError, match=words):
        index_volumes(volumes[0], modality="MR", **options)


def dicom(folder, second=None, **changes):
    """A study of a T1 and an ADC series, the second of which may lie elsewhere."""
    values, positions = stack(4)
    others, _ = stack(4, np.random.default_rng(1))
    described = [{"t0008103E": ("LO", name)} for name in ("T1 axial", "ADC map")]
    write(
        folder,
        *series_of(values, positions, 5, **described[0]),
        *series_of(others, second or positions, 6, **described[1], **changes),
    )
    return values - 1024, others - 1024


def test_dicom_series_on_one_grid_are_channels(tmp_path):
    t1, adc = dicom(tmp_path)
    index = index_dicom(tmp_path, series="T1*,ADC*", series_as="channels")
    (study,) = index.studies
    images = np.array(study.read().images)
    np.testing.assert_array_equal(images, np.stack([t1, adc], axis=-1))
    assert index.resolved["series"] == ["T1*", "ADC*"]
    assert "T1" not in study.source


def test_dicom_series_elsewhere_are_no_channels(tmp_path):
    dicom(tmp_path, second=[(0, 0, 2.0 * t + 1) for t in range(4)])
    (study,) = index_dicom(tmp_path, series="T1*,ADC*", series_as="channels").studies
    with pytest.raises(Exception, match="positions differ"):
        study.read()


def test_dicom_series_one_after_the_other(tmp_path):
    t1, adc = dicom(tmp_path, second=[(0, 0, 2.0 * t + 1) for t in range(4)])
    (study,) = index_dicom(tmp_path, series="ADC*,T1*", series_as="sequence").studies
    slices = study.read()
    np.testing.assert_array_equal(slices.images, np.concatenate([adc, t1]))
    assert slices.series == [0] * 4 + [1] * 4
    apart = index_dicom(tmp_path, series="ADC*,T1*", series_as="separate")
    assert len(apart.studies) == 2
    assert len({study.patient for study in apart.studies}) == 1


def test_dicom_series_are_named_by_patterns(tmp_path):
    dicom(tmp_path)
    with pytest.raises(InputError, match="needs series, patterns"):
        index_dicom(tmp_path, series_as="channels")
    index = index_dicom(tmp_path, series="T1*,T2*", series_as="sequence")
    (entry,) = [e for e in index.audit_entries if e.kind == "study without a series"]
    assert "has no T2*" in entry.detail


@pytest.mark.parametrize("read_as", ["channels", "sequence", "separate"])
def test_what_is_predicted_is_read_as_what_was_prepared(volumes, tmp_path, rng, read_as):
    folder, _ = volumes
    data = prepare(
        "volumes",
        folder,
        out=tmp_path.parent / f"{tmp_path.name}-{read_as}",
        size=8,
        workers=1,
        progress=False,
        modality="MR",
        series_as=read_as,
        series="dwi,adc",
    )
    (folder / "labels.csv").unlink()
    studies, _ = find_studies(folder, "MR", data.info["preparation"])
    by_source = {study.source.removeprefix(f"{folder}/"): study for study in studies}
    for row, source in enumerate(data.studies["source"]):
        slices = by_source[source].read()
        np.testing.assert_array_equal(slices.images, data.slices(row))
        if read_as == "sequence":
            np.testing.assert_array_equal(slices.series, data.series_of(row))
    alone, _ = find_studies(folder / "sub-d", "MR", data.info["preparation"])
    assert len(alone) == (0 if read_as == "channels" else 1)


@pytest.mark.parametrize("read_as", ["channels", "sequence"])
def test_pictures_to_predict_are_read_as_what_was_prepared(tmp_path, rng, read_as):
    for patient in "ab":
        for name in ("x", "y"):
            for number in range(3):
                path = tmp_path / "scans" / patient / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), rng.integers(0, 256, (8, 8), np.uint8))
    (tmp_path / "labels.csv").write_text("patient_id,sick\na,1\nb,0\n")
    data = prepare(
        "image-folder",
        tmp_path / "scans",
        labels=tmp_path / "labels.csv",
        out=tmp_path / "data",
        size=8,
        workers=1,
        progress=False,
        series_as=read_as,
        series="y,x",
    )
    preparation = data.info["preparation"]
    studies, entries = find_studies(tmp_path / "scans", "photograph", preparation)
    assert [study.source.rpartition("/")[2] for study in studies] == ["a", "b"]
    assert entries == []
    for row, study in enumerate(studies):
        np.testing.assert_array_equal(study.read().images, data.slices(row))
    (alone,), _ = find_studies(tmp_path / "scans" / "b", "photograph", preparation)
    np.testing.assert_array_equal(alone.read().images, data.slices(1))
    (tmp_path / "scans" / "b" / "z").mkdir()
    for odd in ("overview.png", "z/0.png"):
        cv2.imwrite(str(tmp_path / "scans" / "b" / odd), np.eye(8, dtype=np.uint8))
    (alone,), entries = find_studies(tmp_path / "scans" / "b", "photograph", preparation)
    np.testing.assert_array_equal(alone.read().images, data.slices(1))
    assert [entry.kind for entry in entries] == ["picture of no series"]


def test_what_lies_in_a_path_is_called_by_the_path(tmp_path, monkeypatch):
    for file in ("p/p1/x/0.png", "p/p1/y/0.png", "p/p1/odd.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / file), np.eye(8, dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    for path in ("p", "p/p1"):
        options = {"layout": "patient", "series_as": "separate", "series": ["x", "y"]}
        preparation = {"reader": "image-folder", "resolved": options}
        studies, (entry,) = find_studies(path, "photograph", preparation)
        assert [study.source for study in studies] == ["p/p1/x", "p/p1/y"]
        assert entry.where == "p/p1/odd.png"


def test_one_dicom_series_alone_can_be_each_a_study(tmp_path):
    t1, _ = dicom(tmp_path)
    (study,) = index_dicom(tmp_path, series="T1*", series_as="separate").studies
    np.testing.assert_array_equal(study.read().images, t1)
    (alone,), _ = find_dicom_studies(tmp_path, series=["T1*"], series_as="separate")
    np.testing.assert_array_equal(alone.read().images, t1)


@pytest.mark.parametrize("read_as", ["channels", "sequence", "separate"])
def test_a_dicom_series_is_not_read_as_two(tmp_path, read_as):
    values, positions = stack(4)
    named = {"t0008103E": ("LO", "T1 post")}
    write(tmp_path, *series_of(values, positions, 5, **named))
    with pytest.raises(InputError, match=r"T1\* and \*post are one series; give patterns"):
        index_dicom(tmp_path, series="T1*,*post", series_as=read_as)
    studies, entries = find_dicom_studies(tmp_path, series="T1*,*post", series_as=read_as)
    assert studies == []
    assert [e.where[:6] for e in entries if e.kind == "study left out"] == ["study-"]


def test_what_is_left_out_beside_dicom_series_is_counted(tmp_path):
    dicom(tmp_path)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    _, entries = find_dicom_studies(tmp_path, series="T1*,ADC*", series_as="sequence")
    assert [entry.kind for entry in entries].count("empty folder") == 2


@pytest.mark.parametrize("read_as", [None, "channels", "sequence", "separate"])
def test_a_dicom_study_of_none_of_the_series_is_said_to_be_left_out(tmp_path, read_as):
    dicom(tmp_path)
    series = "FLAIR*" if read_as is None else "FLAIR*,T2*"
    studies, entries = find_dicom_studies(tmp_path, series=series, series_as=read_as)
    assert studies == []
    (entry,) = [entry for entry in entries if entry.kind == "study left out"]
    assert entry.detail == "no series that can be used"


def test_a_file_is_of_the_series_of_the_longest_name():
    for names in (["adc", "b_adc"], ["b_adc", "adc"]):
        assert study_and_series(PurePosixPath("s1_b_adc.nii"), names) == ("s1", "b_adc")
        assert study_and_series(PurePosixPath("s1_adc.nii"), names) == ("s1", "adc")


def test_a_volume_that_cannot_be_read_is_a_series_left_out_by_its_name(volumes):
    folder, _ = volumes
    (folder / "sub-b" / "adc" / "sub-b_adc.nii.gz").write_bytes(b"no volume")
    index = index_volumes(folder, modality="MR", series_as="sequence", series="dwi,adc")
    assert of_patient(index, "b").read().series == [0, 0, 0]
    (entry,) = [e for e in index.audit_entries if e.kind == "series left out"]
    assert entry.where == "sub-b/adc/sub-b_adc.nii.gz"


def test_a_volume_alone_is_a_study_where_series_were_apart(volumes):
    folder, _ = volumes
    path = folder / "sub-a" / "anat" / "sub-a_adc.nii.gz"
    options = {"series_as": "separate", "series": ["dwi", "adc"]}
    (study,), _ = find_studies(path, "MR", {"reader": "volumes", "options": options})
    assert len(study.read().images) == 3
    with pytest.raises(InputError, match="series as sequence; give the folder"):
        find_studies(path, "MR", {"reader": "volumes", "options": {"series_as": "sequence"}})
