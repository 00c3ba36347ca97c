"""The client: the model's numbers, retries where they help, and words a person can read."""

from __future__ import annotations

import functools
import io
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from served import NAME, exported, pictures, serving, small_run
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
from medseq_tf.serving import client as serving_client
from medseq_tf.serving.client import ServingClient
from medseq_tf.serving.description import Description
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.refusals import RequestRefused, ServingError, readable


@pytest.fixture(scope="module")
def server():
    exported()
    with serving(with_grpc=True) as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(serving_client.time, "sleep", waits.append)
    return waits


@pytest.fixture(params=["http", "grpc"])
def client(server, request):
    grpc_address = f"grpc://127.0.0.1:{server.grpc_port}/{NAME}"
    address = server.address() if request.param == "http" else grpc_address
    return ServingClient(address, seconds=30)


@functools.cache
def model():
    run = small_run()
    return ServingModel(members_of([run.model()], run.experiment), Description.of_run(run))


def expected(files):
    rows = tf.constant([files])
    return model().serving_default(image_bytes=rows, lengths=tf.constant([len(files)]))


def test_it_gives_the_model_s_numbers(client):
    files = pictures(9, kind=".jpg")
    answer = client.predict(files, running=True)
    given = expected(files)
    np.testing.assert_allclose(answer.probability, given["probability"][0], atol=1e-5)
    np.testing.assert_allclose(answer.running, given["running_probability"][0], atol=1e-5)
    lean = client.predict(files)
    assert lean.running is None
    np.testing.assert_allclose(lean.probability, answer.probability, atol=1e-5)


def test_it_says_what_the_model_is(client):
    assert client.describe() == Description.of_run(small_run())


def test_a_refused_study_is_not_tried_again(client, server, no_waiting):
    before = server.seen
    with pytest.raises(RequestRefused, match=r"^image_bytes\[0, 1\] is no JPEG or PNG picture$"):
        client.predict([*pictures(1), b"no picture" * 9])
    assert server.seen == before + 1
    with pytest.raises(RequestRefused, match="no slices"):
        client.predict([])
    with pytest.raises(RequestRefused, match="cannot be decoded"):
        client.predict([pictures(1, kind=".jpg")[0][:300]])
    assert not no_waiting


@pytest.mark.parametrize("fault", [(503, b""), (429, b"slow down"), (504, b"<html>")])
def test_what_is_transient_is_tried_again(server, no_waiting, fault):
    server.faults = [fault, fault]
    answer = ServingClient(server.address()).predict(pictures(2))
    assert 0 < answer.probability[0] < 1
    assert no_waiting == [0.5, 1.0]


def test_but_not_for_ever(server, no_waiting):
    server.faults = [(503, b"")] * 9
    with pytest.raises(ServingError, match=r"status 503 \(tried 3 times\)"):
        ServingClient(server.address(), attempts=3).predict(pictures(2))
    assert len(server.faults) == 6
    server.faults = []


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/v1/models/m", "grpc://127.0.0.1:{}/m"])
def test_a_server_that_is_away(address):
    client = ServingClient(address.format(free_port()), attempts=2, seconds=20)
    with pytest.raises(ServingError, match=r"nobody .*\(tried 2 times\)"):
        client.predict([b"x"])


def test_a_server_that_does_not_answer_in_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/models/m"
        with pytest.raises(ServingError, match=r"no answer within 0.2 s \(tried once\)"):
            ServingClient(address, seconds=0.2, attempts=1).predict([b"x"])


def test_a_model_that_is_not_there(server):
    with pytest.raises(ServingError, match="the server has no such model"):
        ServingClient(server.address("other")).predict(pictures(1))
    with pytest.raises(ServingError, match="the server has no such model"):
        ServingClient(f"grpc://127.0.0.1:{server.grpc_port}/other").predict(pictures(1))


