"""Takes the address of a TensorFlow Serving model and a study's slices; gives their probabilities.

    http://host:8501/v1/models/NAME            REST, with nothing but the standard library
    http://host:8501/v1/models/NAME/versions/2
    grpc://host:8500/NAME                      where the package grpcio is installed

No TensorFlow is needed here. Slices are the bytes of JPEG or PNG files, in scan order.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import io
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from medseq_tf.errors import InputError, printable
from medseq_tf.serving.wire import (
    Array,
    Description,
    decode_predict_response,
    encode_predict_request,
)

SECONDS = 60.0
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5
"""Before the second attempt; twice as long before each one after it."""

LARGEST_ANSWER_BYTES = 64 * 2**20
SHORTEN_TO = 300

_TRANSIENT_STATUSES = {408, 429, 502, 503, 504}
_TRANSIENT_CODES = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
_BAD_REQUEST = {"status 400", "INVALID_ARGUMENT"}
_NO_ACCESS = {"status 401", "status 403", "UNAUTHENTICATED", "PERMISSION_DENIED"}
_TOO_LARGE = re.compile(r"received message.*larger than max", re.IGNORECASE)
_DAMAGED = re.compile(
    r"jpeg::Uncompress|Invalid (JPEG|PNG)|Error reading PNG|libpng", re.IGNORECASE
)


class ServingError(InputError):
    """The server cannot be used: away, closed, failing, of another kind, or without this model."""


class RequestRefused(ServingError):
    """The server is there and the model says no to this study; the message says why."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says of a study.

    Attributes:
        probability: float32 (labels,).
        running: float32 (T, labels): after each slice; None where it was not asked for.
    """

    probability: np.ndarray
    running: np.ndarray | None = None


def check_answer(answer: Answer, slices: int, labels: int | None = None) -> Answer:
    """Return an answer as it is, if it is one: a probability for every label.

    Args:
        answer: what a model said of one study.
        slices: of the study.
        labels: how many the model has; None where that is not known.

    Raises:
        RequestRefused: if a value is no number from 0 to 1, or the shape is another.
    """
    wanted = {"probability": (labels,), "running_probability": (slices, labels)}
    given = {"probability": answer.probability, "running_probability": answer.running}
    for name, values in given.items():
        if values is None and name == "running_probability":
            continue
        values = np.asarray(values)
        if values.dtype.kind != "f" or values.ndim != len(wanted[name]) or not values.size:
            raise RequestRefused(f"the model's {name} is no table of numbers of one study")
        if labels is not None and values.shape[-1] != labels:
            labelled = f"{values.shape[-1]} labels, the model has {labels}"
            raise RequestRefused(f"the model's {name} is of {labelled}")
        if values.ndim == 2 and len(values) < slices:
            steps = f"{len(values)} slices, the study has {slices}"
            raise RequestRefused(f"the model's {name} is of {steps}")
        values = values if values.ndim == 1 else values[:slices]
        wrong = values[~((values >= 0) & (values <= 1))]  # NaN is neither
        if wrong.size:
            raise RequestRefused(
                f"the model's {name} is {wrong.flat[0]:g}, which is no probability: a number from "
                "0 to 1"
            )
    if answer.running is not None and answer.running.shape[-1] != answer.probability.shape[-1]:
        raise RequestRefused("the model's probability and running_probability differ in labels")
    return answer


class ServingClient:
    """Asks a served model, one study at a time; may be shared by threads.

    What is transient (nobody listens yet, a connection that breaks, a time-out, a server that is
    overloaded or starting) is tried again, waiting ever longer; a request that the server refuses
    is not.

    Args:
        address: see the module.
        seconds: the longest that one attempt may take, from the first word to the last byte of the
            answer, however slowly it drips; the look-up of the machine's name is the system's.
        attempts: in all.

    Raises:
        InputError: if the address is none.
    """

    def __init__(self, address: str, seconds: float = SECONDS, attempts: int = ATTEMPTS):
        if seconds <= 0 or attempts < 1:
            raise InputError(f"seconds={seconds}, attempts={attempts}: more than 0 is needed")
        self.address = address
        self.seconds = seconds
        self.attempts = attempts
        self._labels: int | None = None
        self._ask = _connection(address, seconds)

    def describe(self) -> Description:
        """What the model says of itself: labels, thresholds, how its slices are stored.

        Raises:
            ServingError: if the server is away, or serves another kind of model.
        """
        outputs = self._call("describe", {"question": [b""]}, ("description",))
        try:
            (text,) = np.ravel(outputs["description"]).tolist()
            description = Description.from_json(text)
        except (KeyError, ValueError, TypeError, RecursionError):
            raise ServingError(_other_version(self.address)) from None
        self._labels = len(description.labels)
        return description

    def predict(self, slices: Sequence[bytes], running: bool = False) -> Answer:
        """Asks about one study.

        Args:
            slices: the bytes of its JPEG or PNG files, in scan order.
            running: also ask for the probability after each slice.

        Raises:
            RequestRefused: if the server refuses the study, or its answer is no probability; the
                message says why.
            ServingError: if the server is away, or serves another kind of model.
        """
        slices = list(slices)
        if not slices:
            raise RequestRefused("the study has no slices")
        refuse_cmyk(slices)
        inputs = {"image_bytes": [slices], "lengths": np.int32([len(slices)])}
        wanted = ("probability", "running_probability") if running else ("probability",)
        outputs = self._call("serving_default" if running else "probability", inputs, wanted)
        if not all(name in outputs for name in wanted):
            raise ServingError(_other_version(self.address))
        try:
            values = [_of_one_study(outputs[name]) for name in wanted]
        except (ValueError, RecursionError, OverflowError):
            raise ServingError(
                f"{_other_version(self.address)} (the answer is no table of numbers of one study)"
            ) from None
        answer = Answer(values[0], values[1] if running else None)
        return check_answer(answer, len(slices), self._labels)

    def _call(
        self, signature: str, inputs: Mapping[str, Array], outputs: tuple[str, ...]
    ) -> Mapping[str, Any]:
        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, self.attempts + 1):
            try:
                return self._ask(signature, inputs, outputs)
            except _Transient as error:
                if attempt == self.attempts:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise ServingError(f"{self.address}: {error} (tried {times})") from None
            time.sleep(wait)
            wait *= 2
        raise AssertionError("the loop returns or raises")


class _Transient(Exception):
    """Something that may be over in a moment."""


_Ask = Callable[[str, Mapping[str, Array], tuple[str, ...]], Mapping[str, Any]]


def refuse_cmyk(slices: Sequence[bytes]) -> None:
    """Refuses a JPEG file of four colours, of which the model would say that it is damaged.

    Args:
        slices: the bytes of picture files.

    Raises:
        RequestRefused: if there is one.
    """
    for number, file in enumerate(slices):
        if file.startswith(b"\xff\xd8") and _jpeg_components(file) == 4:
            raise RequestRefused(f"a CMYK JPEG is not read (slice {number})")


def _jpeg_components(file: bytes) -> int | None:
    """Colours a pixel, from the first start-of-frame segment (ITU-T T.81, B.2.2)."""
    place = 2
    while place + 9 < len(file) and file[place] == 0xFF:
        marker = file[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return file[place + 9]
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    return None


def refuse_credentials(address: str) -> None:
    """Refuses an address with a name or password in it, and does not repeat them.

    Raises:
        InputError: if there are any.
    """
    without = re.sub(r"(?<=://).*@|^[^/@]+:[^/@]+@", "", address, flags=re.DOTALL)
    if without != address:
        raise InputError(
            f"{without}: was given with a name or password before the @, which no request carries; "
            "leave them out"
        )


def _of_one_study(given: Any) -> np.ndarray:
    """The numbers that a server gives of the one study that was asked about.

    Raises:
        ValueError: if it gives others, or no numbers.
    """
    if not isinstance(given, np.ndarray) and not _are_numbers(given):
        raise ValueError("not numbers alone")
    values = np.asarray(given)
    if values.dtype.kind not in "fiu" or values.ndim < 2 or len(values) != 1:
        raise ValueError("not of one study")
    with np.errstate(over="ignore"):  # infinite, and refused for that
        return values[0].astype(np.float32)


def _are_numbers(values: Any) -> bool:
    """Whether nested lists hold numbers alone; true, false and null are none."""
    if isinstance(values, list):
        return all(map(_are_numbers, values))
    return isinstance(values, (int, float)) and not isinstance(values, bool)


def _connection(address: str, seconds: float) -> _Ask:
    refuse_credentials(address)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    path = parts.path.strip("/")
    if parts.scheme in ("http", "https") and host:
        rest = re.fullmatch(r"v1/models/[^/:]+(/(versions/\d+|labels/[^/:]+))?", path)
        if rest:
            return _Rest(address, parts.scheme, host, port, f"/{quote(path)}", seconds)
    if parts.scheme == "grpc" and host and port and re.fullmatch(r"[^/:]+", path):
        return _Grpc(address, f"{host}:{port}", path, seconds)
    raise InputError(
        f"{address}: is no address of a served model; right would be "
        "http://host:8501/v1/models/NAME or grpc://host:8500/NAME"
    )


def readable(message: str) -> str:
    """What a TensorFlow error says to a person: the model's own words, or its first line."""
    said = re.search(r"assertion failed: \[(.*)\]", message)
    if said:
        return _short(said.group(1).strip("'\""))
    if _DAMAGED.search(message):
        return "a slice cannot be decoded: damaged or cut short"
    return _short(message.strip().splitlines()[0] if message.strip() else "no reason given")


