"""What many tests share: a seeded generator and a small prepared demo cohort."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure
from orthanc import archive, orthanc  # noqa: F401
from ray_nodes import two_nodes  # noqa: F401
from stores import s3, s3_address  # noqa: F401

# Examples are the same in every run, and a slow machine is no failure.
settings.register_profile(
    "medseq_tf", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("medseq_tf")


def pytest_collection_finish(session):
    """Keep the many objects of imported modules out of every later collection."""
    gc.collect()
    gc.freeze()


BLANK = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
DRAWN = ("reporting", "test_end_to_end.py")
"""Where pages are drawn whole."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Leave the curves of a page blank where no test looks at them: every training writes one."""
    if set(DRAWN) & set(item.path.parts):
        return (yield)
    draw = Figure.savefig

    def leave_blank(figure, file, *, format=None, **settings):
        if format == "svg":
            file.write(BLANK)
        else:
            draw(figure, file, format=format, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", leave_blank)
        return (yield)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory):
    """The folder of a prepared demo cohort: 40 patients, 32 x 32, one label."""
    from medseq_tf.dataset.prepare import prepare

    out = tmp_path_factory.mktemp("prepared") / "demo"
    prepare("demo", out=out, patients=40, size=32, difficulty=0.0, workers=1, progress=False)
    return out


@pytest.fixture(scope="session")
def class_data(tmp_path_factory):
    """The folder of a prepared demo cohort: 40 patients, 32 x 32, one of three classes each."""
    from medseq_tf.dataset.prepare import prepare

    out = tmp_path_factory.mktemp("prepared") / "classes"
    settings = {"patients": 40, "size": 32, "difficulty": 0.0, "kind": "classes"}
    prepare("demo", out=out, workers=1, progress=False, **settings)
    return out


@pytest.fixture
def no_server(tmp_path, monkeypatch):
    """Tracking goes to a folder of the test, whatever the machine is set to."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def automatic(demo_data, tmp_path_factory):
    """A finished automatic run of one label, whose members read slices in different ways."""
    return _automatic(demo_data, tmp_path_factory, "automatic")


@pytest.fixture(scope="session")
def automatic_classes(class_data, tmp_path_factory):
    """The same of three classes."""
    return _automatic(class_data, tmp_path_factory, "automatic_classes")


def _automatic(data, tmp_path_factory, name):
    """Return an automatic run that one worker process trains, and each has a copy of."""
    from automatic_run import automatic_run

    from medseq_tf.runs.run import Run

    folder = tmp_path_factory.mktemp(name) / "auto"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return automatic_run(data, folder)
    shared = tmp_path_factory.getbasetemp().parent / name
    with open(shared.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shared.exists():
            shutil.copytree(shared, folder)
            return Run.open(folder)
        run = automatic_run(data, folder)
        shutil.copytree(folder, shared.with_suffix(".part"))
        shared.with_suffix(".part").rename(shared)
        return run
