"""A connection to a web server that holds patients' images: what it answers, within bounds.

Credentials come from the environment, or else from the netrc file, and are sent to that server
alone:

    MEDSEQ_TF_DICOMWEB_TOKEN                    a bearer token
    MEDSEQ_TF_DICOMWEB_TOKEN_FILE               a file that holds it, read for each request: for a
                                                token that another program renews
    MEDSEQ_TF_DICOMWEB_USER, _PASSWORD          a name and its password
    MEDSEQ_TF_DICOMWEB_CERT, _KEY               files: a client certificate, and its key
    MEDSEQ_TF_DICOMWEB_CA                       a file: the authorities that are trusted

A request that fails is sent again, with pauses, as long as a busy server asks for. An answer is
read as far as its bound and no longer than `LONGEST_ANSWER` seconds. A redirection to another
server is refused. What the libraries log would tell who was asked for, and is not passed on.
"""

from __future__ import annotations

import contextlib
import email.message
import logging
import os
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from medseq_tf.errors import InputError
from medseq_tf.readers.storage import NotThere, StorageError, TryLater, tried

if TYPE_CHECKING:
    import requests

Result = TypeVar("Result")

AT_A_TIME = 8
"""Requests."""
LONGEST_ANSWER = 600.0
"""Seconds that an answer may take as a whole, however steadily it comes."""
MOST_REDIRECTIONS = 3
BUSY_SECONDS = 20.0
"""Pause where a server has been asked too often, and does not say for how long."""
LONGEST_PAUSE = 30.0
"""Seconds, whatever a server asks for."""

_VARIABLE = "MEDSEQ_TF_DICOMWEB_"
_CHUNK_BYTES = 2**18
_PORTS = {"https": 443, "http": 80}
_TOO_MANY = 429
_TRY_LATER = (408, 425, _TOO_MANY)
_LOGS = ("connection", "connectionpool", "response", "util.retry")
_asking = threading.local()


class Denied(StorageError):
    """The server knows who asks, or not, and gives nothing."""


class BadAnswer(StorageError):
    """The server answers what cannot be used, and would again."""


class ServerFailure(TryLater):
    """The server fails; it may not, soon.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, retry_after: str):
        super().__init__(f"status {status}")
        self.status = status
        pause = BUSY_SECONDS if status == _TOO_MANY else 0.0
        if retry_after.isascii() and retry_after.isdecimal():
            pause = float(retry_after)
        self.pause = min(pause, LONGEST_PAUSE)


class NoToken(Exception):
    """There is no token that can be sent; there may be, soon."""


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        status: of HTTP.
        kind: media type, in lower case.
        parameters: of the media type, such as its boundary.
        body: the bytes.
    """

    status: int
    kind: str
    parameters: Mapping[str, str]
    body: bytes


class Sent(NamedTuple):
    """A message that is sent, and its media type."""

    body: bytes
    kind: str


