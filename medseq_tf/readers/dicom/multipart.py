"""Messages of several parts (RFC 2046), as DICOMweb sends and takes DICOM files (PS3.18, 8.6.1)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence


class NotWhole(Exception):
    """A message that ends before its last boundary, or is none."""


def parts_of(body: bytes, boundary: str) -> list[bytes]:
    """Return the contents of a message's parts.

    Args:
        body: the message.
        boundary: what stands between its parts.

    Raises:
        NotWhole: it has no first or last boundary, or a part is shorter than it says.
    """
    line = b"--" + boundary.encode("latin-1")
    if not boundary or not (body.startswith(line) or b"\r\n" + line in body):
        raise NotWhole
    # Another line break, so that the first boundary looks like the others.
    _, *found = (b"\r\n" + body).split(b"\r\n" + line)
    *parts, end = found
    if not end.startswith(b"--") or end[2:].strip():
        raise NotWhole
    return [_content(part) for part in parts]


def _content(part: bytes) -> bytes:
    """What follows the headers of a part."""
    headers, is_there, content = part.partition(b"\r\n\r\n")
    if not is_there:
        raise NotWhole
    for header in headers.split(b"\r\n"):
        name, _, value = header.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip() != b"%d" % len(content):
            raise NotWhole
    return content


def message_of(files: Sequence[bytes]) -> tuple[bytes, str]:
    """Return a message of DICOM files and the boundary between them."""
    boundary = uuid.uuid4().hex
    start = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    parts = [start + file + b"\r\n" for file in files]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), boundary
