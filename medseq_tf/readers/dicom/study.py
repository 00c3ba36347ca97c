"""A study in one DICOM series, whose pictures are decoded, turned and brought to one dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medseq_tf.readers.dicom.elements import NotDicom, UnreadableDicom, read_data_set
from medseq_tf.readers.dicom.frame import Picture
from medseq_tf.readers.dicom.header import CT
from medseq_tf.readers.dicom.pixels import Decoded, decode, fill_padding
from medseq_tf.readers.dicom.resampling import evenly_spaced, upright
from medseq_tf.readers.intensities import (
    beyond_range,
    count_beyond_range,
    hounsfield_units,
    stored_intensities,
)
from medseq_tf.readers.orientation import plane_of, to_plane
from medseq_tf.readers.storage import local_files, read_ahead
from medseq_tf.readers.study import MOST_SLICES, AuditEntry, Slices, StudySource, UnreadableStudy
from medseq_tf.readers.volumes import Spacing

if TYPE_CHECKING:
    from medseq_tf.readers.dicom.elements import Dataset

Tilt = Literal["keep", "correct"]


@dataclass(frozen=True)
class DicomStudy(StudySource):
    """A study in one series under `root`, a folder or URL; pictures in order of position."""

    root: str
    pictures: tuple[Picture, ...]
    modality: str
    tilt: Tilt
    spacing: Spacing

    def read_ahead(self) -> None:
        """Begin to read files behind a URL."""
        read_ahead(self.root, [picture.path for picture in self.pictures])

    def read(self) -> Slices:
        """Decode every picture that can be decoded; the others become audit entries."""
        if len(self.pictures) > MOST_SLICES:
            count = len(self.pictures)
            raise UnreadableStudy(f"{count} images; a study has at most {MOST_SLICES}")
        volume, pictures, audit_entries = self._stacked()
        images, intensity_entries = stored_intensities(volume, self.modality, self.source)
        frames = [picture.frame for picture in pictures]
        if self.tilt == "correct":
            images = upright(images, frames)
        cosines = frames[0].cosines
        plane = plane_of(cosines)
        slices = [to_plane(image.T[:, :, None], cosines, plane)[0] for image in images]
        if self.spacing is not None:
            slices = evenly_spaced(slices, frames, plane, self.spacing)
        grid = [(*f.position, *f.orientation, *f.pixel_spacing) for f in frames]
        return Slices(
            [np.ascontiguousarray(image) for image in slices],
            audit_entries=audit_entries + intensity_entries,
            grid=np.array(grid).ravel(),
            pictures=None if self.spacing else self.places_of(pictures),
        )

    def places_of(self, pictures: Sequence[Picture]) -> tuple[int, ...]:
        """Say which of the study's pictures some are that may tell more of their files.

        Raises:
            KeyError: one is none of them.
        """
        numbers = {(own.path, own.place): number for number, own in enumerate(self.pictures)}
        return tuple(numbers[picture.path, picture.place] for picture in pictures)

    def source_headers(self) -> list[Dataset]:
        """Read the header of each picture's file: all but its pixels, the patient's name too.

        Raises:
            UnreadableStudy: one cannot be read.
            UnavailableStudy: they lie behind a URL, and one cannot be read there.
        """
        names = [picture.path for picture in self.pictures]
        of_files: dict[str, Dataset] = {}
        with local_files(self.root, names) as path_of:
            for name in names:
                path = path_of(name)
                try:
                    of_files[name] = of_files.get(name) or read_data_set(path)
                except (NotDicom, UnreadableDicom) as error:
                    raise UnreadableStudy(f"the header of a picture: {error}") from None
        return [of_files[name] for name in names]

    def decoded(self, audit_entries: list[AuditEntry]) -> Iterator[Decoded]:
        """Decode the pictures in order; what is odd about their files is added."""
        return decode(self.root, self.pictures)

    def _stacked(self) -> tuple[np.ndarray, list[Picture], list[AuditEntry]]:
        """(T, H, W) intensities without padding, their pictures, and what was odd."""
        audit_entries: list[AuditEntry] = []
        images, pictures, paddings = [], [], []
        beyond = voxels = 0
        for picture, image, padding in self.decoded(audit_entries):
            if image is None:
                where = f"{self.source} file {picture.number}"
                detail = "damaged, cut short, or other than its header says"
                audit_entries.append(AuditEntry("unreadable image", where, detail))
                continue
            is_whole_ct = self.modality == CT and image.dtype.kind == "i"
            count, count_beyond = _counted(image, padding, is_whole_ct)
            voxels += count
            beyond += count_beyond
            if is_whole_ct:
                # Slice by slice it stays in the processor's cache; only fractions and MR need to
                # see the whole study.
                image = hounsfield_units(image)
            images.append(image)
            pictures.append(picture)
            paddings.append(padding)
        if not images:
            raise UnreadableStudy("no slice can be read", audit_entries)
        if voxels:
            audit_entries += beyond_range(beyond, voxels, self.source)
        volume = np.stack(images)
        audit_entries += fill_padding(volume, paddings, self.modality, self.source)
        return volume, pictures, audit_entries


def _counted(image: np.ndarray, padding: np.ndarray | None, is_whole_ct: bool) -> tuple[int, int]:
    """Count the pixels that are no padding, and those of them that are beyond a CT's range.

    A function, so that no name keeps the image, whose memory serves the next one.
    """
    own = image if padding is None else image[~padding]
    return own.size, count_beyond_range(own) if is_whole_ct and own.size else 0
