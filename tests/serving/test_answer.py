"""What objects are made of: which model it was, and UIDs that follow from model and source."""

from __future__ import annotations

import hashlib
import re
import shutil

import pytest
from served import class_run, exported, small_run

from medseq_tf.reporting.rendering import LIMITS_OF_CLASSES, LIMITS_OF_USE
from medseq_tf.runs.run import Run
from medseq_tf.serving.dicom_results.answer import ModelIdentity, derived_uid, model_identity
from medseq_tf.serving.open_model import open_model

MODEL = ModelIdentity("a run", "3", "ab" * 32, "research")


def identity(name):
    opened = open_model(name)
    return model_identity(name, opened, opened.describe())


def test_a_uid_follows_from_model_and_sources():
    uid = derived_uid("report", MODEL, ["1.2", "1.3"])
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid)
    assert len(uid) <= 64
    assert derived_uid("report", MODEL, ["1.3", "1.2", "1.2"]) == uid
    others = [
        derived_uid("sheet", MODEL, ["1.2", "1.3"]),
        derived_uid("report", MODEL, ["1.2"]),
        derived_uid("report", MODEL, ["1.2", "1.3"], "age=50"),
        derived_uid("report", MODEL._replace(sha256="cd" * 32), ["1.2", "1.3"]),
        derived_uid("report", MODEL._replace(calls="ef"), ["1.2", "1.3"]),
        derived_uid("report", MODEL, ["1.21.3"]),
    ]
    assert len({uid, *others}) == 7
    assert derived_uid("report", MODEL._replace(name="renamed"), ["1.2", "1.3"]) == uid


def test_a_run_is_known_by_its_model_file_and_its_card():
    run = small_run()
    found = identity(run.path)
    expected = hashlib.sha256((run.path / "model.keras").read_bytes()).hexdigest()
    assert found.sha256 == expected
    assert found.version == expected[:12]
    assert found.name == run.name
    assert found.intended_use == LIMITS_OF_USE
    assert identity(run).sha256 == expected


def test_the_words_of_the_card_are_those_of_its_author(tmp_path):
    folder = tmp_path / "7"
    shutil.copytree(class_run().path, folder)
    found = identity(folder)
    assert found.intended_use == LIMITS_OF_CLASSES
    assert found.version == found.sha256[:12]  # a run has no number
    card = folder / "model_card.md"
    card.write_text("# Card\n\n> Only for\n> adults, \\*once\\*.\n\nAnd > this is not.\n")
    assert identity(Run(folder)).intended_use == "Only for adults, *once*."
    card.write_text("# Card\n")
    assert identity(folder).intended_use == LIMITS_OF_CLASSES


def test_an_export_has_the_number_of_its_version(tmp_path, monkeypatch):
    folder = exported().path
    (tmp_path / "current").symlink_to(folder)
    monkeypatch.chdir(folder)
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in (
            "saved_model.pb",
            *sorted(f"variables/{path.name}" for path in (folder / "variables").iterdir()),
        )
    ]
    for name in (folder, folder.parent, ".", tmp_path / "current"):
        found = identity(name)
        assert found.version == folder.name == "1"
        assert found.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(("name", "version"), [("models:/lesion/7", "7"), ("a", None)])
def test_a_model_elsewhere_is_known_by_what_it_says_of_itself(name, version):
    class Served:
        def describe(self):
            return open_model(small_run()).describe()

        def predict(self, *args, **kwargs):
            raise AssertionError

    served = Served()
    found = model_identity(name, served, served.describe())
    text = served.describe().to_json()
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert found.sha256 == digest
    assert found.version == (version or digest[:12])
