"""Reading a prepared data set: what is not whole, or another's, is refused."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import pandas as pd
import pytest
from image_folders import make, save

from medseq_tf.dataset.prepare import Prepared
from medseq_tf.dataset.requirements import reading
from medseq_tf.dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, encode_example, frame
from medseq_tf.errors import InputError
from medseq_tf.readers import Classes
from medseq_tf.readers.series import Series


def test_loading_what_is_not_whole(folder, tmp_path):
    with pytest.raises(InputError, match=r"is not a prepared data set"):
        Prepared.load(tmp_path)
    data = make("image-folder", folder, out=tmp_path / "out")
    shard = data.path / "shards" / "00000.tfrecord"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"has .* bytes where dataset.json says"):
        Prepared.load(data.path)
    shard.unlink()
    with pytest.raises(InputError, match="is missing"):
        Prepared.load(data.path)
    shard.write_bytes(content)
    pd.read_parquet(data.path / "studies.parquet")[:2].to_parquet(data.path / "studies.parquet")
    with pytest.raises(InputError, match=r"studies\.parquet is not the one that dataset\.json"):
        Prepared.load(data.path)
    info = json.loads((data.path / "dataset.json").read_text("utf-8"))
    (data.path / "dataset.json").write_text(json.dumps({**info, "format_version": 99}))
    with pytest.raises(InputError, match="has format version 99"):
        Prepared.load(data.path)
    (data.path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Prepared.load(data.path)


@pytest.fixture
def two_alike(tmp_path):
    """Two data sets of the same studies, and of shards of the same sizes: one padded, one not."""
    for patient in range(20):
        for number in (1, 2):
            name = f"{'Normal' if patient < 10 else 'Stroke'}/{patient} ({number}).png"
            image = np.random.default_rng(patient).integers(0, 256, (20, 30), np.uint8)
            save(tmp_path / "source" / name, image)
    pair = [
        make("image-folder", tmp_path / "source", out=tmp_path / aspect, size=16, aspect=aspect)
        for aspect in ("pad", "stretch")
    ]
    assert list(pair[0].studies.study_id) == list(pair[1].studies.study_id)
    return pair


def test_a_shard_of_another_preparation_is_refused_by_name(two_alike):
    data, other = two_alike
    shard = data.path / "shards" / "00001.tfrecord"
    content = (other.path / "shards" / shard.name).read_bytes()
    assert shard.stat().st_size == len(content), "nothing but its content gives it away"
    assert data.slices(19).shape == (2, 16, 16)
    shard.write_bytes(content)
    again = Prepared.load(data.path)
    assert again.slices(0).shape == (2, 16, 16), "the other shard is whole"
    for read in (
        lambda: again.slices(19),
        lambda: again.masks(19),
        lambda: again.encoded_slices(19),
        lambda: again.record(19),
        lambda: again.verify(),
        lambda: data.slices(19),  # one that was opened, and read, before
    ):
        with pytest.raises(InputError, match=r"00001\.tfrecord is not the shard that"):
            read()


def test_a_record_of_another_study_is_refused(two_alike):
    data, _ = two_alike
    studies = data.studies.copy()
    studies.loc[[2, 3], ["offset", "length"]] = studies.loc[[3, 2], ["offset", "length"]].to_numpy()
    crossed = Prepared(data.path, data.info, studies)
    assert crossed.slices(1).shape == (2, 16, 16)
    with pytest.raises(InputError, match=rf"study {studies.study_id[2]} is damaged"):
        crossed.slices(2)


def test_shards_are_hashed_once_in_a_process(two_alike, monkeypatch):
    data, hashed = two_alike[0], []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: hashed.append(a) or original(*a))
    for _ in range(2):
        again = Prepared.load(data.path)
        again.verify()
        for row in range(20):
            again.slices(row)
    assert len(hashed) == 2


def test_a_record_whose_checksum_does_not_fit_is_refused(two_alike, tmp_path):
    """As of a disk that spoils a shard after it was hashed."""
    data, _ = two_alike
    name, offset = data.studies.shard[3], int(data.studies.offset[3])
    shard = data.path / "shards" / name
    content = bytearray(shard.read_bytes())
    content[offset + 40] ^= 1
    shard.write_bytes(content)
    data.info["shards"][name]["sha256"] = hashlib.sha256(content).hexdigest()
    assert data.slices(2).shape == (2, 16, 16)
    for read in (data.slices, data.masks, data.encoded_slices, data.record):
        with pytest.raises(InputError, match=rf"study {data.studies.study_id[3]} is damaged"):
            read(3)


def png(shape, kind=np.uint8):
    return cv2.imencode(".png", np.zeros(shape, kind))[1].tobytes()


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"slices": np.ones(2, np.float32)},
        {"slices": []},
        {"slices": [png((16, 16))]},  # of two
        {"slices": [png((16, 16)), b""]},
        {"slices": [png((16, 16)), png((16, 17))]},
        {"slices": [png((20, 20)), png((20, 20))]},
        {"slices": [png((16, 16, 3)), png((16, 16, 3))]},
        {"slices": [png((16, 16), np.uint16), png((16, 16), np.uint16)]},
        {"slices": [png((16, 16)), png((16, 16))], "masks": [png((16, 16, 3))] * 2},
        {"slices": [png((16, 16)), png((16, 16))], "masks": [png((16, 16))]},
    ],
    ids=lambda features: ", ".join(map(str, features)) or "none",
)
def test_a_record_that_prepare_cannot_have_written_is_refused(two_alike, features):
    """As of a data set that was put together by another's hand, checksums and all."""
    data, _ = two_alike
    study_id = data.studies.study_id[0]
    record = frame(encode_example({"study_id": [study_id.encode()], **features}))
    shard = data.path / "shards" / "00000.tfrecord"
    shard.write_bytes(record)
    data.studies.loc[0, "length"] = len(record) - HEADER_BYTES - FOOTER_BYTES
    data.info["shards"][shard.name]["sha256"] = hashlib.sha256(record).hexdigest()
    with pytest.raises(InputError, match=rf"study {study_id} is damaged"):
        [data.slices(0), data.masks(0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"studies": {}},
        {"studies": []},
        {"shards": {"00000.tfrecord": {}}},
        {"shards": {"00000.tfrecord": {"bytes": 3}}},
        {"shards": {"../00000.tfrecord": {"bytes": 3, "sha256": ""}}},
        {"storage": {}},
        {"counts": None, "preparation": None},
    ],
    ids=str,
)
def test_a_description_of_another_form_is_one_line(folder, tmp_path, changes):
    data = make("image-folder", folder, out=tmp_path / "out")
    (data.path / "dataset.json").write_text(json.dumps(data.info | changes), "utf-8")
    with pytest.raises(InputError, match=r"dataset\.json cannot be read; prepare again"):
        Prepared.load(data.path)


