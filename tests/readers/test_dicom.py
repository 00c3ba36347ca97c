"""A folder of DICOM files: the slices that every reader gives, odd files, and no name anywhere."""

from __future__ import annotations

import contextlib
import io
import logging

import numpy as np
import pytest
from click.testing import CliRunner
from dicom_writer import (
    dicom_file,
    image,
    series_of,
    stack,
    write,
    write_stack,
)

from medseq_tf.cli import cli
from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.phantom.writers import ORIENTATIONS, write_dicom, write_image_folder, write_volumes
from medseq_tf.readers.dicom.index import index_dicom

COHORT = DemoCohort(patients=3, seed=3, size=32, slices=(5, 8))


# --------------------------------------------------------------------- the same slices everywhere


def test_every_reader_gives_the_same_prepared_slices(tmp_path):
    """The demo cohort as photographs, NIfTI of four orientations and DICOM; to one grey level."""
    sources = {"image-folder": write_image_folder(COHORT, tmp_path / "png", "patient")}
    for orientation in ORIENTATIONS:
        sources[orientation] = write_volumes(COHORT, tmp_path / orientation, orientation)
    sources["dicom"] = write_dicom(COHORT, tmp_path / "dicom")
    prepared = {}
    for name, source in sources.items():
        reader = "volumes" if name in ORIENTATIONS else name
        prepared[name] = prepare(
            reader, source, out=tmp_path / "out" / name, size=32, workers=1, progress=False
        )
    truth = [COHORT.render(number).volume for number in range(COHORT.patients)]
    for name, data in prepared.items():
        found = {data.slices(row).tobytes(): data.slices(row) for row in range(len(data))}
        assert len(found) == len(truth)
        for volume in truth:
            expected = photographs(volume) if name == "image-folder" else volume
            assert expected.tobytes() in found, f"{name} has other slices"
        assert data.labels.sum() == prepared["image-folder"].labels.sum()


