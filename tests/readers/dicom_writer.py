"""DICOM files made byte by byte, odd ones included (PS3.5, chapter 7), and folders of them."""

from __future__ import annotations

import csv
import struct

import numpy as np

LONG = ("OB", "OW", "SQ", "UN", "UT")
CT_IMAGE, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"


def element(tag: int, kind: str, value, syntax: str = EXPLICIT, undefined: bool = False) -> bytes:
    """One element; a sequence's value is a list of lists of (tag, kind, value).

    Bytes in a list are fragments, as of compressed pixels.
    """
    order = ">" if syntax == BIG else "<"
    if kind == "SQ":
        data = b"".join(_item(items, syntax, undefined) for items in value)
        data += struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0) if undefined else b""
    elif isinstance(value, list):
        pieces = [b"", *(piece + bytes(len(piece) % 2) for piece in value)]
        data = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(p)) + p for p in pieces)
        data += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        undefined = True
    elif kind == "US":
        data = struct.pack(order + "H", value)
    else:
        data = value if isinstance(value, bytes) else str(value).encode()
        data += (b"\0" if kind in ("UI", "OB", "OW") else b" ") * (len(data) % 2)
    length = 0xFFFFFFFF if isinstance(value, list) and undefined else len(data)
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<I", length) + data
    if kind in LONG:
        return head + kind.encode() + bytes(2) + struct.pack(order + "I", length) + data
    return head + kind.encode() + struct.pack(order + "H", length) + data


def _item(items, syntax: str, undefined: bool) -> bytes:
    order = ">" if syntax == BIG else "<"
    data = b"".join(element(*each, syntax, undefined) for each in items)
    length = 0xFFFFFFFF if undefined else len(data)
    end = struct.pack(order + "HHI", 0xFFFE, 0xE00D, 0) if undefined else b""
    return struct.pack(order + "HHI", 0xFFFE, 0xE000, length) + data + end


def dicom_file(
    elements: dict[int, tuple], syntax: str = EXPLICIT, bare: bool = False, undefined: bool = False
) -> bytes:
    """A file of elements, tag -> (kind, value), in the order of their tags."""
    body = b"".join(
        element(tag, *elements[tag], syntax, undefined and elements[tag][0] == "SQ")
        for tag in sorted(elements)
    )
    if bare:
        return body
    meta = element(0x00020002, "UI", elements[0x00080016][1])
    meta += element(0x00020010, "UI", syntax)
    length = element(0x00020000, "UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + length + meta + body


def image(pixels: np.ndarray, position=(0, 0, 0), **changes) -> dict[int, tuple]:
    """The elements of a CT slice of stored values (H, W) uint16; `t00080060="MR"` changes one."""
    elements = {
        0x00080008: ("CS", "ORIGINAL\\PRIMARY\\AXIAL"),
        0x00080016: ("UI", CT_IMAGE),
        0x00080018: ("UI", f"1.2.3.{abs(hash(position)) % 10**9}"),
        0x00080060: ("CS", "CT"),
        0x00100010: ("PN", "Planted^Name"),
        0x00100020: ("LO", "patient-1"),
        0x0020000D: ("UI", "1.2.3"),
        0x0020000E: ("UI", "1.2.3.4"),
        0x00200013: ("IS", "1"),
        0x00200032: ("DS", "\\".join(f"{value:g}" for value in position)),
        0x00200037: ("DS", "1\\0\\0\\0\\1\\0"),
        0x00280002: ("US", 1),
        0x00280004: ("CS", "MONOCHROME2"),
        0x00280010: ("US", pixels.shape[-2]),
        0x00280011: ("US", pixels.shape[-1]),
        0x00280030: ("DS", "1\\1"),
        0x00280100: ("US", 16),
        0x00280101: ("US", 12),
        0x00280102: ("US", 11),
        0x00280103: ("US", 0),
        0x00281052: ("DS", "-1024"),
        0x00281053: ("DS", "1"),
        0x7FE00010: ("OW", pixels.astype("<u2").tobytes()),
    }
    for name, value in changes.items():
        tag = int(name[1:], 16)
        if value is None:
            elements.pop(tag, None)
        else:
            elements[tag] = value if isinstance(value, tuple) else (elements[tag][0], value)
    return elements


def enhanced(values, positions, slopes):
    """Return a multi-frame CT whose frames are shuffled and rescaled one by one."""
    order = np.random.default_rng(1).permutation(len(values))
    elements = image(
        values[order],
        t00080016=ENHANCED_CT,
        t00200032=None,
        t00200037=None,
        t00280030=None,
        t00281052=None,
        t00281053=None,
    )
    elements[0x00280008] = ("IS", str(len(values)))
    elements[0x52009229] = (
        "SQ",
        [
            [
                (0x00209116, "SQ", [[(0x00200037, "DS", "1\\0\\0\\0\\1\\0")]]),
                (0x00289110, "SQ", [[(0x00180050, "DS", "2"), (0x00280030, "DS", "1\\1")]]),
            ]
        ],
    )
    elements[0x52009230] = (
        "SQ",
        [
            [
                (0x00209113, "SQ", [[(0x00200032, "DS", f"0\\0\\{positions[i][2]:g}")]]),
                (
                    0x00289145,
                    "SQ",
                    [[(0x00281052, "DS", "-1000"), (0x00281053, "DS", f"{slopes[i]:g}")]],
                ),
            ]
            for i in order
        ],
    )
    return elements


def stack(count=5, rng=None, step=2.0):
    """Return stored values (count, 4, 6) and the positions of their slices."""
    rng = rng or np.random.default_rng(0)
    return rng.integers(0, 4096, (count, 4, 6)), [(0, 0, step * t) for t in range(count)]


def write(folder, *files, labels=(("patient-1", 1),)):
    """Write files of elements or bytes under shuffled names, and labels by patient."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        data = file if isinstance(file, bytes) else dicom_file(file)
        (folder / f"{(number * 7919) % 1009:04}").write_bytes(data)
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["patient_id", "x"], *labels])
    return folder


def write_stack(folder, values, positions, **changes):
    return write(folder, *(image(v, p, **changes) for v, p in zip(values, positions, strict=True)))


def kinds(scan):
    return [entry.kind for entry in scan.audit_entries]


def series_of(values, positions, number, **changes):
    return [
        image(v, p, **{"t0020000E": f"1.2.3.{number}", "t00200011": ("IS", str(number)), **changes})
        for v, p in zip(values, positions, strict=True)
    ]
