"""Volume files and DICOM frames, read by SimpleITK, and what is done with them in space.

A damaged file may end the process: call it in one that may. What is declared is checked before
memory is taken for it. Messages of the C++ libraries, which quote files and tags, are kept off
standard error, and no exception's text of theirs is passed on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medseq_tf.readers import nifti
from medseq_tf.readers.silence import silenced
from medseq_tf.readers.study import LARGEST_SIDE, LARGEST_VOXELS, AuditEntry
from medseq_tf.readers.volume_file import UnreadableVolume, refuse_other_files

SMALLEST_FILE_PER_BYTE = 1032
"""Deflate makes a file at most this many times smaller."""

_FORMATS = {
    ".nii": ("NiftiImageIO", "a NIfTI"),
    ".gz": ("NiftiImageIO", "a NIfTI"),
    ".nrrd": ("NrrdImageIO", "an NRRD"),
    ".nhdr": ("NrrdImageIO", "an NRRD"),
    ".mha": ("MetaImageIO", "a MetaImage"),
    ".mhd": ("MetaImageIO", "a MetaImage"),
}
"""SimpleITK's reader of a file, by its name's ending, and what the file should be."""

_BYTES_A_VOXEL = {
    sitk.sitkUInt8: 1,
    sitk.sitkInt8: 1,
    sitk.sitkUInt16: 2,
    sitk.sitkInt16: 2,
    sitk.sitkUInt32: 4,
    sitk.sitkInt32: 4,
    sitk.sitkUInt64: 8,
    sitk.sitkInt64: 8,
    sitk.sitkFloat32: 4,
    sitk.sitkFloat64: 8,
}
_UNREADABLE = "SimpleITK cannot read it: damaged, cut short, or an impossible geometry"
_NO_INTENSITIES = "holds colour, vectors or complex numbers, not intensities"


class VolumeFile:
    """A volume file whose header has been read and found usable.

    Attributes:
        path: the file.
        size: voxels along each axis; a fourth axis and those after it hold volumes.
        nifti: what is needed to read the voxels of a NIfTI file; None of the other formats.

    Args:
        path: the file.
        file_bytes: its size, where the path leads to no more than its start. Default: what is
            there.

    Raises:
        UnreadableVolume: if the file is not of the kind that its name says, names another file, or
            declares no volume of real numbers, one of more than 2**29 voxels or 8192 a side, or
            more than it can hold.
    """

    def __init__(self, path: Path, file_bytes: int | None = None):
        self.path = path
        self.nifti: nifti.NiftiHeader | None = None
        try:
            file_bytes = path.stat().st_size if file_bytes is None else file_bytes
            if not file_bytes:
                raise UnreadableVolume("an empty file")
            if nifti.is_nifti(path):
                self.nifti = nifti.read_nifti_header(path)
            else:
                refuse_other_files(path)
        except OSError:
            raise UnreadableVolume("damaged or cut short") from None
        self._reader = self._read_information()
        self.size = self.nifti.size if self.nifti else self._reader.GetSize()
        self._check(file_bytes)

    @property
    def is_8_bit(self) -> bool:
        """Whether the intensities are stored as bytes from 0 to 255."""
        if self.nifti:
            return self.nifti.dtype == np.uint8 and not self.nifti.is_scaled
        return self._reader.GetPixelID() == sitk.sitkUInt8

    def _read_information(self) -> sitk.ImageFileReader:
        image_io, kind = _FORMATS[self.path.suffix.lower()]
        reader = sitk.ImageFileReader()
        reader.SetImageIO(image_io)
        reader.SetFileName(os.fspath(self.path))
        try:
            with silenced():
                reader.ReadImageInformation()
        except (RuntimeError, MemoryError):
            raise UnreadableVolume(f"not {kind} file, or its header is damaged") from None
        return reader

    def _check(self, file_bytes: int) -> None:
        declared, voxels = " x ".join(map(str, self.size)), math.prod(self.size)
        most_bytes = file_bytes * SMALLEST_FILE_PER_BYTE
        if not 2 <= len(self.size) <= 7 or min(self.size) < 1:
            raise UnreadableVolume(f"declares {declared or 'no'} voxels")
        if max(self.size[:3]) > LARGEST_SIDE or voxels > LARGEST_VOXELS:
            raise UnreadableVolume(
                f"declares {declared} voxels; at most {LARGEST_SIDE} a side and {LARGEST_VOXELS} "
                "in all"
            )
        bytes_a_voxel = _BYTES_A_VOXEL.get(self._reader.GetPixelID())
        if bytes_a_voxel is None or self._reader.GetNumberOfComponents() != 1:
            raise UnreadableVolume(_NO_INTENSITIES)
        if self.nifti:
            bytes_a_voxel = self.nifti.dtype.itemsize
            if not self.nifti.is_packed:
                most_bytes = file_bytes - self.nifti.offset
            if [*self._reader.GetSize(), *[1] * 7][:7] != [*self.size, *[1] * 7][:7]:
                raise UnreadableVolume("its header is damaged")
        if voxels * bytes_a_voxel > most_bytes:
            raise UnreadableVolume(f"cut short: declares {declared} voxels and holds fewer")

    def geometry(self) -> sitk.Image:
        """Make an image of zeros on the grid of a 3-D file, whose voxels are not read.

        Raises:
            UnreadableVolume: if the file is of 2-D or 4-D.
        """
        if len(self.size) != 3:
            raise UnreadableVolume(f"has {len(self.size)} axes, not 3")
        image = sitk.Image(self.size, sitk.sitkUInt8)
        image.SetSpacing(self._reader.GetSpacing())
        image.SetOrigin(self._reader.GetOrigin())
        image.SetDirection(self._reader.GetDirection())
        return image

    def image(self, slices: int | None = None) -> sitk.Image:
        """Read the voxels: a 3-D image, of a file with several volumes the first.

        Args:
            slices: along the third axis that are read, the first; default: all. NIfTI has all.

        Raises:
            UnreadableVolume: if there are fewer than declared, or their place in space is none.
        """
        try:
            with silenced():
                image = self._nifti_image(self.nifti) if self.nifti else self._first(slices)
        except (RuntimeError, MemoryError):
            raise UnreadableVolume(_UNREADABLE) from None
        geometry = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
        if not np.isfinite(geometry).all():
            raise UnreadableVolume(_UNREADABLE)
        return sitk.JoinSeries(image) if image.GetDimension() == 2 else image

    def _first(self, slices: int | None) -> sitk.Image:
        volume = [*self.size[:3], *[0] * (len(self.size) - 3)]
        volume[2:3] = [min(depth, slices or depth) for depth in volume[2:3]]
        is_part = slices is not None or len(self.size) > 3
        self._reader.SetExtractSize(volume if is_part else [])
        return self._reader.Execute()

    def _nifti_image(self, header: nifti.NiftiHeader) -> sitk.Image:
        image = sitk.GetImageFromArray(nifti.read_voxels(self.path, header))
        reader, axes = self._reader, min(self._reader.GetDimension(), 3)
        spacing, origin, cosines = np.ones(3), np.zeros(3), np.eye(3)
        spacing[:axes], origin[:axes] = reader.GetSpacing()[:axes], reader.GetOrigin()[:axes]
        square = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))
        cosines[:axes, :axes] = square[:axes, :axes]
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(origin.tolist())
        image.SetDirection(cosines.ravel().tolist())
        return image

    def first_intensities(self) -> np.ndarray:
        """Read the finite intensities of the first voxels, up to 4 MiB; none if none is read."""
        try:
            if self.nifti:
                return nifti.first_intensities(self.path, self.nifti)
            bytes_a_slice = math.prod(self.size[:2]) * _BYTES_A_VOXEL[self._reader.GetPixelID()]
            image = self.image(math.ceil(nifti.SAMPLE_BYTES / bytes_a_slice))
        except UnreadableVolume:
            return np.empty(0)
        values = voxels_view(image).ravel(order="F")
        values = values[: nifti.SAMPLE_BYTES // values.itemsize].astype(np.float64)
        return values[np.isfinite(values)]


def read_volume(path: Path, where: str) -> tuple[sitk.Image, list[AuditEntry]]:
    """Read one volume; of a file with several (4-D) the first, which is an audit entry.

    Args:
        path: the file.
        where: what audit entries call it.

    Returns:
        A 3-D image of one value a voxel (a 2-D file has one slice), and audit entries.

    Raises:
        UnreadableVolume: if there is none.
    """
    file = VolumeFile(path)
    image, volumes = file.image(), math.prod(file.size[3:])
    detail = f"the first of its {volumes} volumes is used"
    return image, [AuditEntry("4-D volume", where, detail)] if volumes > 1 else []


def same_grid(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether two images have the same voxels in space, to a hundredth of a voxel."""
    if first.GetSize() != second.GetSize():
        return False
    tolerance = 0.01 * min(second.GetSpacing())
    return np.allclose(_corners(first), _corners(second), rtol=0, atol=tolerance)


