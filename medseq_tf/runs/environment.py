"""What a run was made with: versions, the commit of this package, the libraries that it needs."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medseq_tf

if TYPE_CHECKING:
    from packaging.requirements import Requirement


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


def requirements() -> list[tuple[Requirement, str]]:
    """Return what this package needs, and what it can use: each with its extra, or with ""."""
    from packaging.requirements import Requirement

    here = _of_checkout(Path(__file__).parents[2])
    if here is not None:  # an editable installation's metadata are as old as the installation
        return [(Requirement(line), extra) for extra, lines in here.items() for line in lines]
    metadata = importlib.metadata.metadata("medseq_tf")
    extras = metadata.get_all("Provides-Extra") or []
    needed = map(Requirement, metadata.get_all("Requires-Dist") or [])
    found = [(requirement, _extra(requirement, extras)) for requirement in needed]
    return [(requirement, extra) for requirement, extra in found if extra is not None]


def _of_checkout(root: Path) -> dict[str, list[str]] | None:
    """Return the requirements of a checkout by extra, or None if the package lies in none."""
    declared = configparser.ConfigParser(interpolation=None)
    declared.read(root / "setup.cfg", "utf-8")
    if declared.get("metadata", "name", fallback=None) != "medseq_tf":
        return None
    always = (root / "requirements.txt").read_text("utf-8")
    texts = {"": always, **declared["options.extras_require"]}
    return {
        extra: [line for line in text.splitlines() if line and not line.startswith("#")]
        for extra, text in texts.items()
    }


def _extra(requirement: Requirement, extras: Iterable[str]) -> str | None:
    """Return the extra that a requirement is of, "" if it is always needed, None if never here."""
    marker = requirement.marker
    return next((e for e in ("", *extras) if not marker or marker.evaluate({"extra": e})), None)


def installed_version(name: str) -> str | None:
    """Return the version of a library that is here, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_of_extras(requirement: Requirement) -> list[str]:
    """Return the libraries that the extras of an installed requirement need and that are not here.

    Of `tensorflow[and-cuda]` they are those of CUDA.
    """
    from packaging.requirements import Requirement

    needed = map(Requirement, importlib.metadata.requires(requirement.name) or [])
    return [
        further.name
        for further in needed
        if _extra(further, requirement.extras) in requirement.extras
        and installed_version(further.name) is None
    ]


def pinned_requirements() -> list[str]:
    """Return the libraries that this package needs, each in the version that is here.

    This package itself is none of them: it goes with the model, and PyPI's name is not ours.
    """
    return [_pinned(requirement) for requirement, extra in requirements() if not extra]


def _pinned(requirement: Requirement) -> str:
    version = installed_version(requirement.name)
    return requirement.name + (f"=={version}" if version else str(requirement.specifier))


def all_pinned() -> list[str]:
    """Return every library that this package needs, or that they need, as it is here."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned: dict[str, str] = {}
    waiting = [requirement for requirement, extra in requirements() if not extra]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in pinned:
            continue
        pinned[name] = _pinned(requirement)
        if installed_version(name):
            needed = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [
                further for further in needed if _extra(further, requirement.extras) is not None
            ]
    return sorted(pinned.values())