def _short(message: str) -> str:
    message = printable(message)
    return message if len(message) <= SHORTEN_TO else message[: SHORTEN_TO - 3] + "..."


def _refusal(address: str, status: str, message: str) -> ServingError:
    """The error for what a server says: no such model, one that is too old, a bad request...

    Only a bad request is about the study; anything else it would say of the next study as well.
    """
    if re.match(r"serving signature (key|name).*not found", message, re.IGNORECASE):
        return ServingError(_other_version(address))
    if re.match(r"servable not found|model .*not found|could not find", message, re.IGNORECASE):
        return ServingError(f"{address}: the server has no such model ({readable(message)})")
    if status in _BAD_REQUEST:
        return RequestRefused(readable(message))
    if status in _NO_ACCESS:
        return ServingError(f"{address}: the server gives no access ({status})")
    return ServingError(f"{address}: the server fails with {status} ({readable(message)})")


def _other_version(address: str) -> str:
    return (
        f"{address}: the model there was not exported by this version of medseq_tf; export the run "
        "again, and serve that"
    )


# ------------------------------------------------------------------------------------------ REST


@dataclasses.dataclass(frozen=True)
class _Rest:
    """TensorFlow Serving's REST interface, in its columnar format."""

    address: str
    scheme: str
    host: str
    port: int | None
    path: str
    seconds: float

    def __call__(
        self, signature: str, inputs: Mapping[str, Array], outputs: tuple[str, ...]
    ) -> Mapping[str, Any]:
        columns = {name: _plain(value) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        status, answer = self._post(body)
        if status in _TRANSIENT_STATUSES:
            raise _Transient(f"the server answers with status {status}")
        try:
            values = json.loads(answer)
        except (ValueError, RecursionError):
            values = None
        if status == 200 and isinstance(values, dict) and "outputs" in values:
            given = values["outputs"]
            return given if isinstance(given, dict) else {outputs[0]: given}
        if isinstance(values, dict) and isinstance(values.get("error"), str):
            raise _refusal(self.address, f"status {status}", values["error"])
        if status >= 500 or f"status {status}" in _NO_ACCESS:
            raise _refusal(self.address, f"status {status}", "")
        raise ServingError(
            f"{self.address}: what answers there (status {status}) is not TensorFlow Serving"
        )

    def _post(self, body: bytes) -> tuple[int, bytes]:
        deadline = _Deadline(self.seconds)
        connection = _Connection(self.scheme, self.host, self.port, deadline)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"{self.path}:predict", body, headers)
            response = connection.getresponse()
            answer = response.read(LARGEST_ANSWER_BYTES + 1)
        except TimeoutError:
            raise _Transient(f"no answer within {self.seconds:g} s") from None
        except ssl.SSLError as error:
            reason = printable(error.reason or type(error).__name__)
            raise ServingError(f"{self.address}: no secure connection ({reason})") from None
        except socket.gaierror:
            raise ServingError(f"{self.address}: no machine of that name is known") from None
        except ConnectionRefusedError:
            raise _Transient("nobody listens there; is the server running?") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise _Transient(f"the connection broke ({reason})") from None
        finally:
            connection.close()
        if len(answer) > LARGEST_ANSWER_BYTES:
            raise ServingError(f"{self.address}: the answer is larger than any model's")
        return response.status, answer


