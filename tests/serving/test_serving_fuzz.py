"""Mutated requests: an answer or a clean error, and a server that goes on."""

from __future__ import annotations

import base64
import http.client
import json

import numpy as np
import pytest
from served import pictures, serving

SIGNATURES = ("serving_default", "probability")


def mutated_file(rng, file):
    """A picture with some of its bytes changed, cut, doubled or swapped with another's."""
    data = bytearray(file)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data))) if data else 0
        match rng.integers(5):
            case 0 if data:
                data[at] ^= 1 << rng.integers(8)
            case 1:
                data[at : at + int(rng.integers(1, 40))] = rng.bytes(int(rng.integers(0, 60)))
            case 2:
                del data[at:]
            case 3:
                data[at:at] = data[: int(rng.integers(0, 200))]
            case 4 if len(data) > 30:
                data[16:26] = rng.bytes(10)
    return bytes(data)


def mutated_request(rng, files):
    """The JSON of a request that is wrong in one way or several."""
    studies = [
        [files[i] for i in rng.integers(0, len(files), rng.integers(1, 6))]
        for _ in range(rng.integers(1, 4))
    ]
    lengths = [len(study) for study in studies]
    for study in studies:
        if rng.random() < 0.3:
            place = int(rng.integers(len(study)))
            study[place] = mutated_file(rng, study[place])
    width = max(lengths)
    rows = [study + [study[0]] * (width - len(study)) for study in studies]
    encoded = [[{"b64": base64.b64encode(file).decode()} for file in row] for row in rows]
    inputs = {"image_bytes": encoded, "lengths": lengths}
    match rng.integers(16):
        case 0:
            inputs["lengths"] = (np.array(lengths) + rng.integers(-3, 4, len(lengths))).tolist()
        case 1:
            inputs["lengths"] = [2**31 - 1, -(2**31)][: len(lengths)]
        case 2:
            inputs["lengths"] = lengths[:-1]
        case 3:
            inputs["image_bytes"] = encoded[0]
        case 4:
            encoded[0] = encoded[0][:-1]
        case 5:
            inputs["lengths"] = [rng.choice([0.5, 1e30, "1"])] * len(lengths)
        case 6:
            encoded[-1][0] = [None, 3, "text", {"b64": "§"}, {}, []][rng.integers(6)]
        case 7:
            inputs[rng.choice(["image_bytes", "lengths", "more"])] = None
        case 8:
            inputs = [inputs, 1, None, "x"][rng.integers(4)]
    signature = rng.choice([*SIGNATURES, "nothing"], p=[0.48, 0.48, 0.04])
    key = rng.choice(["inputs", "instances"], p=[0.9, 0.1])
    body = json.dumps({"signature_name": signature, key: inputs}).encode()
    return mutated_file(rng, body) if rng.random() < 0.1 else body


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def ask(connection, body, path="/v1/models/lesion:predict"):
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def check(server, count, seed):
    rng = np.random.default_rng(seed)
    files = [*pictures(4, seed), *pictures(3, seed, kind=".jpg")]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    statuses = []
    for _ in range(count):
        status, answer = ask(connection, mutated_request(rng, files))
        statuses.append(status)
        if status == 200:
            outputs = answer.get("outputs", answer.get("predictions"))
            values = outputs["probability"] if isinstance(outputs, dict) else outputs
            assert np.all((np.float32(values) >= 0) & (np.float32(values) <= 1))
        else:
            assert status == 400
            assert isinstance(answer["error"], str)
    assert 0.05 < statuses.count(200) / count < 0.95, "some answers, some errors"
    good = [[{"b64": base64.b64encode(file).decode()} for file in files]]
    body = {"inputs": {"image_bytes": good, "lengths": [len(files)]}}
    status, answer = ask(connection, json.dumps(body).encode())
    assert status == 200
    assert np.isfinite(answer["outputs"]["probability"]).all()
    connection.close()


def test_some_mutated_requests(server):
    check(server, 200, seed=0)


@pytest.mark.slow
def test_a_thousand_mutated_requests(server):
    check(server, 1000, seed=1)