def covered(image: sitk.Image, by: sitk.Image) -> float:
    """Measure the share of an image's extent that lies within another's, at 32 points a side."""
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
    """Copy an image's voxels: (I, J, K), in the order of its axes."""
    return sitk.GetArrayFromImage(image).transpose()


def voxels_view(image: sitk.Image) -> np.ndarray:
    """View an image's voxels, (I, J, K); not to be used longer than the image."""
    return sitk.GetArrayViewFromImage(image).transpose()


def image_like(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    """Make an image of other values, (I, J, K), on the grid of a 3-D image."""
    result = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose()))
    result.CopyInformation(image)
    return result


def nearest_on(image: sitk.Image, grid: sitk.Image) -> sitk.Image:
    """Resample an image to another's grid, each voxel the nearest in space, 0 outside."""
    return sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor)


def direction(image: sitk.Image) -> np.ndarray:
    """Return the (3, 3) direction cosines of an image, a column an axis, in LPS."""
    return np.array(image.GetDirection()).reshape(3, 3)


def resampled(
    image: sitk.Image,
    spacing: tuple[float, float, float],
    axes: Sequence[int],
    nearest: bool = False,
) -> sitk.Image:
    """Resample an image to another spacing, its corners staying where they are.

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


def read_dicom_frames(path: str) -> np.ndarray | None:
    """Read the (frames, H, W) rescaled intensities of a DICOM file; None if GDCM cannot."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(path)
    try:
        with silenced():
            image = reader.Execute()
    except (RuntimeError, MemoryError):
        return None
    frames = sitk.GetArrayFromImage(image)
    return frames[None] if frames.ndim == 2 else frames
