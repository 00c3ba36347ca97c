"""What a run was made with, and the libraries that it needs elsewhere."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path

import medseq_tf
from medseq_tf.runs import environment as module
from medseq_tf.runs.environment import environment, pinned_requirements, requirements


def test_every_library_is_pinned_to_the_version_that_is_here():
    pinned = dict(line.split("==") for line in pinned_requirements())
    assert pinned["keras"] == importlib.metadata.version("keras")
    assert not {"medseq_tf", "medseq-tf", "pytest"} & set(pinned)


def test_requirements_are_those_of_the_checkout_or_of_the_installed_package(monkeypatch, tmp_path):
    root = Path(medseq_tf.__file__).parents[1]
    lines = (root / "requirements.txt").read_text("utf-8").splitlines()
    names = {re.split("[<>=]", line)[0] for line in lines if not line.startswith("#")}
    told = requirements()
    assert {requirement.name for requirement, extra in told if not extra} == names
    assert {extra for _, extra in told} >= {"gpu", "pretrained", "test"}
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = another\n")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "medseq_tf" / "runs" / "module.py"))
    installed = {requirement.name for requirement, extra in requirements() if not extra}
    assert {"keras", "tensorflow"} <= installed
    assert "pytest" not in installed


def test_the_commit_is_that_of_the_package_s_own_checkout(tmp_path, monkeypatch):
    """Not of the repository in which somebody works, or has installed it."""

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "mine")
    mine = git("rev-parse", "HEAD")
    assert environment()["medseq_tf_git_commit"] != mine
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert environment()["medseq_tf_git_commit"] != mine
    monkeypatch.delenv("GIT_DIR")
    package = tmp_path / "site-packages" / "medseq_tf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(medseq_tf, "__file__", str(package / "__init__.py"))
    made_with = environment()
    assert made_with["medseq_tf_git_commit"] is made_with["medseq_tf_git_changed"] is None
    git("add", str(package / "__init__.py"))
    git("commit", "-q", "-m", "a checkout of its own")
    (package / "__init__.py").write_text("# changed")
    made_with = environment()
    assert made_with["medseq_tf_git_commit"] == git("rev-parse", "HEAD")
    assert made_with["medseq_tf_git_changed"] is True