def test_a_data_set_of_version_0_1_opens(folder, tmp_path):
    (folder / "Stroke" / "4 (9).png").write_bytes(b"no picture")
    new = make("image-folder", folder, out=tmp_path / "out")
    info = json.loads((new.path / "dataset.json").read_text("utf-8"))
    del info["preparation"]["resolved"]
    (new.path / "dataset.json").write_text(json.dumps(info), "utf-8")
    audit = json.loads((new.path / "audit.json").read_text("utf-8"))
    audit["findings"] = audit.pop("entries")
    (new.path / "audit.json").write_text(json.dumps(audit), "utf-8")
    old = Prepared.load(new.path)
    assert old.fingerprint == new.fingerprint
    assert "Stroke/4 (9).png" in {entry["where"] for entry in old.audit["entries"]}
    assert "Stroke/4 (9).png" in old.audit_text()
    assert old.slices(3).shape == (2, 64, 64)
    assert reading(old.info)["axis"] is None


def test_a_data_set_of_the_first_format_says_what_to_do(folder, tmp_path):
    data = make("image-folder", folder, out=tmp_path / "out")
    info = json.loads((data.path / "dataset.json").read_text("utf-8"))
    (data.path / "dataset.json").write_text(json.dumps(info | {"format_version": 1}), "utf-8")
    with pytest.raises(InputError, match="format version 1, this version reads 2; prepare again"):
        Prepared.load(data.path)
    assert len(make("image-folder", folder, out=tmp_path / "out", overwrite=True)) == 4


