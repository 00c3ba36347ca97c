"""What a run was made with: versions, the commit of this package, the libraries that it needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import medseq_tf


def environment() -> dict[str, Any]:
    """Return what a run was made with: versions, and the git commit of this package's own checkout.

    The commit is null where the package is installed and not run from a checkout, whatever
    repository the working directory, or the environment, lies in.
    """
    import keras
    import numpy
    import tensorflow

    package = Path(medseq_tf.__file__).parent
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    variables = {name: value for name, value in os.environ.items() if name not in elsewhere}

    def git(*command: str) -> str | None:
        words = ["git", "-C", str(package), *command]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=10, env=variables)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    is_checkout = git("ls-files", "--error-unmatch", "__init__.py") is not None
    changes = git("status", "--porcelain", "--untracked-files=no", ".") if is_checkout else None
    return {
        "medseq_tf_git_commit": git("rev-parse", "HEAD") if is_checkout else None,
        "medseq_tf_git_changed": None if changes is None else bool(changes),
        "versions": {
            "medseq_tf": medseq_tf.__version__,
            "python": platform.python_version(),
            "tensorflow": tensorflow.__version__,
            "keras": keras.__version__,
            "numpy": numpy.__version__,
        },
    }


def pinned_requirements() -> list[str]:
    """Return the libraries that this package needs, each in the version that is here.

    This package itself is none of them: it goes with the model, and PyPI's name is not ours.
    """
    from packaging.requirements import Requirement

    try:
        needed = importlib.metadata.requires("medseq_tf") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        lines = (Path(__file__).parents[2] / "requirements.txt").read_text("utf-8").splitlines()
        needed = [line for line in lines if line.strip() and not line.startswith("#")]
    pinned = []
    for requirement in map(Requirement, needed):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            pinned.append(f"{requirement.name}=={importlib.metadata.version(requirement.name)}")
        except importlib.metadata.PackageNotFoundError:
            pinned.append(str(requirement))
    return pinned
