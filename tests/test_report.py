"""The report: one file that needs no network, safe against what names may hold."""

from __future__ import annotations

import re
import shutil

import pytest
from small_run import run_small

from medseq_tf import report
from medseq_tf.runs import Run


@pytest.fixture(scope="module")
def run(demo_data, tmp_path_factory):
    return run_small(demo_data, tmp_path_factory.mktemp("runs") / "first", "fit.epochs=1")


def test_it_is_self_contained(run):
    text = (run.path / "report.html").read_text("utf-8")
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", text)
    assert len(re.findall(r"<img alt='[^']{20,}' src='data:image/png;base64,", text)) == 2
    assert "not a medical device" in text
    assert "width=device-width" in text


def test_it_shows_every_test_study_wrong_calls_first(run):
    text = (run.path / "report.html").read_text("utf-8")
    table = run.predictions
    for study in table[table["split"] == "test"]["study"]:
        assert text.count(f">{study}<") == 1
    rows = re.findall(r"<tr( class=wrong)?><td class='text'>", text)
    assert rows == sorted(rows, reverse=True)


def test_the_same_run_gives_the_same_report(run):
    assert report.page(run) == report.page(run)


def test_what_a_name_holds_is_text_not_markup(run, tmp_path):
    copy = tmp_path / "<script>alert(1)<"
    shutil.copytree(run.path, copy)
    text = report.page(Run.load(copy))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text
