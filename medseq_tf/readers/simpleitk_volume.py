"""Takes a volume file; gives its voxels with their geometry, through SimpleITK.

Messages of the C++ libraries, which quote files and tags, are kept off standard error, and no
exception's text of theirs is passed on.

Voxels of NIfTI files are read here: SimpleITK's reader turns those that are not a number into 0,
and adds the intercept where a slope of 0 says that nothing is scaled.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medseq_tf.readers.silence import silenced
from medseq_tf.readers.study import AuditEntry
from medseq_tf.readers.volume_header import (
    LARGEST_VOXELS,
    SAMPLE_BYTES,
    UnreadableVolume,
    VolumeHeader,
    read_header,
)

_IMAGE_IO = {
    ".nii": "NiftiImageIO",
    ".gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}

_UNREADABLE = "SimpleITK cannot read it: damaged, or an impossible geometry"


def read_volume(path: Path, where: str) -> tuple[sitk.Image, list[AuditEntry]]:
    """Reads one volume; of a file with several (4-D) the first, which is an audit entry.

    Args:
        path: the file.
        where: what audit entries call it.

    Returns:
        A 3-D image of one value a voxel (a 2-D file has one slice), and audit entries.

    Raises:
        UnreadableVolume: if there is none.
    """
    header = read_header(path)
    volumes = math.prod(header.size[3:])
    audit_entries = []
    if volumes > 1:
        audit_entries.append(
            AuditEntry("4-D volume", where, f"the first of its {volumes} volumes is used")
        )
    try:
        with silenced():
            image = _image(path, header)
    except (RuntimeError, MemoryError):
        raise UnreadableVolume(_UNREADABLE) from None
    geometry = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
    if not np.isfinite(geometry).all():
        raise UnreadableVolume(_UNREADABLE)
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UnreadableVolume("holds colour, vectors or complex numbers, not intensities")
    return image, audit_entries


def read_geometry(path: Path) -> sitk.Image:
    """An image of zeros on the grid of a 3-D file, whose voxels are not read.

    Raises:
        UnreadableVolume: if the header is of no use.
    """
    header = read_header(path)
    if len(header.size) != 3:
        raise UnreadableVolume(f"has {len(header.size)} axes, not 3")
    try:
        with silenced():
            reader = _reader(path, header)
    except RuntimeError:
        raise UnreadableVolume(_UNREADABLE) from None
    image = sitk.Image(reader.GetSize(), sitk.sitkUInt8)
    image.SetSpacing(reader.GetSpacing())
    image.SetOrigin(reader.GetOrigin())
    image.SetDirection(reader.GetDirection())
    return image


def _reader(path: Path, header: VolumeHeader) -> sitk.ImageFileReader:
    """SimpleITK's reader of a file, which finds the same size in it as was checked."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IMAGE_IO[path.suffix.lower()])
    reader.SetFileName(os.fspath(path))
    reader.ReadImageInformation()
    size = [*header.size, *[1] * 7]
    if [*reader.GetSize(), *[1] * 7][:7] != size[:7] or reader.GetNumberOfComponents() != 1:
        raise UnreadableVolume("its header is damaged")
    return reader


def _image(path: Path, header: VolumeHeader) -> sitk.Image:
    reader = _reader(path, header)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _nifti_image(reader, header)
    if len(header.size) > 3:
        reader.SetExtractSize([*header.size[:3], *[0] * (len(header.size) - 3)])
    return reader.Execute()


def _nifti_image(reader: sitk.ImageFileReader, header: VolumeHeader) -> sitk.Image:
    values = _stored_values(header)
    if (header.slope, header.intercept) != (1.0, 0.0):
        wide = np.float64 if header.dtype.itemsize == 8 else np.float32
        values = (values * header.slope + header.intercept).astype(wide)
    size = [*header.size, 1][:3]
    values = values.astype(values.dtype.newbyteorder("="), copy=False).reshape(size[::-1])
    image = sitk.GetImageFromArray(values)
    axes = min(reader.GetDimension(), 3)
    spacing, origin, cosines = np.ones(3), np.zeros(3), np.eye(3)
    spacing[:axes], origin[:axes] = reader.GetSpacing()[:axes], reader.GetOrigin()[:axes]
    square = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))
    cosines[:axes, :axes] = square[:axes, :axes]
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(cosines.ravel().tolist())
    return image


def _stored_values(header: VolumeHeader) -> np.ndarray:
    """The stored values of the first volume of a NIfTI file, as they lie in it.

    Raises:
        UnreadableVolume: if the file is damaged or ends before them.
    """
    data = np.empty(math.prod(header.size[:3]) * header.dtype.itemsize, np.uint8)
    held = 0
    try:
        with (gzip.open if header.packing == "gzip" else open)(header.data, "rb") as file:
            file.seek(header.offset)
            while held < data.size and (part := file.read(min(SAMPLE_BYTES, data.size - held))):
                data[held : held + len(part)] = np.frombuffer(part, np.uint8)
                held += len(part)
            _check_end(file)
    except (OSError, EOFError, zlib.error):
        raise UnreadableVolume("damaged or cut short") from None
    if held < data.size:
        raise UnreadableVolume("damaged or cut short")
    return data.view(header.dtype)


