"""A study's intensities as they are stored, in 8 or 16 bits, of those that its file gives.

    photograph   whole numbers from 0 to 255; uint8, as they are
    CT           Hounsfield units, rounded; int16, values beyond its range become its ends, and a
                 audit entry counts them
    MR           whole numbers from 0 to 65535: uint16, as they are. Otherwise (fractions, negative
                 or larger values): one linear map for the whole study, its smallest value to 0
                 and its largest to 65535, and an audit entry that says so

A voxel that is not a finite number (nan, inf) takes the study's smallest finite value, and an
audit entry counts them; a study without any finite voxel is left out. So is a CT without any voxel
in range. A study of one value throughout is an audit entry.
"""

from __future__ import annotations

import numpy as np

from medseq_tf.readers.study import MODALITIES, AuditEntry, UnreadableStudy

DTYPES = dict(zip(MODALITIES, ("uint8", "int16", "uint16"), strict=True))


def stored_intensities(
    volume: np.ndarray, modality: str, where: str
) -> tuple[list[np.ndarray], list[AuditEntry]]:
    """Bring the slices of one study to the dtype of their modality.

    Args:
        volume: (T, H, W) of any real dtype.
        modality: `photograph`, `CT` or `MR`.
        where: what audit entries call the study.

    Returns:
        T contiguous arrays (H, W) of `DTYPES[modality]`, and audit entries.

    Raises:
        UnreadableStudy: if no voxel is finite, a photograph has other values than 0 to 255, or a CT
            none in range.
    """
    dtype = np.dtype(DTYPES[modality])
    volume, audit_entries = _finite(volume, where)
    if volume.size and volume.min() == volume.max():
        detail = f"every voxel has the value {volume.flat[0]:g}"
        audit_entries.append(AuditEntry("study of one value", where, detail))
    if volume.dtype == dtype:
        return list(np.ascontiguousarray(volume)), audit_entries
    if modality == "CT":
        audit_entries += beyond_range(count_beyond_range(volume), volume.size, where)
    else:
        low, high = volume.min(), volume.max()
        fits = low >= 0 and high <= np.iinfo(dtype).max and _is_whole(volume)
        if modality == "photograph" and not fits:
            raise UnreadableStudy("its values are not whole numbers from 0 to 255", audit_entries)
        if not fits:
            low, high = float(low), float(high)
            audit_entries.append(
                AuditEntry("intensities scaled", where, f"{low:g} to {high:g}: 0 to 65535")
            )
            scale = 65535 / (high - low) if high > low else 0.0
            volume = (volume.astype(np.float64) - low) * scale
    return list(_rounded(volume, dtype)), audit_entries


def hounsfield_units(values: np.ndarray) -> np.ndarray:
    """Round values of a CT to how they are stored: int16."""
    return _rounded(values, np.dtype(np.int16))


def count_beyond_range(volume: np.ndarray) -> int:
    """Count the values of a CT that int16 does not hold."""
    if np.can_cast(volume.dtype, np.int16):
        return 0
    limits = np.iinfo(np.int16)
    low, high = limits.min - 0.5, limits.max + 0.5  # as they are rounded
    if low < volume.min() and volume.max() < high:
        return 0
    return volume.size - int(np.count_nonzero((volume > low) & (volume < high)))


def beyond_range(count: int, voxels: int, where: str) -> list[AuditEntry]:
    """Make the audit entry on the values of a CT that became an end of int16's range.

    Args:
        count: of them.
        voxels: of the study.
        where: what audit entries call the study.

    Raises:
        UnreadableStudy: if these are all there are.
    """
    limits = np.iinfo(np.int16)
    if count == voxels:
        raise UnreadableStudy(
            f"not one voxel lies between {limits.min} and {limits.max}, so these are no "
            "Hounsfield units"
        )
    detail = f"{count} of {voxels} became {limits.min} or {limits.max}"
    return (
        [AuditEntry("voxels beyond the range of Hounsfield units", where, detail)] if count else []
    )


def _finite(volume: np.ndarray, where: str) -> tuple[np.ndarray, list[AuditEntry]]:
    if volume.dtype.kind != "f":
        return volume, []
    is_finite = np.isfinite(volume)
    not_finite = volume.size - np.count_nonzero(is_finite)
    if not not_finite:
        return volume, []
    if not_finite == volume.size:
        raise UnreadableStudy("not one voxel is a finite number")
    lowest = volume[is_finite].min()
    detail = f"{not_finite} took the study's smallest value, {lowest:g}"
    return np.where(is_finite, volume, lowest), [AuditEntry("voxels not a number", where, detail)]


def _is_whole(volume: np.ndarray) -> bool:
    return volume.dtype.kind != "f" or bool(np.all(volume == np.rint(volume)))


def _rounded(volume: np.ndarray, dtype: np.dtype) -> np.ndarray:
    limits = np.iinfo(dtype)
    if volume.dtype.kind == "f":
        volume = np.rint(volume)
    return np.ascontiguousarray(np.clip(volume, limits.min, limits.max).astype(dtype))
