"""Publication: a data set is whole or absent, and nothing else is replaced by one."""

from __future__ import annotations

import shutil

import pytest
from image_folders import contents, make

from medseq_tf.dataset import shards
from medseq_tf.dataset.prepare import READERS, Prepared, prepare
from medseq_tf.errors import InputError


def test_what_exists_is_kept_unless_told_otherwise(folder, tmp_path):
    out = tmp_path / "out"
    first = make("image-folder", folder, out=out)
    with pytest.raises(InputError, match="exists; choose another out, or overwrite=True"):
        make("image-folder", folder, out=out)
    second = make("image-folder", folder, out=out, size=32, overwrite=True)
    assert second.info["size"] == 32
    assert first.fingerprint != second.fingerprint
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a prepared data set, so it is not overwritten"):
        make("image-folder", folder, out=tmp_path / "mine", overwrite=True)
    for inside in (folder / "out", tmp_path):
        with pytest.raises(InputError, match="lie in one another"):
            make("image-folder", folder, out=inside, overwrite=True)


def test_nothing_but_a_data_set_is_overwritten(folder, tmp_path):
    out = tmp_path / "out"
    make("image-folder", folder, out=out)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("dataset.json", "experiment.yaml", "model.keras"):
        (run / name).write_text("{}")
    before = contents(run)
    with pytest.raises(InputError, match="is the folder of a run, so it is not overwritten"):
        make("image-folder", folder, out=run, overwrite=True)
    assert contents(run) == before
    for name in ("runs/first/model.keras", "shards/notes.txt", "splits.csv"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(InputError, match="holds more than a prepared data set"):
            make("image-folder", folder, out=out, overwrite=True)
        assert (out / name).read_text("utf-8") == "mine"
        shutil.rmtree(out / "runs", ignore_errors=True)
        (out / name).unlink(missing_ok=True)
    make("image-folder", folder, out=out, overwrite=True, size=16)


def test_a_data_set_that_came_meanwhile_is_kept(folder, tmp_path, monkeypatch):
    """As of another process, which ended while this one read its source."""
    out, scan = tmp_path / "out", READERS["image-folder"]

    def slow(source, **options):
        found = scan(source, **options)
        monkeypatch.setitem(READERS, "image-folder", scan)
        make("image-folder", folder, out=out, size=16)
        return found

    monkeypatch.setitem(READERS, "image-folder", slow)
    with pytest.raises(InputError, match="exists; choose another out"):
        make("image-folder", folder, out=out, size=32)
    assert Prepared.load(out).info["size"] == 16
    assert not list(tmp_path.glob("*.partial-*"))


def test_one_process_at_a_time_prepares_for_a_target(folder, tmp_path, monkeypatch):
    """Whatever each of them prepares, and with overwrite too."""
    out = tmp_path / "out"
    original, refused = shards.study_record_of, []

    def beside(task):
        if not refused:
            with pytest.raises(InputError, match="is being prepared by another process") as caught:
                prepare("demo", out=out, patients=3, workers=1, progress=False, overwrite=True)
            refused.append(caught.value)
        return original(task)

    monkeypatch.setattr(shards, "study_record_of", beside)
    data = make("image-folder", folder, out=out)
    assert refused
    assert len(data) == 4
    assert not list(tmp_path.glob("*out*.p*"))


def test_a_data_set_that_a_killed_run_was_about_to_replace_comes_back(folder, tmp_path):
    out = tmp_path / "out"
    make("image-folder", folder, out=out)
    before = contents(out)
    out.rename(tmp_path / "out.partial-0123456789ab.replaced")
    (tmp_path / "out.partial-of my own").mkdir()
    with pytest.raises(InputError, match="exists; choose another out"):
        make("image-folder", folder, out=out, size=32)
    assert contents(out) == before
    assert (tmp_path / "out.partial-of my own").is_dir()


def test_a_link_is_followed_and_nothing_is_replaced_through_it(folder, tmp_path):
    place, link = tmp_path / "disk" / "place", tmp_path / "link"
    link.symlink_to(place)
    assert make("image-folder", folder, out=link).path == place
    before = contents(place)
    with pytest.raises(InputError, match="exists; choose another out"):
        make("image-folder", folder, out=link, size=16)
    with pytest.raises(InputError, match=r"symbolic link; to replace .*place itself"):
        make("image-folder", folder, out=link, size=16, overwrite=True)
    assert link.is_symlink()
    assert contents(place) == before