def test_a_model_of_another_kind_or_version(server):
    answers = [b'{"outputs": {"scores": [1]}}', b'{"outputs": "text"}', b'{"outputs": [[1, "x"]]}']
    for answer in answers:
        server.faults = [(200, answer)]
        with pytest.raises(ServingError, match="export the run again"):
            ServingClient(server.address()).predict(pictures(1))
        server.faults = [(200, answer)]
        with pytest.raises(ServingError, match="export the run again"):
            ServingClient(server.address()).describe()
    old = dict(server.signatures)
    lean = server.signatures.pop("probability")
    try:
        with pytest.raises(ServingError, match="export the run again"):
            ServingClient(server.address()).predict(pictures(1))
    finally:
        server.signatures = {**old, "probability": lean}


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"[1]", b'{"error": 3}', b"\xff\xfe"])
@pytest.mark.parametrize("status", [200, 404])
def test_something_else_that_answers(server, status, body):
    server.faults = [(status, body)]
    with pytest.raises(ServingError, match="is not TensorFlow Serving"):
        ServingClient(server.address()).predict(pictures(1))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error": "who are you"}', r"no access \(status 401\)"),
        (403, b"<html>", r"no access \(status 403\)"),
        (500, b'{"error": "out of\\nmemory"}', r"fails with status 500 \(out of\)"),
        (500, b"", "fails with status 500"),
    ],
)
def test_a_server_that_fails_refuses_no_study(server, status, body, words):
    server.faults = [(status, body)]
    with pytest.raises(ServingError, match=words) as caught:
        ServingClient(server.address()).predict(pictures(1))
    assert not isinstance(caught.value, RequestRefused)


def test_a_study_larger_than_a_message_is_refused(server, monkeypatch):
    from google.protobuf.message import EncodeError

    from medseq_tf.serving import over_grpc

    def fail(*arguments):
        raise EncodeError("Failed to serialize proto")  # from 2 GiB on

    monkeypatch.setattr(over_grpc, "encode_predict_request", fail)
    with pytest.raises(RequestRefused, match="more bytes than a gRPC message"):
        ServingClient(f"grpc://127.0.0.1:{server.grpc_port}/{NAME}").predict(pictures(1))


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "INTERNAL", "UNKNOWN"])
def test_nor_does_one_by_grpc(server, monkeypatch, code):
    import grpc

    class Failed(grpc.RpcError):
        def code(self):
            return grpc.StatusCode[code]

        def details(self):
            return "something"

    def fail(request, timeout):
        raise Failed

    client = ServingClient(f"grpc://127.0.0.1:{server.grpc_port}/{NAME}")
    monkeypatch.setattr(client._ask, "_predict", fail)
    with pytest.raises(ServingError, match=code) as caught:
        client.predict(pictures(1))
    assert not isinstance(caught.value, RequestRefused)


def test_a_jpeg_of_four_colours_is_called_by_its_name(server):
    before = server.seen
    file = io.BytesIO()
    Image.new("CMYK", (40, 40)).save(file, "JPEG")
    file = file.getvalue()
    with pytest.raises(RequestRefused, match=r"^a CMYK JPEG is not read \(slice 1\)$"):
        ServingClient(server.address()).predict([*pictures(1, kind=".jpg"), file])
    assert server.seen == before


@pytest.mark.parametrize(
    "address",
    ["http://me:secret@host:1/v1/models/m", "grpc://secret@host:1/m", "http://a:secret@x"],
)
def test_an_address_with_a_password_is_refused_without_repeating_it(address):
    with pytest.raises(InputError, match="name or password") as caught:
        ServingClient(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["", "localhost:8501", "http://host", "http://host/v1/models", "http://host/v1/models/a:predict",
     "grpc://host/m", "grpc://host:8500", "grpc://host:8500/a/b", "http://host:x/v1/models/m",
     "ftp://host:1/v1/models/m"],
)  # fmt: skip
def test_an_address_that_is_none(address):
    with pytest.raises(InputError, match="right would be http://host:8501/v1/models/NAME"):
        ServingClient(address)


def test_without_grpcio(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(InputError, match="pip install grpcio"):
        ServingClient("grpc://127.0.0.1:8500/m")


def test_a_version_can_be_named(server):
    client = ServingClient(server.address() + "/versions/1")
    assert client.describe().labels == ["lesion"]


def test_it_needs_no_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from medseq_tf.serving.client import ServingClient\n"
        "ServingClient('http://127.0.0.1:1/v1/models/m')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("assertion failed: [lengths[0] is below 1] \n\t [[{{node x}}]]", "lengths[0] is below 1"),
        ("Graph execution error:\n\njpeg::Uncompress failed. x", "a slice cannot be decoded"),
        ("first\nsecond", "first"),
        ("x" * 999, "x" * 297 + "..."),
        ("", "no reason given"),
    ],
)
def test_an_error_in_words(message, words):
    assert readable(message).startswith(words)


