"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FOLLOWED = {
    "Add an aggregator": "deep_sets",
    "Add an encoder": "thumbnail",
    "Add an augmentation": "brightness",
}
"""Section -> the name of what it adds."""
STEP = re.compile(
    r"(?:In `(?P<file>[\w/.]+)`|and)[^`\n]*?"
    r"(?P<where>above|below|in place of|at the end)(?: `(?P<mark>[^`]+)`)?[^\n]*:\n\n"
    r"```python\n(?P<code>.*?)```",
    re.DOTALL,
)
CHECKS = """
import pytest
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.tuning.space import Space

recipe = recipes.load("fsm_bilstm", ["model.aggregator.name=deep_sets"])
assert recipe.flat()["model.aggregator.units"] == 64
with pytest.raises(InputError, match="should be one of lstm, .*, deep_sets"):
    recipes.load(recipe, ["model.aggregator.name=none"])
assert recipes.load(recipe, ["model.encoder.name=thumbnail"]).model.encoder.square == 8
assert recipes.load(recipe, ["augment.brightness={}"]).augment.brightness.p == 0.5
vary = {"model.aggregator.units": {"int": [8, 64], "when": {"model.aggregator.name": "deep_sets"}}}
vary["model.aggregator.name"] = {"choice": ["lstm", "deep_sets"]}
assert len(Space.load({"name": "one", "recipe": "fsm_bilstm", "space": vary}).settings) == 2
"""


def steps(section: str):
    """Yield file, where in it, at which mark, and code of every step of a section."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    if text is None:
        pytest.skip(f"CONTRIBUTING.md has no section {section!r} yet")
    file = None
    found = list(STEP.finditer(text[1]))
    assert len(found) == text[1].count("```python")  # every block says where it goes
    for step in found:
        file = step["file"] or file
        yield file, step["where"], step["mark"], step["code"]


def follow(root: Path, section: str) -> set[str]:
    """Do what a section says in a copy of the package; return the files that it touched."""
    touched = set()
    for file, where, mark, code in steps(section):
        path = root / file
        text = path.read_text("utf-8")
        if where == "at the end":
            text += f"\n\n{code}"
        else:
            lines = text.splitlines(keepends=True)
            starts = re.compile(rf"\s*(?:class )?{re.escape(mark)}(?!\w)")
            at = next(n for n, line in enumerate(lines) if starts.match(line))
            assert where != "in place of" or lines[at].count("|")
            pieces = {"above": [code, "\n\n", lines[at]], "below": [lines[at], code]}
            lines[at] = "".join(pieces.get(where, [code]))
            text = "".join(lines)
        path.write_text(text, "utf-8")
        touched.add(file)
    return touched


def test_the_page_is_enough(tmp_path):
    for folder in ("medseq_tf", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    for file in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    tests = set()
    for section in FOLLOWED:
        touched = follow(tmp_path, section)
        assert len(touched) == 3
        tests |= {file for file in touched if file.startswith("tests/")}
        assert len(touched - tests) == 2
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    run["env"] = {**os.environ, "PYTHONPATH": str(tmp_path)}
    names = " or ".join(FOLLOWED.values())
    for words in (
        ["-c", CHECKS],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names]
        + [*sorted(tests), "tests/models/test_contract.py"],
    ):
        done = subprocess.run([sys.executable, *words], **run)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 12, done.stdout
