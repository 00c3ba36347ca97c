"""The header of a DICOM file as an archive tells it in JSON (PS3.18, annex F), without the file."""

from __future__ import annotations

from typing import Any

from medseq_tf.readers.dicom.elements import (
    EXPLICIT_LITTLE,
    UNKNOWN_LENGTH,
    Elements,
    PixelData,
    UnreadableDicom,
    keywords,
)
from medseq_tf.readers.dicom.encoding import UNCOMPRESSED
from medseq_tf.readers.dicom.header import DicomHeader, header_of

TRANSFER_SYNTAX = "00083002"
"""Of the file, where the archive tells it: one, or else those that it makes of the file, too."""

_ANY_BYTES = 2**62
_PIXELS, _FLOAT_PIXELS = ("7FE00010",), ("7FE00008", "7FE00009")


class JsonElements(Elements):
    """Elements of a data set in JSON, which has values where a file has bytes."""

    @classmethod
    def of_json(cls, item: Any) -> JsonElements:
        """Keep those that are read."""
        named = keywords()
        elements = item.items() if isinstance(item, dict) else ()
        return cls(
            {named[int(tag, 16)]: element for tag, element in elements if _number(tag) in named}
        )

    def raw(self, keyword: str) -> bytes:
        """The value as text, encoded."""
        return self.text(keyword).encode()

    def text(self, keyword: str) -> str:
        """The values, parted as in a file."""
        return "\\".join(map(_text, self._values(keyword))).strip(" \0")

    def decoded(self, keyword: str) -> str:
        """The same: JSON has one character set."""
        return self.text(keyword)

    def binary(self, keyword: str, form: str = "H", default: float = 0) -> Any:
        """The first number; 0 where there is none."""
        if keyword not in self:
            return default
        (value,) = self._values(keyword)[:1] or [0]
        return float(value) if form == "d" else int(value)

    def indices(self, keyword: str) -> tuple[int, ...]:
        """All numbers."""
        return tuple(map(int, self._values(keyword)))

    def sequence(self, keyword: str) -> list[Elements]:
        """The items of a sequence."""
        return [JsonElements.of_json(item) for item in self._values(keyword)]

    def _values(self, keyword: str) -> list[Any]:
        element = self.get(keyword)
        values = element.get("Value") if isinstance(element, dict) else None
        return values if isinstance(values, list) else []


def _number(tag: str) -> int:
    return int(tag, 16) if len(tag) == 8 and tag.isalnum() and tag.isascii() else -1


def _text(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def header_of_metadata(item: Any) -> tuple[DicomHeader | None, int]:
    """Return what an archive says of a file's pictures, and the bytes of these unpacked.

    The header is None for an object without a picture. It says nothing of where pixels lie in the
    file, and where the archive does not tell it, nothing of its transfer syntax.

    Args:
        item: the data set in JSON, of which nothing is believed.

    Raises:
        UnreadableDicom: it cannot be used, or declares a picture that is too large.
    """
    try:
        elements = JsonElements.of_json(item)
        syntaxes = item.get(TRANSFER_SYNTAX, {}).get("Value") or []
        syntax = str(syntaxes[0]) if len(syntaxes) == 1 else EXPLICIT_LITTLE
        elements["TransferSyntaxUID"] = {"Value": [syntax]}
        has_pixels = any(tag in item for tag in _PIXELS) or elements.binary("Rows")
        is_float = any(tag in item for tag in _FLOAT_PIXELS)
        length = _ANY_BYTES if syntax in UNCOMPRESSED else UNKNOWN_LENGTH
        pixels = PixelData(0, length, is_float=is_float) if has_pixels or is_float else None
        header = header_of(elements, pixels, _ANY_BYTES)
        allocated = int(elements.binary("BitsAllocated", default=16))
    except UnreadableDicom:
        raise
    except Exception:  # whatever odd values make of what reads files
        raise UnreadableDicom("damaged metadata") from None
    if header is None:
        return None, 0
    voxels = header.rows * header.columns * len(header.frames) * header.samples
    return header, int(voxels * max(allocated, 8) // 8)
