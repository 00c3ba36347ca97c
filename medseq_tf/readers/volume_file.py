"""What a volume file is called, and whether it holds its own voxels."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

EXTENSIONS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")

_LONGEST_HEADER = 2**20
_NRRD_HEADER_ENDS = re.compile(rb"\n\r?\n")
_META_FILE = b"ElementDataFile"
_META_LOCAL = re.compile(rb"ElementDataFile[ \t]*[=:][ \t]*(LOCAL|Local|local)[ \t]*\r?\n")


class UnreadableVolume(ValueError):
    """A file that is not one usable volume; the message is the reason."""


def without_extension(name: str) -> str:
    """Cut the volume extension off a file name or path: `a/b.nii.gz` becomes `a/b`."""
    lower = name.lower()
    longest = max((e for e in EXTENSIONS if lower.endswith(e)), key=len, default="")
    return name[: len(name) - len(longest)]


def refuse_other_files(path: Path) -> None:
    """Refuse an NRRD or MetaImage file that names another file, before a library opens that.

    Raises:
        UnreadableVolume: if it does, or if a field that would stands anywhere it might be seen.
    """
    name = path.name.lower()
    with open(path, "rb") as file:
        if name.endswith((".nrrd", ".nhdr")):
            names_another = _nrrd_names_another(file.read(_LONGEST_HEADER))
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                names_another = _meta_names_another(data)
    if names_another:
        raise UnreadableVolume("its voxels are not in it but in another file; write it as one file")


def _nrrd_names_another(start: bytes) -> bool:
    """Whether a line of an NRRD header, which an empty line ends, may be the field `data file`."""
    end = _NRRD_HEADER_ENDS.search(start)
    if end is None and len(start) == _LONGEST_HEADER:
        raise UnreadableVolume(f"its header has more than {_LONGEST_HEADER} bytes")
    lines = re.split(rb"[\r\n]+", start[: end.start()] if end else start)
    return any(
        re.search(rb"data\s*file", line, re.IGNORECASE) for line in lines if line[:1] != b"#"
    )


def _meta_names_another(data: mmap.mmap) -> bool:
    """Whether a MetaImage file says more of where its voxels are than, once, that it holds them."""
    at = data.find(_META_FILE)
    if at < 0:
        raise UnreadableVolume("not a MetaImage file")
    is_local = _META_LOCAL.match(data[at : at + len(_META_FILE) + 64]) is not None
    return not is_local or data.find(_META_FILE, at + 1) >= 0
