"""What the tests of serving share: a small run, its export, and a server on the loopback.

The server speaks TensorFlow Serving's REST and gRPC interfaces and runs the SavedModel.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import json
import re
import shutil
import tempfile
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf
from small_run import run_small

from medseq_tf.dataset.prepare import prepare
from medseq_tf.runs.run import Run
from medseq_tf.serving.export import export

NAME = "lesion"


@functools.cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="medseq_tf_served_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def data() -> Path:
    out = folder() / "prepared"
    prepare("demo", out=out, patients=24, size=32, difficulty=0.0, workers=1, progress=False)
    return out


@functools.cache
def small_run() -> Run:
    return run_small(data(), folder() / "run", "fit.epochs=1")


@functools.cache
def exported():
    return export(small_run(), folder() / NAME, batching=True, warmup=True)


@functools.cache
def class_data() -> Path:
    """Three classes, with age and sex as covariates."""
    out = folder() / "prepared_classes"
    prepare(
        "demo", out=out, patients=24, size=32, difficulty=0.0, kind="classes", sites=2, workers=1,
        progress=False,
    )  # fmt: skip
    return out


@functools.cache
def class_run() -> Run:
    covariates = "model.covariates=[sex, age]"
    return run_small(class_data(), folder() / "class_run", "fit.epochs=1", covariates)


@functools.cache
def exported_classes():
    return export(class_run(), folder() / "classes", data=class_data(), warmup=True)


def pictures(count, seed=0, size=40, dtype=np.uint8, kind=".png"):
    """Files of smooth slices, each its own."""
    rng = np.random.default_rng(seed)
    largest = np.iinfo(dtype).max
    files = []
    for _ in range(count):
        image = cv2.GaussianBlur(rng.random((size, size + 3)), (0, 0), 3)
        image = (image - image.min()) / (image.max() - image.min()) * largest
        files.append(cv2.imencode(kind, image.astype(dtype))[1].tobytes())
    return files


class Server:
    """Predictions as a TensorFlow Serving that holds one model.

    Attributes:
        port: of REST.
        grpc_port: of gRPC, where it was asked for.
        seen: how many requests came.
        faults: (status, body) to answer with before anything else, one a request.
    """

    def __init__(self, signatures, with_grpc=False):
        self.signatures, self.seen, self.faults = signatures, 0, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                status, answer = server.rest(self.path, self.rfile, self.headers)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        self.grpc_server = self._grpc() if with_grpc else None

    def address(self, name=NAME):
        return f"http://127.0.0.1:{self.port}/v1/models/{name}"

    def stop(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
        if self.grpc_server:
            self.grpc_server.stop(0).wait()

    # ------------------------------------------------------------------------------------- REST

    def rest(self, path, file, headers):
        self.seen += 1
        body = file.read(int(headers["Content-Length"]))
        if self.faults:
            return self.faults.pop(0)
        match = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/\d+)?:predict", path)
        if not match:
            return 404, b'{"error": "Malformed request: POST ' + path.encode() + b'"}'
        if match.group(1) != NAME:
            return 404, _error(f"Servable not found for request: Latest({match.group(1)})")
        try:
            request = json.loads(body)
            signature = request.get("signature_name", "serving_default")
            if signature not in self.signatures:
                return 400, _error(f'Serving signature key "{signature}" not found.')
            if ("inputs" in request) == ("instances" in request):
                return 400, _error("Request has neither or both of 'inputs' and 'instances'")
            columns = request.get("inputs")
            if columns is None:
                rows = request["instances"]
                columns = {name: [row[name] for row in rows] for name in rows[0]}
            outputs = self.run(signature, {k: _from_json(v) for k, v in columns.items()})
        except tf.errors.OpError as error:
            return 400, _error(error.message)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            return 400, _error("JSON Value: the request is malformed")
        plain = {name: _to_json(value) for name, value in outputs.items()}
        if "instances" in request:
            keys = list(plain)
            rows = [dict(zip(keys, row, strict=True)) for row in zip(*plain.values(), strict=True)]
            return 200, json.dumps({"predictions": rows}).encode()
        only = plain if len(plain) > 1 else next(iter(plain.values()))
        return 200, json.dumps({"outputs": only}).encode()

    def run(self, signature, inputs):
        function = self.signatures[signature]
        in_order, by_name = function.structured_input_signature
        wanted = {**{spec.name: spec for spec in in_order}, **by_name}
        if inputs.keys() != wanted.keys():
            raise ValueError("wrong inputs")
        tensors = {}
        for name, spec in wanted.items():
            value = np.array(inputs[name], object if spec.dtype == tf.string else None)
            tensors[name] = tf.constant(value.tolist(), spec.dtype, shape=value.shape)
            if len(spec.shape) != len(value.shape):
                raise tf.errors.InvalidArgumentError(None, None, f"{name} has another rank")
        return {name: value.numpy() for name, value in function(**tensors).items()}

    # ------------------------------------------------------------------------------------- gRPC

    def _grpc(self):
        import grpc
        from tensorflow_serving.apis import predict_pb2
        from tensorflow_serving.apis import prediction_service_pb2_grpc as service

        class Servicer(service.PredictionServiceServicer):
            def Predict(servicer, request, context):  # noqa: N802, N805
                self.seen += 1
                not_found, wrong = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
                if request.model_spec.name != NAME:
                    context.abort(not_found, "Servable not found for request: Latest()")
                signature = request.model_spec.signature_name or "serving_default"
                if signature not in self.signatures:
                    context.abort(wrong, f'Serving signature key "{signature}" not found.')
                try:
                    inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
                    outputs = self.run(signature, inputs)
                except tf.errors.OpError as error:
                    context.abort(wrong, error.message)
                response = predict_pb2.PredictResponse()
                for name in request.output_filter or outputs:
                    response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
                return response

        server = grpc.server(futures.ThreadPoolExecutor(2))
        service.add_PredictionServiceServicer_to_server(Servicer(), server)
        self.grpc_port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return server


def _error(message):
    return json.dumps({"error": message}).encode()


def _from_json(value):
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [_from_json(item) for item in value] if isinstance(value, list) else value


def _to_json(array):
    if array.dtype == object:
        return np.vectorize(bytes.decode, otypes=[object])(array).tolist()
    return array.tolist()


@functools.cache
def loaded():
    return tf.saved_model.load(str(exported().path))


@contextlib.contextmanager
def serving(with_grpc=False, signatures=None):
    """A running server, stopped at the end."""
    server = Server(dict(signatures or loaded().signatures), with_grpc)
    try:
        yield server
    finally:
        server.stop()