def test_ct_and_mr_side_by_side(tmp_path, rng):
    values, positions = stack(5, rng)
    mr_class = "1.2.840.10008.5.1.4.1.1.4"
    files = [
        *series_of(values, positions, 1),
        *series_of(
            values, positions, 2, t0020000D="1.2.4", t00100020="patient-2",
            t00080016=mr_class, t00281052="0",
        ),
        *series_of(values, positions, 3, t0020000D="1.2.5", t00100020="patient-3"),
    ]  # fmt: skip
    labels = [(f"patient-{number}", 1) for number in (1, 2, 3)]
    folder = write(tmp_path, *files, labels=labels)
    scan = index_dicom(folder)
    assert (scan.modality, scan.dtype, len(scan.studies)) == ("CT", "int16", 2)
    assert [f.detail for f in scan.audit_entries] == [
        "2 studies are, 1 are MR; give --modality MR for those",
        "MR in a data set of CT",
    ]
    for path in folder.iterdir():
        if path.suffix != ".csv" and b"patient-3" in path.read_bytes():
            path.unlink()
    with pytest.raises(InputError, match="1 studies are CT and 1 are MR; give --modality"):
        index_dicom(folder)
    scan = index_dicom(folder, modality="MR")
    assert (scan.modality, scan.dtype) == ("MR", "uint16")
    np.testing.assert_array_equal(scan.studies[0].read().images, values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "PT"}, "modality='PT' is unknown; valid: CT, MR"),
        ({"fewest_slices": 0}, "fewest_slices=0 is not"),
        ({"tilt": "shear"}, "tilt='shear' is unknown; valid: keep, correct"),
        ({"spacing": -2}, "spacing=-2 is not"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        index_dicom(tmp_path, **options)


# --------------------------------------------------------------------------------------- bad files


def test_files_that_are_no_dicom_are_numbered(tmp_path):
    values, positions = stack()
    folder = write_stack(tmp_path, values, positions)
    (folder / "a.txt").write_text("hello " * 100)
    (folder / "b").write_bytes(b"")
    (folder / "c").write_bytes((folder / "0000").read_bytes()[:400])
    (folder / "d").write_bytes(dicom_file(image(values[0]))[:-20])
    scan = index_dicom(folder)
    done = CliRunner().invoke(cli, ["prepare", "dicom", str(folder), "--list"])
    assert done.exit_code == 0
    numbers = {line.split(" ", 1)[1]: line.split()[0] for line in done.output.splitlines()}
    assert {(f.where, f.detail) for f in scan.audit_entries} == {
        (f"file {numbers['a.txt']}", "not a DICOM file"),
        (f"file {numbers['b']}", "an empty file"),
        (f"file {numbers['c']}", "damaged or cut short: holds no pixels"),
        (f"file {numbers['d']}", "cut short: declares more pixels than it holds"),
    }


def test_pixels_that_cannot_be_decoded_cost_one_slice(tmp_path):
    values, positions = stack()
    files = [dicom_file(image(v, p)) for v, p in zip(values, positions, strict=True)]
    packed = image(values[2], positions[2])
    packed[0x7FE00010] = ("OB", [b"\xff\xd8 no JPEG at all " * 20])
    files[2] = dicom_file(packed, "1.2.840.10008.1.2.4.70")
    scan = index_dicom(write(tmp_path, *files))
    slices = scan.studies[0].read()
    np.testing.assert_array_equal(slices.images, values[[0, 1, 3, 4]] - 1024)
    assert [entry.kind for entry in slices.audit_entries] == ["unreadable image"]


# ----------------------------------------------------------------------------------------- privacy

SECRET = "ZEBRA"
TEXT = {
    0x00080050: "SH", 0x00080080: "LO", 0x00080081: "ST", 0x00080090: "PN", 0x00081010: "SH",
    0x00081030: "LO", 0x0008103E: "LO", 0x00081048: "PN", 0x00081050: "PN", 0x00081070: "PN",
    0x00081080: "LO", 0x00081090: "LO", 0x00082111: "ST", 0x00100010: "PN", 0x00100020: "LO",
    0x00100021: "LO", 0x00101000: "LO", 0x00101001: "PN", 0x00101005: "PN", 0x00101040: "LO",
    0x00101060: "PN", 0x00102154: "SH", 0x001021B0: "LT", 0x00104000: "LT", 0x00180015: "CS",
    0x00181000: "LO", 0x00181030: "LO", 0x00200010: "SH", 0x00204000: "LT", 0x00321032: "PN",
    0x00321060: "LO", 0x00400006: "PN", 0x00400254: "LO", 0x00401400: "LT", 0x00290010: "LO",
}  # fmt: skip
DATES = {0x00080020: "DA", 0x00080021: "DA", 0x00080022: "DA", 0x00080023: "DA", 0x00100030: "DA"}


def test_no_name_date_or_id_leaves_the_files(tmp_path, caplog, capfd):
    values, positions = stack(6)
    date = "19510623"
    source = tmp_path / "source"
    planted = {f"t{tag:08X}": (kind, f"{SECRET}^{tag:x}") for tag, kind in TEXT.items()}
    planted |= {f"t{tag:08X}": (kind, date) for tag, kind in DATES.items()}
    planted |= {"t0020000D": "1.2.777.1", "t0020000E": "1.2.777.2"}
    folder = source / f"{SECRET}_{date}"
    files = [image(v, p, **planted) for v, p in zip(values, positions, strict=True)]
    bad = dicom_file(files[3])[:900]
    packed = {**files[2], 0x7FE00010: ("OB", b"\xff\xd8 no JPEG " * 20)}
    more = [dicom_file(packed, "1.2.840.10008.1.2.4.70"), bad, b"", SECRET.encode() * 200]
    write(folder, *files[:2], *files[4:], *more, labels=[(f"{SECRET}^100020", 1), ("ZEBRA9", 0)])
    (folder / "labels.csv").rename(tmp_path / "labels.csv")
    (source / f"{SECRET} empty").mkdir()
    (source / f"{SECRET} link").symlink_to(tmp_path)
    out, printed = tmp_path / "out", io.StringIO()
    with contextlib.redirect_stdout(printed), caplog.at_level(logging.DEBUG):
        prepared = prepare(
            "dicom", source, labels=tmp_path / "labels.csv", out=out, size=16, workers=2
        )
        print(prepared.audit_text, prepared.studies.to_string(), prepared.info)
    assert len(prepared) == 1
    assert len(prepared.slices(0)) == 4
    captured = capfd.readouterr()
    texts = [printed.getvalue(), captured.out, captured.err, caplog.text]
    texts += [str(path.relative_to(tmp_path)) for path in out.rglob("*")]
    texts += [path.read_bytes().decode("latin-1") for path in out.rglob("*") if path.is_file()]
    for text in texts:
        for secret in (SECRET, SECRET.lower(), date, "1.2.777"):
            assert secret not in text
    assert {entry["kind"] for entry in prepared.audit["entries"]} >= {
        "unreadable image", "odd file", "empty folder", "label for an unknown patient",
    }  # fmt: skip


def test_errors_name_nobody(tmp_path):
    values, positions = stack()
    folder = write_stack(tmp_path, values, positions, t00100020=f"{SECRET}")
    with pytest.raises(
        InputError, match=r"no study of .* is in the labels; .* studies' patient_id "
    ) as caught:
        index_dicom(folder)
    assert SECRET not in str(caught.value)


def test_prepared_hounsfield_units_come_back(tmp_path):
    source = write_dicom(COHORT, tmp_path / "source")
    prepare("dicom", source, out=tmp_path / "out", size=32, workers=1, progress=False)
    prepared = Prepared.load(tmp_path / "out")
    assert (prepared.info["modality"], prepared.info["unit"]) == ("CT", "HU")
    found = {prepared.slices(row).tobytes() for row in range(3)}
    assert found == {COHORT.render(n).volume.tobytes() for n in range(3)}
    assert all(
        "patient-0001" not in path.read_text("utf-8") for path in tmp_path.glob("out/*.json")
    )