NO_PROBABILITIES = {
    "NaN": "[[NaN]]",
    "infinite": "[[1e999]]",
    "null": "[[null]]",
    "above 1": "[[7.5]]",
    "far above": "[[7.5e300]]",
    "below 0": "[[-0.25]]",
    "a boolean": "[[true]]",
    "a boolean among numbers": "[[0.5, true]]",
    "a string": '[["0.5"]]',
    "two studies": "[[0.5], [0.5]]",
    "no study": "[]",
    "no label": "[[]]",
    "one number": "0.5",
    "too deep": "[[[0.5]]]",
    "of two labels": "[[0.5, 0.5]]",
    "ragged": "[[0.5], [0.5, 0.5]]",
    "nested without end": "[" * 200_000,
}


@pytest.mark.parametrize("case", NO_PROBABILITIES)
def test_what_is_no_probability_is_an_error(server, case):
    client = ServingClient(server.address())
    client.describe()
    body = b'{"outputs": %s}' % NO_PROBABILITIES[case].encode()
    server.faults = [(200, body)]
    with pytest.raises(ServingError) as caught:
        client.predict(pictures(1))
    assert "\n" not in str(caught.value)
    assert not server.faults


@pytest.fixture(scope="module")
def class_server():
    recipe = recipe_of(NETWORK)
    served = ServingModel(
        members_of([model_of(recipe, outputs="ordered")], recipe),
        description_of("uint8", outputs="ordered"),
    )
    signatures = {name: ask.get_concrete_function() for name, ask in served.signatures.items()}
    with serving(with_grpc=True, signatures=signatures) as running:
        yield running


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_probabilities_of_classes(class_server, scheme):
    grpc_address = f"grpc://127.0.0.1:{class_server.grpc_port}/{NAME}"
    client = ServingClient(class_server.address() if scheme == "http" else grpc_address)
    description = client.describe()
    assert description == description_of("uint8", outputs="ordered")
    assert (description.labels, description.classes.column) == (CLASSES, COLUMN)
    answer = client.predict(pictures(5), running=True)
    assert answer.probability.shape == (3,)
    np.testing.assert_allclose(answer.probability.sum(), 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(answer.running.sum(axis=1), np.ones(5), rtol=0, atol=1e-6)
    np.testing.assert_allclose(answer.running[-1], answer.probability, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def covariate_server():
    recipe = recipe_of({**NETWORK, **WITH_COVARIATES})
    served = ServingModel(
        members_of([model_of(recipe)], recipe), description_of("uint8", covariates=COVARIATES)
    )
    signatures = {name: ask.get_concrete_function() for name, ask in served.signatures.items()}
    with serving(with_grpc=True, signatures=signatures) as running:
        running.model = served
        yield running


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("running", [True, False])
def test_covariates_are_given_by_name(covariate_server, scheme, running):
    grpc_address = f"grpc://127.0.0.1:{covariate_server.grpc_port}/{NAME}"
    client = ServingClient(covariate_server.address() if scheme == "http" else grpc_address)
    files = pictures(5)
    inputs = {"image_bytes": tf.constant([files]), "lengths": tf.constant([5])}
    ask = covariate_server.model.with_covariates
    for covariates, vector in [({"sex": "M", "age": 63}, [63, 1]), ({"age": 20}, [20, np.nan])]:
        given = ask(**inputs, covariates=tf.constant([np.float32(vector)]))
        answer = client.predict(files, running=running, covariates=covariates)
        np.testing.assert_allclose(answer.probability, given["probability"][0], atol=1e-5)
        if running:
            expected = given["running_probability"][0]
            np.testing.assert_allclose(answer.running, expected, atol=1e-5)
    missing = covariate_server.model.serving_default(**inputs)["probability"][0]
    assert abs(missing - given["probability"][0]).numpy().max() > 1e-3
    for none in ({}, None):
        answer = client.predict(files, running=running, covariates=none)
        np.testing.assert_allclose(answer.probability, missing, atol=1e-5)
    with pytest.raises(InputError, match=r"no covariate 'agee' \(did you mean age\?\)"):
        client.predict(files, covariates={"agee": 1})


def test_covariates_for_a_model_that_reads_none(client, server):
    before = server.seen
    with pytest.raises(InputError, match="reads no covariate 'age'; it reads none"):
        client.predict(pictures(1), covariates={"age": 63})
    assert server.seen == before + 1, "only to ask what the model is"


@pytest.mark.parametrize(
    ("probability", "running", "words"),
    [
        ("[[0.5, 0.5, 0.3]]", "[[[0.2, 0.5, 0.3]]]", "probability is 1.3 over all classes"),
        ("[[0.5, 0.2, 0.3]]", "[[[0.2, 0.2, 0.3]]]", "running_probability is 0.7 over all classes"),
        ("[[0.5, 0.5]]", "[[[0.5, 0.5]]]", "of 2 labels, the model has 3"),
    ],
)
def test_probabilities_of_classes_that_do_not_add_up_to_1(
    class_server, probability, running, words
):
    client = ServingClient(class_server.address())
    client.describe()
    body = f'{{"outputs": {{"probability": {probability}, "running_probability": {running}}}}}'
    class_server.faults = [(200, body.encode())]
    with pytest.raises(RequestRefused, match=words):
        client.predict(pictures(1), running=True)


@pytest.mark.parametrize(
    "running",
    ["[[0.5]]", "[[[0.5]]]", "[[[0.5], [NaN]]]", "[[[0.5], [1.5]]]", "[[[0.5, 0.5], [0.5, 0.5]]]"],
)
def test_nor_is_a_running_probability_of_another_shape(server, running):
    client = ServingClient(server.address())
    body = b'{"outputs": {"probability": [[0.5]], "running_probability": %s}}' % running.encode()
    server.faults = [(200, body)]
    with pytest.raises(ServingError):
        client.predict(pictures(2), running=True)


def response(outputs):
    """The bytes of TensorFlow Serving's own response of tensors."""
    from tensorflow_serving.apis import predict_pb2

    message = predict_pb2.PredictResponse()
    for name, tensor in outputs.items():
        message.outputs[name].CopyFrom(tensor)
    return message.SerializeToString()


@pytest.mark.parametrize(
    "values",
    [np.float32([[np.nan]]), np.float32([[7.5]]), np.float32([0.5]), [[b"0.5"]], np.float32([[]])],
)
def test_nor_by_grpc(server, monkeypatch, values):
    client = ServingClient(f"grpc://127.0.0.1:{server.grpc_port}/{NAME}")
    answer = response({"probability": tf.make_tensor_proto(values)})
    monkeypatch.setattr(client._ask, "_predict", lambda request, timeout: answer)
    with pytest.raises(ServingError):
        client.predict(pictures(1))


@pytest.mark.parametrize(
    "shape",
    [(2**14,), (2**14, 0), (1, 2**28), (1, 2**62, 2**62), (1, 0, 2**62), (-1,), (1,) * 9,
     (1,) * 99_999],
    ids=lambda shape: str(shape[:3]),
)  # fmt: skip
def test_a_tensor_that_claims_to_be_huge_costs_nothing(server, monkeypatch, shape):
    import tracemalloc

    client = ServingClient(f"grpc://127.0.0.1:{server.grpc_port}/{NAME}")
    tensor = tf.make_tensor_proto(np.float32([[0.5]]))
    tensor.ClearField("tensor_shape")
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    answer = response({"probability": tensor})
    monkeypatch.setattr(client._ask, "_predict", lambda request, timeout: answer)
    tracemalloc.start()
    with pytest.raises(ServingError):
        client.predict(pictures(1))
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()


class Dripping:
    """A server that answers a few bytes at a time, for as long as it is listened to."""

    def __init__(self, begin):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen()
        self.begin, self.dripped = begin, 0
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1/models/m"
        self.thread = threading.Thread(target=self.drip, daemon=True)
        self.thread.start()

    def drip(self):
        connection, _ = self.socket.accept()
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(self.begin)
                while self.dripped < 400:
                    connection.sendall(b" ")
                    self.dripped += 1
                    threading.Event().wait(0.05)
            except OSError:
                return

    def stop(self):
        self.socket.close()
        self.thread.join(30)


@pytest.mark.parametrize(
    "begin",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"],
    ids=["status", "header", "body"],
)
def test_a_server_that_drips_is_left_at_the_deadline(begin):
    server = Dripping(begin)
    try:
        with pytest.raises(ServingError, match=r"no answer within 0.5 s \(tried once\)"):
            ServingClient(server.address, seconds=0.5, attempts=1).predict([b"x"])
        assert server.dripped < 300
    finally:
        server.stop()


@pytest.mark.parametrize("status", [400, 404, 500])
def test_what_a_server_says_does_nothing_to_a_terminal(server, status):
    words = "\\u001b[2J\\u001b]0;owned\\u0007\\u202e no \\n second line"
    server.faults = [(status, b'{"error": "%s"}' % words.encode())]
    with pytest.raises(ServingError) as caught:
        ServingClient(server.address()).predict(pictures(1))
    assert str(caught.value).isprintable()
    assert r"\x1b[2J" in str(caught.value)
