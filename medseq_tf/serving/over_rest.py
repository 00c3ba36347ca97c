"""A model behind TensorFlow Serving's REST interface, asked with the standard library alone."""

from __future__ import annotations

import base64
import dataclasses
import functools
import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, cast

from medseq_tf.errors import printable
from medseq_tf.serving.refusals import (
    NO_ACCESS,
    ServingError,
    TransientError,
    not_serving,
    refusal,
    too_large,
)

LARGEST_RESPONSE_BYTES = 64 * 2**20

_TRANSIENT_STATUSES = {408, 429, 502, 503, 504}


@dataclasses.dataclass(frozen=True)
class RestModel:
    """A served model, asked in TensorFlow Serving's columnar JSON.

    Attributes:
        address: what errors call it.
        scheme: `http` or `https`.
        host: name or address of the machine.
        port: None: the scheme's own.
        path: `/v1/models/NAME`, perhaps with a version.
        seconds: the longest that one request may take.
    """

    address: str
    scheme: str
    host: str
    port: int | None
    path: str
    seconds: float

    def __call__(
        self, signature: str, inputs: Mapping[str, Any], outputs: tuple[str, ...]
    ) -> Mapping[str, Any]:
        """Ask a signature for some outputs; a TransientError or ServingError says why not."""
        columns = {name: _plain(value) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        number, response = self._post(body)
        status = f"status {number}"
        if number in _TRANSIENT_STATUSES:
            raise TransientError(f"the server answers with {status}")
        try:
            values = json.loads(response)
        except (ValueError, RecursionError):
            values = None
        values = values if isinstance(values, dict) else {}
        if number == 200 and "outputs" in values:
            columns = values["outputs"]
            return columns if isinstance(columns, dict) else {outputs[0]: columns}
        if isinstance(values.get("error"), str):
            raise refusal(self.address, status, values["error"])
        if number >= 500 or status in NO_ACCESS:
            raise refusal(self.address, status, "")
        raise not_serving(self.address, f" ({status})")

    def _post(self, body: bytes) -> tuple[int, bytes]:
        try:
            connection = self._connect()
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", f"{self.path}:predict", body, headers)
                response = connection.getresponse()
                content = response.read(LARGEST_RESPONSE_BYTES + 1)
            finally:
                connection.close()
        except TimeoutError:
            raise TransientError(f"no answer within {self.seconds:g} s") from None
        except ssl.SSLError as error:
            reason = printable(error.reason or type(error).__name__)
            raise ServingError(f"{self.address}: no secure connection ({reason})") from None
        except socket.gaierror:
            raise ServingError(f"{self.address}: no machine of that name is known") from None
        except ConnectionRefusedError:
            raise TransientError("nobody listens there; is the server running?") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise TransientError(f"the connection broke ({reason})") from None
        if len(content) > LARGEST_RESPONSE_BYTES:
            raise too_large(self.address)
        return response.status, content

    def _connect(self) -> http.client.HTTPConnection:
        """Connect to the first of the machine's addresses that answers.

        `http.client`, and the libraries that stand on it, limit each step by itself: a server that
        drips would be listened to for ever. Here all steps share a deadline.
        """
        deadline = time.monotonic() + self.seconds
        connection: http.client.HTTPConnection
        if self._context is None:
            connection = http.client.HTTPConnection(self.host, self.port or http.client.HTTP_PORT)
        else:
            port = self.port or http.client.HTTPS_PORT
            connection = http.client.HTTPSConnection(self.host, port, context=self._context)
        refused = OSError("no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, connection.port, type=socket.SOCK_STREAM
        ):
            link = _TimedSocket(family, kind, protocol)
            try:
                link.end_by(deadline)
                link.connect(address)
                if self._context is not None:
                    link.end_by(deadline)  # for the handshake, which takes it over
                    secured = self._context.wrap_socket(link, server_hostname=self.host)
                    link = cast(_TimedSecureSocket, secured)
                    link.end_by(deadline)
            except TimeoutError:
                link.close()
                raise
            except OSError as error:
                link.close()
                refused = error
            else:
                connection.sock = link
                return connection
        raise refused

    @functools.cached_property
    def _context(self) -> ssl.SSLContext | None:
        if self.scheme == "http":
            return None
        context = ssl.create_default_context()
        context.sslsocket_class = _TimedSecureSocket
        return context


class _TimedSocket(socket.socket):
    """A socket of which all steps, however little each of them brings, share one deadline."""

    _deadline: float

    def end_by(self, deadline: float) -> None:
        """Limit the next step, and all that send or receive, to a moment of `time.monotonic`."""
        self._deadline = deadline
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)

    def send(self, *arguments: Any) -> int:
        """Send what can be sent in the time left."""
        self.end_by(self._deadline)
        return super().send(*arguments)

    def sendall(self, *arguments: Any) -> None:
        """Send all of it in the time left."""
        self.end_by(self._deadline)
        super().sendall(*arguments)

    def recv_into(self, *arguments: Any) -> int:
        """Receive what comes in the time left."""
        self.end_by(self._deadline)
        return super().recv_into(*arguments)


class _TimedSecureSocket(_TimedSocket, ssl.SSLSocket):
    """The same under TLS."""


def _plain(value: Any) -> Any:
    """Values as TensorFlow Serving's JSON has them: bytes in base64, in an object of their own."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return [_plain(item) for item in value] if isinstance(value, list) else value.tolist()