class Connection:
    """A server and who asks it; threads may share one, processes may not."""

    def __init__(self, url: str, insecure_tls: bool, seconds: float):
        """Look for credentials; nothing is asked yet.

        Args:
            url: checked, see `storage.checked_url`.
            insecure_tls: whether any certificate of the server will do.
            seconds: that it may be silent.

        Raises:
            InputError: the environment's credentials cannot be used.
        """
        self.url = url
        self._seconds = seconds
        self._verify: bool | str = _authorities() or True
        if insecure_tls:
            import urllib3

            self._verify = False
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._session = _session(url)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: it holds credentials."""
        raise TypeError("a connection holds credentials and stays in its process")

    def close(self) -> None:
        """Close what is open."""
        self._session.close()

    def ask(
        self,
        read: Callable[[Answer], Result],
        path: str,
        accept: str,
        most_bytes: int,
        parameters: Sequence[tuple[str, str]] = (),
        sent: Sent | None = None,
    ) -> Result:
        """Send a request and return what is read of the answer.

        Args:
            read: makes a result of an answer; what it raises beside a StorageError is a reason to
                ask again.
            path: below the URL.
            accept: media types.
            most_bytes: of the answer.
            parameters: of the query.
            sent: what is sent to be stored.

        Raises:
            InputError: the server's certificate is not trusted.
            NotThere: there is nothing at that path.
            Denied: the credentials do not do.
            StorageError: no answer, or none that is whole and within its bounds.
        """
        url = f"{self.url}/{path}"
        if parameters:
            url += "?" + urllib.parse.urlencode(
                parameters, safe="*,:?", quote_via=urllib.parse.quote
            )
        headers = {"Accept": accept, **({"Content-Type": sent.kind} if sent else {})}
        return tried(lambda: read(self._asked(url, headers, most_bytes, sent)))

    def _asked(
        self, url: str, headers: dict[str, str], most_bytes: int, sent: Sent | None
    ) -> Answer:
        deadline = time.monotonic() + LONGEST_ANSWER
        for _ in range(MOST_REDIRECTIONS + 1):
            with self._response(url, headers, sent) as response:
                if not response.is_redirect:
                    return _answer(response, most_bytes, deadline)
                url = self._redirected(url, response.headers.get("Location", ""))
        raise BadAnswer("it redirects in circles")

    @contextlib.contextmanager
    def _response(
        self, url: str, headers: dict[str, str], sent: Sent | None
    ) -> Iterator[requests.Response]:
        _asking.now = True
        try:
            with self._session.request(
                "POST" if sent else "GET",
                url,
                headers=headers,
                data=sent.body if sent else None,
                stream=True,
                timeout=self._seconds,
                allow_redirects=False,
                verify=self._verify,
            ) as response:
                yield response
        except Exception as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise InputError(
                    f"{self.url}: its TLS certificate is not trusted; {_VARIABLE}CA may name a "
                    "file of the authority that signed it, or insecure_tls (--insecure-tls) do "
                    "without"
                ) from None
            raise
        finally:
            _asking.now = False

    def _redirected(self, url: str, location: str) -> str:
        """Where a redirection leads, if that is the same server."""
        target = urllib.parse.urljoin(url, location)
        if _server(target) != _server(url):
            raise BadAnswer("it redirects to another server, which is not followed")
        return target


def _server(url: str) -> tuple[str | int | None, ...]:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme)
    return parts.scheme, parts.hostname, port, parts.username, parts.password


def _answer(response: requests.Response, most_bytes: int, deadline: float) -> Answer:
    status = response.status_code
    if status in (401, 403):
        raise Denied("access is denied to the credentials of the environment")
    if status in (404, 410):
        raise NotThere("it is not there")
    if status >= 500 or status in _TRY_LATER:
        raise ServerFailure(status, response.headers.get("Retry-After", "").strip())
    message = email.message.Message()
    message["Content-Type"] = response.headers.get("Content-Type", "")
    parameters = {str(name): str(value) for name, value in message.get_params(failobj=[])[1:]}
    body = _body(response, most_bytes, deadline)
    return Answer(status, message.get_content_type(), parameters, body)


def _body(response: requests.Response, most_bytes: int, deadline: float) -> bytes:
    too_large = BadAnswer(f"an answer of more than {most_bytes} bytes, which it cannot need")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise too_large
    body = bytearray()
    while data := response.raw.read1(_CHUNK_BYTES, decode_content=True):
        body += data
        if len(body) > most_bytes:
            raise too_large
        if time.monotonic() > deadline:
            raise BadAnswer(f"an answer takes more than {LONGEST_ANSWER:g} seconds")
    return bytes(body)


# ------------------------------------------------------------------------------------- who asks


def _session(url: str) -> requests.Session:
    import requests

    for name in _LOGS:
        logging.getLogger(f"urllib3.{name}").addFilter(_is_of_others)
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=AT_A_TIME)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    session.headers["User-Agent"] = "medseq_tf"
    session.auth = _authentication(url)
    session.cert = _certificate()
    return session


def _certificate() -> str | tuple[str, str]:
    """The client's certificate, or that and its key; "" for none."""
    certificate, key = _file("CERT"), _file("KEY")
    if key and not certificate:
        raise InputError(f"{_VARIABLE}KEY is set and {_VARIABLE}CERT is not; set both")
    if not certificate:
        return ""
    try:  # a password, so that none is asked for
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key or None, "")
    except (OSError, ValueError):
        raise InputError(
            f"{_VARIABLE}CERT and _KEY are no certificate in PEM and its key, without a password"
        ) from None
    return (certificate, key) if key else certificate


def _authorities() -> str:
    """The file of the authorities that are trusted; "" for those of the system."""
    path = _file("CA")
    try:
        if path:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:
        raise InputError(f"{_VARIABLE}CA names a file that holds no certificate in PEM") from None
    return path


def _is_of_others(record: logging.LogRecord) -> bool:
    return not getattr(_asking, "now", False)


def _authentication(url: str) -> Callable[[Any], Any]:
    """What gives a request its credentials, or none."""
    import requests

    token, file = os.environ.get(f"{_VARIABLE}TOKEN", "").strip(), _file("TOKEN_FILE")
    user = os.environ.get(f"{_VARIABLE}USER")
    password = os.environ.get(f"{_VARIABLE}PASSWORD")
    is_given = {"TOKEN": bool(token), "TOKEN_FILE": bool(file), "USER": user is not None}
    given = [f"{_VARIABLE}{name}" for name, is_set in is_given.items() if is_set]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} are both set; set one of them")
    if (user is None) != (password is None):
        raise InputError(f"of {_VARIABLE}USER and {_VARIABLE}PASSWORD one is set; set both")
    if token or file:
        try:
            _token(token, file)
        except NoToken:
            raise InputError(f"{given[0]} holds characters that no token has, or none") from None
        return lambda request: _with_header(request, f"Bearer {_token(token, file)}")
    pair = (user, password) if user is not None else requests.utils.get_netrc_auth(url)
    if pair:
        name, secret = (str(value).encode() for value in pair)
        return requests.auth.HTTPBasicAuth(name, secret)
    return lambda request: request


def _token(token: str, file: str) -> str:
    """The token, or what the file holds by now."""
    try:
        token = Path(file).read_text("ascii").strip() if file else token
    except (OSError, ValueError):
        raise NoToken from None
    if not token or not token.isascii() or not token.isprintable():
        raise NoToken
    return token


def _with_header(request: Any, value: str) -> Any:
    request.headers["Authorization"] = value
    return request


def _file(name: str) -> str:
    """The path of a file that the environment names; "" for none."""
    path = os.environ.get(f"{_VARIABLE}{name}", "")
    if path and not Path(path).is_file():
        raise InputError(f"{_VARIABLE}{name} names a file that is not there")
    return path
