"""The model in MLflow: registered without a pickle, served, and asked over HTTP."""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from served import exported, pictures
from small_models import (
    CLASSES,
    COLUMN,
    COVARIATES,
    NETWORK,
    WITH_COVARIATES,
    description_of,
    members_of,
    model_of,
    recipe_of,
)

from medseq_tf.errors import InputError
from medseq_tf.runs import mlflow_store, tracking
from medseq_tf.serving.mlflow_model import Scorer, _load_pyfunc, columns_of, further_inputs_of
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.open_model import GraphModel, open_model

COLUMNS = {
    "study": "string",
    "label": "string",
    "probability": "double",
    "threshold": "double",
    "positive": "boolean",
    "error": "string",
}


def text(file):
    return base64.b64encode(file).decode()


def studies():
    good = [text(file) for file in pictures(5)]
    return {"study": ["one", "two", "three"], "slices": [good, good[:2], [good[0], "no base64!"]]}


def expected(count):
    files = pictures(5)[:count]
    return open_model(exported().path).predict(files).probability[0]


def test_rows_of_a_table():
    found = _load_pyfunc(str(exported().path)).predict(pd.DataFrame(studies()))
    assert list(found["study"]) == ["one", "two", "three"]
    assert found["probability"][0] == pytest.approx(expected(5), abs=1e-6)
    assert found["probability"][1] == pytest.approx(expected(2), abs=1e-6)
    assert found["error"][2] == "a slice is not in base64"
    assert found["probability"][2] is None
    assert (found["probability"][:2] >= found["threshold"][:2]).tolist() == found["positive"][
        :2
    ].tolist()


def test_a_model_that_version_0_1_registered_is_scored():
    module = importlib.import_module("medseq_tf.mlflow_scoring")  # the name that MLflow keeps
    found = module._load_pyfunc(str(exported().path)).predict(pd.DataFrame(studies()))
    assert found["probability"][0] == pytest.approx(expected(5), abs=1e-6)


def test_the_columns_of_classes():
    description = description_of("uint8", outputs="classes")
    model = GraphModel(
        ServingModel(members_of([class_model()], recipe_of(NETWORK)), description).signatures
    )
    found = Scorer(model).predict(pd.DataFrame(studies()))
    assert list(found) == list(columns_of(description))
    assert list(found) == ["study", "label", "probability", "called",
                           *(f"probability.{name}" for name in CLASSES), "error"]  # fmt: skip
    assert list(found["study"]) == ["one", "two", "three"]
    assert list(found["label"][:2]) == [COLUMN] * 2
    by_class = found[[f"probability.{name}" for name in CLASSES]][:2].to_numpy(float)
    np.testing.assert_allclose(by_class.sum(axis=1), 1, atol=1e-6)
    assert list(found["called"][:2]) == [CLASSES[i] for i in by_class.argmax(axis=1)]
    np.testing.assert_array_equal(found["probability"][:2], by_class.max(axis=1))
    assert found["called"][2] is found["probability"][2] is None
    assert found["error"][2] == "a slice is not in base64"


def test_the_columns_of_classes_that_are_called_by_costs():
    dear = int(np.argmin(class_probabilities()))
    costs = np.ones((3, 3)) - np.eye(3)
    costs[dear] *= 1000
    description = description_of("uint8", outputs="classes", costs=costs.tolist())
    model = GraphModel(
        ServingModel(members_of([class_model()], recipe_of(NETWORK)), description).signatures
    )
    row = Scorer(model).predict(pd.DataFrame(studies())).iloc[0]
    assert row["called"] == CLASSES[dear]
    assert row["probability"] == row[f"probability.{CLASSES[dear]}"]
    assert row["expected_cost"] == pytest.approx(1 - row["probability"], abs=1e-6)


def test_covariates_are_columns_that_may_be_absent():
    recipe = recipe_of({**NETWORK, **WITH_COVARIATES})
    description = description_of("uint8", covariates=COVARIATES)
    assert further_inputs_of(description) == {"covariate.age": "double", "covariate.sex": "string"}
    model = GraphModel(ServingModel(members_of([model_of(recipe)], recipe), description).signatures)
    files = pictures(5)
    given = pd.DataFrame(studies() | {"slices": [studies()["slices"][0]] * 3})
    given["covariate.age"], given["covariate.sex"] = [63, None, 20], ["M", None, "other"]
    found = Scorer(model).predict(given)
    told = model.predict(files, covariates={"age": 63, "sex": "M"}).probability
    missing = model.predict(files).probability
    assert list(found["probability"][:4]) == pytest.approx([*told, *missing], abs=1e-6)
    assert abs(told - missing).max() > 1e-3
    assert "covariate sex is none of F, M" in found["error"][4]
    without = Scorer(model).predict(given[["study", "slices"]])
    assert list(without["probability"][:2]) == pytest.approx(list(missing), abs=1e-6)


