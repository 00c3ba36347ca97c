"""What many tests share: a seeded generator and a small prepared demo cohort."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from ray_nodes import two_nodes  # noqa: F401
from stores import s3, s3_address  # noqa: F401

# Examples are the same in every run, and a slow machine is no failure.
settings.register_profile(
    "medseq_tf", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("medseq_tf")


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
    from automatic_run import automatic_run

    return automatic_run(demo_data, tmp_path_factory.mktemp("automatic") / "auto")


@pytest.fixture(scope="session")
def automatic_classes(class_data, tmp_path_factory):
    """The same of three classes."""
    from automatic_run import automatic_run

    return automatic_run(class_data, tmp_path_factory.mktemp("automatic") / "auto")