# ---------------------------------------------------------------------------------------- classes


@pytest.fixture
def tumours(tmp_path):
    """A data set of four studies: b, a, an unknown class that a later look leaves, a."""
    for patient in range(5):
        save(tmp_path / "source" / f"p{patient}" / "1.png", np.eye(9, dtype=np.uint8) * patient)
    (tmp_path / "labels.csv").write_text("id,dx,side\np0,b,1\np1,a,0\np2,,1\np3,a,1\np4,c,0\n")
    labels = {"labels": tmp_path / "labels.csv", "classes": "dx"}
    data = make("image-folder", tmp_path / "source", out=tmp_path / "out", **labels)
    studies = data.studies.copy()
    studies.loc[3, [f"label.{name}" for name in "abc"]] = np.nan
    return Prepared(data.path, data.info, studies)


def test_a_data_set_of_classes(tumours):
    assert tumours.classes == Classes("dx", ("a", "b", "c"))
    assert tumours.outputs == "classes"
    assert tumours.info["classes"] == {"column": "dx", "ordered": False}
    expected = [[0, 1, 0], [1, 0, 0], [1, 0, 0], [np.nan] * 3]
    np.testing.assert_array_equal(tumours.labels, expected)
    kinds = tumours.audit["counts"]
    assert kinds == {"class of fewer than two patients": 2, "patient without label": 1}
    rare = [e for e in tumours.audit["entries"] if e["kind"].startswith("class of")]
    assert [(entry["where"], entry["detail"]) for entry in rare] == [
        ("b", "1 patient"),
        ("c", "1 patient"),
    ]


def test_the_audit_says_how_many_studies_are_of_each_class_and_site(tumours):
    of_sites = tumours.studies.assign(site=["B", "A", None, "A"])
    lines = Prepared(tumours.path, tumours.info, of_sites).audit_text().splitlines()
    assert lines[0].startswith("4 studies of 4 patients")
    assert lines[1:3] == ["dx: a 2, b 1, c 0", "sites: A 2, B 1"]
    many = tumours.studies.loc[[0] * 25].assign(site=[f"site {i}" for i in range(25)])
    text = Prepared(tumours.path, tumours.info, many).audit_text()
    assert text.splitlines()[2].endswith(", site 19 1, ... and 5 more")


def test_a_data_set_in_the_order_of_a_run_s_classes(tumours):
    known = Classes("diagnosis", ("other", "b", "c", "a"), ordered=True)
    seen = tumours.with_classes(known)
    assert seen.classes == known
    expected = [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [np.nan] * 4]
    np.testing.assert_array_equal(seen.labels, expected)
    assert seen.fingerprint == tumours.fingerprint
    assert list(seen.studies.study_id) == list(tumours.studies.study_id)
    np.testing.assert_array_equal(seen.slices(1), tumours.slices(1))
    assert seen.with_classes(tumours.classes).labels[:3].tolist() == tumours.labels[:3].tolist()
    assert tumours.with_classes(tumours.classes) is tumours


def test_a_class_that_no_study_has_is_no_obstacle(tumours):
    seen = tumours.with_classes(Classes("dx", ("a", "b")))
    assert seen.label_names == ["a", "b"]


def test_classes_that_a_run_does_not_know_are_refused_with_both_lists(tumours, folder, tmp_path):
    with pytest.raises(InputError, match="has the classes a, b, the model knows a, x, and not b"):
        tumours.with_classes(Classes("dx", ("a", "x")))
    labels = make("image-folder", folder, out=tmp_path / "labels of yes and no")
    with pytest.raises(InputError, match=r"has yes/no labels \(stroke\), not classes .* \(a, x\)"):
        labels.with_classes(Classes("dx", ("a", "x")))


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """A data set of classes, with a number and a category of each study."""
    out = tmp_path_factory.mktemp("described") / "data"
    return make("demo", out=out, patients=4, size=16, kind="classes", sites=2)