def class_model():
    return model_of(recipe_of(NETWORK), outputs="classes")


def class_probabilities():
    description = description_of("uint8", outputs="classes")
    model = GraphModel(
        ServingModel(members_of([class_model()], recipe_of(NETWORK)), description).signatures
    )
    return model.predict(pictures(5)).probability


def test_rows_without_names_are_called_by_their_place():
    frame = pd.DataFrame({"slices": studies()["slices"][:1] + [[]]})
    found = Scorer(open_model(exported().path)).predict(frame)
    assert list(found["study"]) == ["0", "1"]
    assert "below 1" in found["error"][1]


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_a_row_without_a_name_or_slices_stops_no_other(missing):
    good = studies()["slices"][0]
    frame = pd.DataFrame({"study": ["one", missing, "three"], "slices": [None, good, good]})
    found = Scorer(open_model(exported().path)).predict(frame)
    assert list(found["study"]) == ["one", "1", "three"]
    assert "not a list" in found["error"][0]
    assert found["probability"][1] == found["probability"][2] == pytest.approx(expected(5))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's imports
def test_registered_it_holds_no_pickle_and_is_found_again(no_server):
    uri = mlflow_store.register_saved_model(exported().path, "lesion", "0" * 32, COLUMNS)
    assert uri == "models:/lesion/1"
    path = mlflow_store.download_saved_model(uri)
    assert not [p for p in path.parents[2].rglob("*") if p.suffix in (".pkl", ".pickle")]
    assert open_model(uri).describe() == open_model(exported().path).describe()
    needed = (path.parents[1] / "requirements.txt").read_text("utf-8").splitlines()
    assert f"tensorflow=={tf.__version__}" in needed
    assert not [line for line in needed if "medseq" in line], "PyPI's name is not ours"
    assert (path.parents[1] / "code" / "medseq_tf" / "serving" / "mlflow_model.py").is_file()
    assert not list((path.parents[1] / "code").rglob("__pycache__"))
    assert mlflow_store.register_saved_model(exported().path, "lesion", None, COLUMNS).endswith(
        "/2"
    )
    with pytest.raises(InputError, match="MLflow at sqlite"):
        mlflow_store.download_saved_model("models:/lesion/9")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_until_ready(port, server, seconds=240):
    for _ in range(seconds):
        assert server.poll() is None, "the server ended"
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(1)
    raise AssertionError("the server is not ready")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's imports
def test_served_by_mlflow(no_server):
    uri = mlflow_store.register_saved_model(exported().path, "lesion", None, COLUMNS)
    port = free_port()
    words = ["-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    with open(no_server / "server.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, *words, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        )  # fmt: skip
    try:
        wait_until_ready(port, server)
        rows = pd.DataFrame(studies()).to_dict(orient="split", index=False)
        status, answer = post(port, "/invocations", {"dataframe_split": rows})
        assert status == 200, answer
        found = json.loads(answer)["predictions"]
        assert [row["study"] for row in found] == ["one", "two", "three"]
        np.testing.assert_allclose(found[0]["probability"], expected(5), atol=1e-5)
        np.testing.assert_allclose(found[1]["probability"], expected(2), atol=1e-5)
        assert found[2]["error"] == "a slice is not in base64"
        status, answer = post(port, "/invocations", {"dataframe_split": {"columns": ["x"]}})
        assert status == 400
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.filterwarnings("ignore")  # MLflow's imports
def test_a_model_that_is_refused_leaves_its_run_as_it_was(no_server):
    """MLflow ends the run in which it logs a model: anew, and as failed if that fails."""
    tracker = tracking.Tracker(no_server, "first")
    tracker.end("FINISHED")
    before = mlflow_store.connect().get_run(tracker.run_id).info
    name = "a/name:that is none"
    with pytest.raises(InputError, match="does not register"):
        mlflow_store.register_saved_model(exported().path, name, tracker.run_id, COLUMNS)
    after = mlflow_store.connect().get_run(tracker.run_id).info
    assert (after.status, after.end_time) == ("FINISHED", before.end_time)
