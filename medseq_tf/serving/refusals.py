"""The errors of a served model, and what a server or TensorFlow says, in a person's words."""

from __future__ import annotations

import re

from medseq_tf.errors import InputError, printable

SHORTEN_TO = 300

NO_ACCESS = {"status 401", "status 403", "UNAUTHENTICATED", "PERMISSION_DENIED"}

_BAD_REQUEST = {"status 400", "INVALID_ARGUMENT"}
_DAMAGED = re.compile(
    r"jpeg::Uncompress|Invalid (JPEG|PNG)|Error reading PNG|libpng", re.IGNORECASE
)


class ServingError(InputError):
    """The server cannot be used: away, closed, failing, of another kind, or without this model."""


class RequestRefused(ServingError):
    """The server is there and the model says no to this study; the message says why."""


class TransientError(Exception):
    """Something that may be over in a moment."""


def readable(message: str) -> str:
    """Return what a TensorFlow error says: the model's own words, or its first line."""
    own_words = re.search(r"assertion failed: \[(.*)\]", message)
    if own_words:
        return _short(own_words.group(1).strip("'\""))
    if _DAMAGED.search(message):
        return "a slice cannot be decoded: damaged or cut short"
    return _short(message.strip().splitlines()[0] if message.strip() else "no reason given")


def _short(message: str) -> str:
    message = printable(message)
    return message if len(message) <= SHORTEN_TO else message[: SHORTEN_TO - 3] + "..."


def refusal(address: str, status: str, message: str) -> ServingError:
    """Return the error for what a server says: no such model, one that is too old, a bad request.

    Only a bad request is about the study; anything else it would say of the next study as well.
    """
    if re.match(r"serving signature (key|name).*not found", message, re.IGNORECASE):
        return other_version(address)
    if re.match(r"servable not found|model .*not found|could not find", message, re.IGNORECASE):
        return ServingError(f"{address}: the server has no such model ({readable(message)})")
    if status in _BAD_REQUEST:
        return RequestRefused(readable(message))
    if status in NO_ACCESS:
        return ServingError(f"{address}: the server gives no access ({status})")
    return ServingError(f"{address}: the server fails with {status} ({readable(message)})")


def other_version(address: str, detail: str = "") -> ServingError:
    """Return the error for a model that does not give what this package's exports give."""
    return ServingError(
        f"{address}: the model there was not exported by this version of medseq_tf; export the run "
        f"again, and serve that{detail}"
    )


def not_serving(address: str, detail: str = "") -> ServingError:
    """Return the error for something that does not speak TensorFlow Serving's protocol."""
    return ServingError(f"{address}: what answers there{detail} is not TensorFlow Serving")


def too_large(address: str) -> ServingError:
    """Return the error for more bytes than any model sends."""
    return ServingError(f"{address}: the answer is larger than any model's")