@pytest.mark.parametrize(
    "damage",
    [
        {"label_names": "abc"},
        {"classes": None},
        {"classes": {"column": 5, "ordered": "yes"}},
        {"columns": []},
        {"columns": {"covariates": ["age"]}},
        {"columns": {"covariates": {"age": "number"}}},
        {"columns": {"covariates": {"age": {"kind": "category", "categories": ["F"]}}}},
        {"columns": {"covariates": {"sex": {"kind": "category", "categories": 5}}}},
        {"columns": {"covariates": {"sex": {"kind": "number"}}}},
        {"series": None},
        {"series": {"names": "ab", "read_as": "channels"}},
        {"series": {"names": ["a", "b"], "read_as": "side by side"}},
        {"series": {"names": list("abcde"), "read_as": "channels"}},
        {"series": {"names": ["a", "b"], "read_as": "sequence"}},
    ],
)
def test_a_description_of_what_is_not_there_is_one_line(described, damage):
    path = described.path / "dataset.json"
    info = path.read_bytes()
    path.write_text(json.dumps(json.loads(info) | damage))
    with pytest.raises(InputError, match=r"dataset\.json (cannot be read|names columns)"):
        Prepared.load(described.path)
    path.write_bytes(info)


# ------------------------------------------------------------------------- the series of a run


@pytest.fixture
def in_series(tmp_path, rng):
    """Data sets of one patient, who has some series, read in some way."""

    def prepared(names, read_as="sequence"):
        place = tmp_path / f"{names} {read_as}"
        for name in names:
            for number in range(2):
                image = rng.integers(256, size=(9, 9), dtype=np.uint8)
                save(place / "source" / "p" / name / f"{number}.png", image)
        (place / "labels.csv").write_text("id,x\np,1\n")
        options = {"labels": place / "labels.csv", "series": ",".join(names)}
        out, source = place / "data", place / "source"
        return make("image-folder", source, out=out, size=9, series_as=read_as, **options)

    return prepared


@pytest.mark.parametrize(("names", "numbers"), [("abc", [0, 1, 2]), ("ac", [0, 2]), ("bc", [1, 2])])
def test_series_have_the_numbers_of_the_run(in_series, names, numbers):
    data = in_series(names).with_series(Series(("a", "b", "c"), "sequence"))
    assert data.series_of(0).tolist() == np.repeat(numbers, 2).tolist()
    assert data.marked_series == ("a", "b", "c")


@pytest.mark.parametrize("read_as", ["sequence", "channels"])
def test_series_of_other_names_are_taken_in_their_order(in_series, read_as, capsys):
    data = in_series("xy", read_as)
    known = Series(("a", "b"), read_as)
    other = data.with_series(known)
    assert other.series == known
    assert other.series_of(0).tolist() == data.series_of(0).tolist()
    assert f"series x, y as {'a ' * (read_as == 'sequence')}{read_as} are taken" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("names", "read_as", "known"),
    [
        ("ba", "channels", Series(("a", "b"), "channels")),
        ("ba", "sequence", Series(("a", "b", "c"), "sequence")),
        ("ax", "sequence", Series(("a", "b"), "sequence")),
        ("ax", "channels", Series(("a", "b"), "channels")),
        ("ab", "channels", Series(("a", "b", "c"), "channels")),
        ("xyz", "sequence", Series(("a", "b"), "sequence")),
        ("ab", "channels", Series(("a", "b"), "sequence")),
        ("ab", "sequence", None),
    ],
)
def test_series_that_the_run_does_not_know_are_refused(in_series, names, read_as, known):
    with pytest.raises(InputError, match="prepare it again"):
        in_series(names, read_as).with_series(known)