class _Deadline:
    """A moment after which nothing is waited for."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def limit(self, connection: socket.socket) -> None:
        """Let the next step of a connection take what time is left.

        Raises:
            TimeoutError: if none is.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)


class _Connection(http.client.HTTPConnection):
    """A connection of which every step, from the first word to the last byte, has one deadline."""

    def __init__(self, scheme: str, host: str, port: int | None, deadline: _Deadline):
        self.default_port = {"http": 80, "https": 443}[scheme]
        super().__init__(host, port)
        self._deadline = deadline
        self._context = ssl.create_default_context() if scheme == "https" else None

    def connect(self) -> None:
        """Connect to the first of the machine's addresses that answers."""
        refused: OSError = OSError("no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            connection = socket.socket(family, kind, protocol)
            try:
                self._deadline.limit(connection)
                connection.connect(address)
                if self._context is not None:
                    connection = self._context.wrap_socket(
                        connection, server_hostname=self.host, do_handshake_on_connect=False
                    )
                    self._deadline.limit(connection)
                    connection.do_handshake()
            except TimeoutError:
                connection.close()
                raise
            except OSError as error:
                connection.close()
                refused = error
            else:
                self.sock = _Timed(connection, self._deadline)
                return
        raise refused


class _Timed:
    """What `http.client` asks of a socket, within a deadline."""

    def __init__(self, connection: socket.socket, deadline: _Deadline):
        self._connection, self._deadline = connection, deadline

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        view = memoryview(data)
        while view:
            self._deadline.limit(self._connection)
            view = view[self._connection.send(view) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """The answer as a file; the socket stays open until that is closed."""
        received = self._connection.makefile(mode, buffering=0)
        return io.BufferedReader(_Received(received, self._connection, self._deadline))

    def close(self) -> None:
        """Hang up, once the answer is read."""
        self._connection.close()


class _Received(io.RawIOBase):
    """The bytes that come in, within a deadline."""

    def __init__(self, received: Any, connection: socket.socket, deadline: _Deadline):
        super().__init__()
        self._received, self._connection, self._deadline = received, connection, deadline

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what is there, waiting no longer than the deadline."""
        self._deadline.limit(self._connection)
        return self._received.readinto(buffer)

    def close(self) -> None:
        """Let go of the socket."""
        self._received.close()
        super().close()


def _plain(value: Any) -> Any:
    """Values as TensorFlow Serving's JSON has them: bytes in base64, in an object of their own."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return [_plain(item) for item in value] if isinstance(value, list) else value.tolist()


# ------------------------------------------------------------------------------------------ gRPC


class _Grpc:
    """TensorFlow Serving's `PredictionService.Predict`."""

    METHOD = "/tensorflow.serving.PredictionService/Predict"

    def __init__(self, address: str, target: str, model: str, seconds: float):
        try:
            import grpc
        except ImportError:
            raise InputError(
                f"{address}: gRPC needs the package grpcio (pip install grpcio); or use the REST "
                "address, http://host:8501/v1/models/NAME"
            ) from None
        self.address, self.model, self.seconds = address, model, seconds
        sizes = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", LARGEST_ANSWER_BYTES),
        ]
        self._error = grpc.RpcError
        self._channel = grpc.insecure_channel(target, sizes)
        self._predict = self._channel.unary_unary(self.METHOD)

    def __call__(
        self, signature: str, inputs: Mapping[str, Array], outputs: tuple[str, ...]
    ) -> Mapping[str, Any]:
        request = encode_predict_request(self.model, inputs, signature, outputs)
        try:
            return decode_predict_response(self._predict(request, timeout=self.seconds))
        except ValueError:
            raise ServingError(
                f"{self.address}: what answers there is not TensorFlow Serving"
            ) from None
        except self._error as error:
            code, details = error.code().name, error.details() or ""
            if _TOO_LARGE.search(details):
                raise ServingError(f"{self.address}: the answer is larger than any model's") from (
                    None
                )
            if code in _TRANSIENT_CODES:
                reason = "nobody answers there" if code == "UNAVAILABLE" else code.lower()
                raise _Transient(f"{reason} ({readable(details)})") from None
            if code == "UNIMPLEMENTED":
                raise ServingError(
                    f"{self.address}: what answers there is not TensorFlow Serving"
                ) from None
            raise _refusal(self.address, code, details) from None
