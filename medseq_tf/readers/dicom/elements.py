"""The elements of a DICOM file up to its pixel data, as pydicom parses them.

What a hostile file can do is bounded here: how much of it is read, unpacked and parsed. What
pydicom logs and warns of quotes the file, which may name a patient, and is kept from the user's
log. Values are given as they lie in the file, and are made texts and numbers one by one. pydicom is
imported when the first file is read, which takes it a tenth of a second.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from medseq_tf.readers.storage import START_BYTES

if TYPE_CHECKING:
    import numpy as np
    from pydicom.dataset import Dataset as Dataset

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
UNKNOWN_LENGTH = 0xFFFFFFFF

_KEYWORDS = (
    "MediaStorageSOPClassUID", "TransferSyntaxUID", "SpecificCharacterSet", "ImageType",
    "SOPClassUID", "SOPInstanceUID", "AccessionNumber", "Modality", "SeriesDescription",
    "PatientID", "Manufacturer", "ComplexImageComponent", "EchoTime", "EffectiveEchoTime",
    "MREchoSequence",
    "DiffusionBValue", "MRDiffusionSequence", "MRImageFrameTypeSequence", "StudyInstanceUID",
    "SeriesInstanceUID", "SeriesNumber", "AcquisitionNumber", "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "TemporalPositionIdentifier",
    "FrameContentSequence", "PlanePositionSequence", "PlaneOrientationSequence",
    "TemporalPositionIndex", "DimensionIndexValues", "ConcatenationUID", "InConcatenationNumber",
    "InConcatenationTotalNumber", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames",
    "Rows", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "BurnedInAnnotation",
    "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence",
    "PixelMeasuresSequence", "PixelValueTransformationSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
"""The elements that are read, as the standard calls them."""

_READ_FIRST = (START_BYTES, 2 * 2**20, 128 * 2**20)
_MOST_UNPACKED, _UNPACKED_PER_BYTE = 32 * 2**20, 32
_MOST_READS = 2**21
"""Of a header: an element takes two or three, an item of a sequence five and a kilobyte."""
_MOST_INDICES = 32
_PIXEL_GROUP, _FIRST_PIXELS, _PIXEL_DATA = 0x7FE0, 0x7FE00008, 0x7FE00010
"""Pixels in floating point come first."""
_lock = threading.RLock()


class NotDicom(ValueError):
    """A file of another kind."""


class UnreadableDicom(ValueError):
    """A DICOM file that cannot be used; the message is the reason."""


class PixelData(NamedTuple):
    """Where the pixels lie.

    Attributes:
        start: of the element's value, once the data set is unpacked.
        length: of it in bytes, as stated.
        kind: its value representation; "" where the data set states none.
        is_float: whether these are pixels in floating point.
    """

    start: int
    length: int
    kind: str = ""
    is_float: bool = False


Parsed = TypeVar("Parsed")
Parse = Callable[[bytes, int, "Elements", bool], Parsed]
"""Parses a data set in a file's first bytes, from where it starts, given the file's meta
information and whether that is the whole file."""


class Elements(dict[str, Any]):
    """Elements of a data set by keyword, as pydicom leaves them before it converts their values."""

    @classmethod
    def of(cls, elements: Iterable[Any]) -> Elements:
        """Keep those of pydicom's elements that are read."""
        read = keywords()
        tags = {int(element.tag): element for element in elements}
        return cls({read[tag]: tags[tag] for tag in tags.keys() & read.keys()})

    def raw(self, keyword: str) -> bytes:
        """The value as it lies in the file; nothing where it is absent or no plain value."""
        element = self.get(keyword)
        value = None if element is None else element.value
        return value if isinstance(value, bytes) else b""

    def text(self, keyword: str) -> str:
        """The value of an element of the standard's own letters."""
        return self.raw(keyword).decode("latin-1").strip(" \0")

    def decoded(self, keyword: str) -> str:
        """The value of an element in the letters of SpecificCharacterSet.

        Bytes that it does not have are escaped: two ids that differ in them stay two.
        """
        value = self.raw(keyword)
        if value.isascii() and b"\x1b" not in value:  # the same in all of them
            return self.text(keyword)
        from pydicom.charset import decode_bytes
        from pydicom.valuerep import TEXT_VR_DELIMS

        encodings = _encodings(self.raw("SpecificCharacterSet"))
        try:
            text = decode_bytes(value, encodings, TEXT_VR_DELIMS)
        except (ValueError, LookupError):
            text = "\ufffd"
        if "\ufffd" in text:
            text = value.decode("ascii", "backslashreplace")
        return text.strip(" \0")

    def integer(self, keyword: str, default: int = 0) -> int:
        """The first number of an integer string, 0 where that is none."""
        if keyword not in self:
            return default
        try:
            return int(self.text(keyword).split("\\")[0])
        except ValueError:
            return 0

    def floats(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """The first numbers of a decimal string; None where they are fewer, or out of reason."""
        try:
            values = tuple(map(float, self.text(keyword).split("\\")))
        except ValueError:
            return None
        is_sane = len(values) >= count and all(abs(value) < 1e6 for value in values)
        return values[:count] if is_sane else None

    def binary(self, keyword: str, form: str = "H", default: float = 0) -> Any:
        """The first binary number, of a form that `struct` knows; 0 where it is cut short."""
        if keyword not in self:
            return default
        value = self.raw(keyword)
        if len(value) < struct.calcsize(form):
            return 0
        return struct.unpack_from(("<" if self[keyword].is_little_endian else ">") + form, value)[0]

    def indices(self, keyword: str) -> tuple[int, ...]:
        """The binary numbers of 4 bytes, the first of them."""
        value = self.raw(keyword)[: 4 * _MOST_INDICES]
        if not value:
            return ()
        order = "<" if self[keyword].is_little_endian else ">"
        return struct.unpack_from(f"{order}{len(value) // 4}I", value)

    def sequence(self, keyword: str) -> list[Elements]:
        """The items of a sequence."""
        from pydicom.filereader import read_sequence

        element = self.get(keyword)
        value = getattr(element, "value", None)
        if element is not None and isinstance(value, bytes):
            value = read_sequence(
                _buffer(value),
                element.is_implicit_VR,
                element.is_little_endian,
                len(value),
                "iso8859",
            )
        return [Elements.of(item.elements()) for item in value or ()]


class _CutShort(Exception):
    """More of the file is needed, and there is more."""


def _buffer(data: bytes) -> io.BytesIO:
    """Bytes that cannot be read in more pieces than an honest header has."""
    return io.BytesIO(data) if len(data) <= _READ_FIRST[0] else _Bounded(data)


class _Bounded(io.BytesIO):
    """Bytes that are read in `_MOST_READS` pieces or fewer."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise ValueError("too many elements")
        return super().read(size)


def read_elements(
    path: str | Path, size: int | None = None
) -> tuple[Elements, PixelData | None, int]:
    """Read the elements of a file up to its pixel data.

    Args:
        path: the file.
        size: of the file in bytes, where the path may lead to no more than its start.

    Returns:
        The elements, where the pixel data lie (None: nowhere), and the size of the file in bytes.

    Raises:
        NotDicom: if it is not a DICOM file.
        UnreadableDicom: if it is damaged or cut short.
    """
    (elements, pixels), size = _read(path, size, _data_set)
    return elements, pixels, size


def read_data_set(path: str | Path) -> Dataset:
    """Read every element of a file up to its pixel data, as pydicom's data set.

    Args:
        path: the whole file.

    Raises:
        NotDicom: if it is not a DICOM file.
        UnreadableDicom: if it is damaged or cut short.
    """
    with quiet_pydicom():
        data_set, _ = _read(path, None, _whole_data_set)
    return data_set


def _read(path: str | Path, size: int | None, parse: Parse[Parsed]) -> tuple[Parsed, int]:
    """What is parsed of as many first bytes of a file as that takes, and the file's size."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size if size is None else size
            if not size:
                raise UnreadableDicom("an empty file")
            for most in _READ_FIRST:
                file.seek(0)
                data = file.read(most)
                with contextlib.suppress(_CutShort):
                    return _parsed(data, most, len(data) >= size, parse), size
    except OSError:
        raise UnreadableDicom("cannot be opened") from None
    raise UnreadableDicom("damaged or cut short")


def unpacked_data_set(path: str | Path, size: int) -> bytes:
    """Unpack the first bytes of a deflated file's data set, or as many as there are.

    Raises:
        UnreadableDicom: if it is damaged.
    """
    try:
        data = Path(path).read_bytes()
        with quiet_pydicom():
            _, start = _meta(data, 132)
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(memoryview(data)[start:], size)
    except Exception:  # whatever a damaged file makes of pydicom's many
        raise UnreadableDicom("damaged or cut short") from None


def _looks_bare(data: bytes) -> bool:
    """Whether a file without preamble starts with an element of group 2 or 8."""
    if len(data) < 8:
        return False
    group, element, length = struct.unpack_from("<HHI", data)
    return group in (2, 8) and element < 0x100 and (_is_explicit(data, 0) or length < 0x10000)


def _is_explicit(data: bytes, start: int) -> bool:
    kind = data[start + 4 : start + 6]
    return kind.isalpha() and kind.isupper()


def _parsed(data: bytes, most: int, is_whole: bool, parse: Parse[Parsed]) -> Parsed:
    """What is parsed of a file's first bytes, of which deflated ones are unpacked up to `most`."""
    start = 132 if data[128:132] == b"DICM" else 0
    if not start and not _looks_bare(data):
        raise NotDicom("not a DICOM file")
    try:
        meta, start = _meta(data, start)
        if meta.text("TransferSyntaxUID") == DEFLATED:
            unpack = zlib.decompressobj(-zlib.MAX_WBITS)
            fits = min(_MOST_UNPACKED, _UNPACKED_PER_BYTE * len(data))
            data, start = unpack.decompress(data[start:], min(most, fits)), 0
            is_whole = is_whole and (unpack.eof or fits <= most)
        return parse(data, start, meta, is_whole)
    except UnreadableDicom:
        raise
    except Exception:  # whatever a damaged file makes of pydicom's many
        if is_whole:
            raise UnreadableDicom("damaged or cut short") from None
        raise _CutShort from None


def _meta(data: bytes, start: int) -> tuple[Elements, int]:
    """The file meta information (group 2), always explicit and little-endian, and its end."""
    from pydicom.filereader import data_element_generator

    buffer = _buffer(data)
    buffer.seek(start)
    elements = data_element_generator(buffer, False, True, lambda tag, *_: tag >> 16 != 2)
    return Elements.of(elements), buffer.tell()


def _data_set(
    data: bytes, start: int, meta: Elements, is_whole: bool
) -> tuple[Elements, PixelData | None]:
    """The elements of the data set and of its meta information."""
    from pydicom.filereader import data_element_generator

    buffer = _buffer(data)
    buffer.seek(start)
    at_pixels: list[PixelData] = []

    def is_at_pixels(tag: int, kind: str | None, length: int) -> bool:
        if not _is_of_pixels(tag, kind, length):
            return False
        at_pixels.append(PixelData(buffer.tell(), length, kind or "", tag != _PIXEL_DATA))
        return True

    elements = Elements.of(
        data_element_generator(
            buffer,
            is_implicit_VR=not _is_explicit(data, start),
            is_little_endian=meta.text("TransferSyntaxUID") != EXPLICIT_BIG,
            stop_when=is_at_pixels,
            specific_tags=list(keywords()),
        )
    )
    elements.update(meta)
    if not at_pixels and not (is_whole and _ends(elements, buffer, len(data))):
        raise _CutShort
    return elements, at_pixels[0] if at_pixels else None


def _is_of_pixels(tag: int, kind: str | None, length: int) -> bool:
    # Tags compare slowly, and shift fast.
    return tag >> 16 == _PIXEL_GROUP and _FIRST_PIXELS <= int(tag) <= _PIXEL_DATA


def _whole_data_set(data: bytes, start: int, meta: Elements, is_whole: bool) -> Dataset:
    """The data set up to its pixels, with the file meta information that other software needs."""
    from pydicom.filereader import read_dataset

    _data_set(data, start, meta, is_whole)  # is all there
    buffer = _buffer(data)
    buffer.seek(start)
    syntax = meta.text("TransferSyntaxUID")
    data_set = read_dataset(
        buffer, not _is_explicit(data, start), syntax != EXPLICIT_BIG, stop_when=_is_of_pixels
    )
    return with_file_meta(data_set, syntax or _default_syntax(data, start))


def with_file_meta(data_set: Dataset, syntax: str) -> Dataset:
    """Give a data set file meta information, which software asks for that makes new ones of it."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = UID(syntax or EXPLICIT_LITTLE)
    data_set.file_meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    return data_set


def _default_syntax(data: bytes, start: int) -> str:
    return EXPLICIT_LITTLE if _is_explicit(data, start) else IMPLICIT_LITTLE


def _ends(elements: Elements, buffer: io.BytesIO, size: int) -> bool:
    """Whether a data set ends where its bytes do, and not within a value."""
    values = ((element.value, getattr(element, "length", 0)) for element in elements.values())
    return buffer.tell() <= size and not any(
        isinstance(value, bytes) and len(value) < length < UNKNOWN_LENGTH
        for value, length in values
    )


@functools.cache
def keywords() -> dict[int, str]:
    """Tag -> keyword of the elements that are read."""
    from pydicom.datadict import tag_for_keyword

    return {tag: keyword for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword))}


def name_of_uid(uid: str) -> str:
    """Return what the standard calls a UID; "" where it has none of the kind."""
    from pydicom.uid import UID

    name = UID(uid).name
    return "" if name == uid else name


def has_decoder(syntax: str) -> bool:
    """Whether a plugin of pydicom's that is installed decodes a transfer syntax."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    try:
        return get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        return False


def compressed_pictures(path: str, offset: int, count: int) -> list[tuple[bytes, ...]] | None:
    """Read the fragments of each picture of a file.

    Args:
        path: the file.
        offset: where the value of its pixel data element starts.
        count: of pictures.

    Returns:
        Those of each; None where they cannot be told apart, or are fewer or more.
    """
    from pydicom.encaps import generate_fragmented_frames

    try:
        with open(path, "rb") as file, quiet_pydicom():
            file.seek(offset)
            frames = generate_fragmented_frames(file, number_of_frames=count)
            pictures = list(itertools.islice(frames, count + 1))
    except Exception:  # whatever a damaged file makes of pydicom's many
        return None
    return pictures if len(pictures) == count else None


def decoded_by_plugins(
    fragments: bytes, syntax: str, shape: tuple[int, int], dtype: str, bits: int
) -> np.ndarray | None:
    """Decode a compressed grey picture by pydicom's plugins.

    Args:
        fragments: the value of the pixel data element.
        syntax: the transfer syntax.
        shape: rows and columns.
        dtype: of the values.
        bits: of each value that are stored.

    Returns:
        (1, H, W) stored values; None where no plugin gives them.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    rows, columns = shape
    options: dict[str, Any] = {
        "number_of_frames": 1,
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": 8 * int(dtype[-1]),
        "bits_stored": bits,
        "pixel_representation": int("i" in dtype),
        "pixel_keyword": "PixelData",
    }
    try:
        with quiet_pydicom():
            values, _ = get_decoder(UID(syntax)).as_array(fragments, raw=True, **options)
    except Exception:  # each plugin has its own
        return None
    return values[None]


@functools.lru_cache(maxsize=64)
def _encodings(character_set: bytes) -> list[str]:
    from pydicom.charset import convert_encodings

    names = [name.strip(" \0") for name in character_set.decode("latin-1").split("\\")]
    return convert_encodings(names)


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep what this thread makes pydicom say from the log and from warnings; one at a time."""
    log, thread = logging.getLogger("pydicom"), threading.get_ident()

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.addFilter(is_of_another_thread)
        try:
            yield
        finally:
            log.removeFilter(is_of_another_thread)