def _check_end(file) -> None:
    """Read on by one byte, which compares a packed file's checksum where its end is reached."""
    try:
        file.read(1)
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):  # what stands behind it is no matter
            raise


def same_grid(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether two images have the same voxels in space, to a hundredth of a voxel."""
    if first.GetSize() != second.GetSize():
        return False
    tolerance = 0.01 * min(second.GetSpacing())
    return np.allclose(_corners(first), _corners(second), rtol=0, atol=tolerance)


def covered(image: sitk.Image, by: sitk.Image) -> float:
    """The share of an image's extent that lies within another's, from 32 points a side."""
    fractions = (np.arange(32) + 0.5) / 32
    grid = np.stack(np.meshgrid(fractions, fractions, fractions), axis=-1).reshape(-1, 3)
    points = _to_world(image, grid * image.GetSize() - 0.5)
    inverse = np.linalg.inv(direction(by) * by.GetSpacing())
    indices = (points - by.GetOrigin()) @ inverse.T
    inside = (indices >= -0.5) & (indices <= np.array(by.GetSize()) - 0.5)
    return float(inside.all(axis=1).mean())


def _corners(image: sitk.Image) -> np.ndarray:
    ends = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T
    return _to_world(image, ends * (np.array(image.GetSize()) - 1))


def _to_world(image: sitk.Image, indices: np.ndarray) -> np.ndarray:
    return np.array(image.GetOrigin()) + indices @ (direction(image) * image.GetSpacing()).T


def voxels(image: sitk.Image) -> np.ndarray:
    """(I, J, K) copy of an image's voxels, in the order of its axes."""
    return sitk.GetArrayFromImage(image).transpose()


def voxels_view(image: sitk.Image) -> np.ndarray:
    """(I, J, K) view of an image's voxels, not to be used longer than the image."""
    return sitk.GetArrayViewFromImage(image).transpose()


def image_like(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    """An image of other values, (I, J, K), on the grid of a 3-D image."""
    result = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose()))
    result.CopyInformation(image)
    return result


def nearest_on(image: sitk.Image, grid: sitk.Image) -> sitk.Image:
    """An image on another image's grid, each voxel the nearest in space, 0 outside."""
    return sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor)


def direction(image: sitk.Image) -> np.ndarray:
    """(3, 3) direction cosines of an image, a column an axis, in LPS."""
    return np.array(image.GetDirection()).reshape(3, 3)


def resampled(
    image: sitk.Image, spacing: tuple[float, float, float], axes, nearest: bool = False
) -> sitk.Image:
    """Resamples an image to another spacing, its corners staying where they are.

    Args:
        image: 3-D.
        spacing: mm along the world's x, y and z; 0 keeps an axis as it is.
        axes: the image axis of each world axis, see `orientation.nearest_axes`.
        nearest: take the nearest voxel (masks) instead of interpolating linearly.

    Raises:
        UnreadableVolume: if that would be too many voxels.
    """
    size, old = np.array(image.GetSize()), np.array(image.GetSpacing())
    new = old.copy()
    for world, axis in enumerate(axes):
        new[axis] = spacing[world] or old[axis]
    count = np.maximum(np.rint(size * old / new), 1)
    if math.prod(count) > LARGEST_VOXELS:
        raise UnreadableVolume(f"would have more than {LARGEST_VOXELS} voxels at that spacing")
    first_voxel_moves = (size * old / count - old) / 2
    new = size * old / count
    origin = np.array(image.GetOrigin()) + direction(image) @ first_voxel_moves
    resample = sitk.ResampleImageFilter()
    resample.SetSize([int(c) for c in count])
    resample.SetOutputSpacing(new.tolist())
    resample.SetOutputOrigin(origin.tolist())
    resample.SetOutputDirection(image.GetDirection())
    resample.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    resample.SetUseNearestNeighborExtrapolator(True)
    try:
        return resample.Execute(image)
    except RuntimeError:
        raise UnreadableVolume("cannot be resampled to that spacing") from None


def read_dicom_frames(path: Path) -> np.ndarray | None:
    """(frames, H, W) rescaled intensities of a DICOM file, or None if GDCM cannot decode it."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(os.fspath(path))
    try:
        with silenced():
            image = reader.Execute()
    except (RuntimeError, MemoryError):
        return None
    frames = sitk.GetArrayFromImage(image)
    return frames[None] if frames.ndim == 2 else frames
