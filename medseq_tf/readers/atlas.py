"""The reader of ATLAS, release 1.2 or 2.0: sequences of T1 slices with lesion masks.

    1.2   <id>_t1w_deface_stx.nii.gz  with  <id>_LesionSmooth_stx.nii.gz, <id>_LesionSmooth_1_stx...
    2.0   sub-<id>_ses-<n>_space-..._T1w.nii.gz  with  ..._label-L_desc-T1lesion_mask.nii.gz

in folders of any shape, `.nii` or `.nii.gz`. A patient is a subject; its sessions are its studies.
One subject's name in two folders of that name (`A/sub-1/...`, `B/sub-1/...`), or one image's name
in two folders of other names, may be two people, and is an error.

Masks. All masks of a session are merged. Lesion is what lies above half of a mask's largest value,
so that 0/1 and 0/255 say the same. A mask on another grid than its image is resampled to it (the
nearest voxel in space) if its extent covers 90% of the image's; otherwise, as what it leaves out is
not known to be free of lesion, the session is left out. Either is an audit entry.

Sequences. A session's volume is brought to one orientation (`orientation`), cut along `axis`, and
the slices from `extent[0]` to `extent[1]` of the stack kept, both rounded down: 18 to 131 of 189
for the paper's 10% to 70%. A slice with one lesion voxel is a lesion slice. With the defaults, the
paper's protocol, a session gives two sequences: 15 of its lesion slices (label 1) and 15 of its
lesion-free ones (label 0), drawn without replacement, in order. One that has too few lesion slices
is left out and counted as `subject left out`. Draws depend on the seed and the session alone.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.execution.processes import ENDED, mapped
from medseq_tf.readers.folder import Folder
from medseq_tf.readers.intensities import DTYPES, stored_intensities
from medseq_tf.readers.matching import normal_id
from medseq_tf.readers.storage import is_url
from medseq_tf.readers.study import AuditEntry, Slices, SourceIndex, StudySource, UnreadableStudy
from medseq_tf.readers.volume_file import UnreadableVolume
from medseq_tf.readers.volumes import Axis, Spacing, checked_axis, checked_spacing, cut_image

LABEL = "lesion"
SMALLEST_COVERAGE = 0.9

_IMAGE = re.compile(
    r"(?P<key>(?P<patient>sub-[^_]+).*?)_T1w\.nii(\.gz)?|(?P<id>.+)_t1w(_deface)?_stx\.nii(\.gz)?",
    re.IGNORECASE,
)
_MASK = re.compile(
    r"(?P<key>sub-.+?)(_label-[^_]+)?(_desc-[^_]+)?_mask\.nii(\.gz)?"
    r"|(?P<id>.+)_LesionSmooth(_\d+)?_stx\.nii(\.gz)?",
    re.IGNORECASE,
)
_TIMEPOINT = re.compile(r"(?P<patient>c\d+s\d+)t\d+", re.IGNORECASE)


def is_image_name(name: str) -> bool:
    """Whether a file is called as a T1 image of ATLAS is."""
    return _IMAGE.fullmatch(name) is not None


def is_mask_name(name: str) -> bool:
    """Whether a file is called as a lesion mask of ATLAS is."""
    return _MASK.fullmatch(name) is not None


@dataclass(frozen=True)
class Session:
    """A subject's T1 image and its lesion masks, as paths relative to the source."""

    patient: str
    image: str
    masks: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """How sequences are drawn from a session's slices.

    Attributes:
        sequences: a session: the half (rounded up) with lesion slices, the others without.
        length: slices of a sequence.
        lesion_share: of the slices of a lesion sequence, 1 being the paper's; at least one is.
        neighbours: the slices of a sequence stand next to each other. A lesion sequence then has
            its share of lesion slices or, where no place has exactly that, the next larger number.
        whole: one study a session instead, all its slices, labelled whether one has a lesion.
        extent: the part of the stack that is used.
        seed: of the draws.
    """

    sequences: int = 2
    length: int = 15
    lesion_share: float = 1.0
    neighbours: bool = False
    whole: bool = False
    extent: tuple[float, float] = (0.1, 0.7)
    seed: int = 0

    def __post_init__(self):
        low, high = self.extent
        checks = {
            "sequences": (_is_count(self.sequences), "a whole number, 1 or more"),
            "length": (_is_count(self.length), "a whole number, 1 or more"),
            "lesion_share": (0 < self.lesion_share <= 1, "above 0, at most 1"),
            "extent": (0 <= low < high <= 1, "two shares of the stack, from 0 to 1, in order"),
            "seed": (isinstance(self.seed, int) and self.seed >= 0, "a whole number, 0 or more"),
        }
        for name, (valid, wanted) in checks.items():
            if not valid:
                raise InputError(f"atlas: {name}={getattr(self, name)!r} is not {wanted}")

    @property
    def lesion_slices(self) -> int:
        """Lesion slices of a lesion sequence."""
        return max(1, round(self.lesion_share * self.length))

    def window(self, slices: int) -> range:
        """The slices of a stack that are used."""
        low, high = (int(share * slices + 1e-9) for share in self.extent)
        return range(low, high)

    def draw(self, has_lesion: np.ndarray, name: str) -> dict[str, tuple[int, ...]]:
        """Draw a session's sequences.

        Args:
            has_lesion: (T,) whether a slice of the window has a lesion.
            name: the session's, which with the seed makes the draws.

        Returns:
            `lesion-1`, `lesion-free-1`, ... -> places in the window, in order; none that cannot be.
        """
        digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
        rng = np.random.default_rng((self.seed, int.from_bytes(digest[:8], "little")))
        drawn = {}
        for number in range(1, self.sequences + 1):
            is_lesion = number % 2 == 1
            draw = self._draw_neighbours if self.neighbours else self._draw_anywhere
            places = draw(has_lesion, self.lesion_slices if is_lesion else 0, rng)
            if places is not None:
                kind = "lesion" if is_lesion else "lesion-free"
                drawn[f"{kind}-{(number + 1) // 2}"] = tuple(map(int, places))
        return drawn

    def _draw_anywhere(
        self, has_lesion: np.ndarray, lesions: int, rng: np.random.Generator
    ) -> np.ndarray | None:
        lesion, free = np.flatnonzero(has_lesion), np.flatnonzero(~has_lesion)
        if len(lesion) < lesions or len(free) < self.length - lesions:
            return None
        chosen = rng.choice(lesion, lesions, replace=False)
        others = rng.choice(free, self.length - lesions, replace=False)
        return np.sort(np.concatenate([chosen, others]))

    def _draw_neighbours(
        self, has_lesion: np.ndarray, lesions: int, rng: np.random.Generator
    ) -> np.ndarray | None:
        if len(has_lesion) < self.length:
            return None
        counts = np.convolve(has_lesion, np.ones(self.length, int), "valid")
        enough = counts[counts >= lesions] if lesions else counts[counts == 0]
        if not enough.size:
            return None
        start = rng.choice(np.flatnonzero(counts == enough.min()))
        return np.arange(start, start + self.length)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


@dataclass(frozen=True)
class AtlasStudy(StudySource):
    """Some slices of a session; `reports` on one study of each: entries do not repeat."""

    root: str
    session: Session
    axis: Axis
    spacing: Spacing
    places: tuple[int, ...]
    reports: bool

    def read(self) -> Slices:
        """Read the session, unless it was the last one read, and take its slices."""
        files = (self.session.image, *self.session.masks)
        stamps = tuple(_stamp(Path(self.root, file)) for file in files)
        images, masks, audit_entries = _session_slices(
            self.root, self.session, self.axis, self.spacing, stamps
        )
        return Slices(
            [images[place] for place in self.places],
            [masks[place] for place in self.places],
            list(audit_entries) if self.reports else [],
            [f"{self.session.image} slice {place + 1}" for place in self.places],
        )


def index_atlas(
    source: str | Path,
    sequences: int = 2,
    length: int = 15,
    lesion_share: float = 1.0,
    neighbours: bool = False,
    whole: bool = False,
    extent: tuple[float, float] = (0.1, 0.7),
    seed: int = 0,
    axis: Axis = "axial",
    spacing: float | tuple[float, float, float] | None = None,
    workers: int | None = None,
) -> SourceIndex:
    """Find the sessions of an ATLAS release, read their masks and draw sequences.

    Args:
        source: the folder.
        sequences: see `Protocol`, as the other arguments up to `seed`.
        length: slices of a sequence.
        lesion_share: of the slices of a lesion sequence.
        neighbours: whether the slices of a sequence stand next to each other.
        whole: whole sessions labelled "has a lesion" instead of sequences.
        extent: the part of the stack that is used.
        seed: of the draws.
        axis: `axial`, `coronal`, `sagittal`, or the file's own axis 0, 1 or 2.
        spacing: mm to resample to, one number or x, y, z; default: nothing is resampled.
        workers: processes that read masks; default: one a core. 1: this process.

    Raises:
        InputError: if the source or a setting cannot be used.
    """
    axis, spacing = checked_axis(axis), checked_spacing(spacing)
    low, high = extent
    protocol = Protocol(sequences, length, lesion_share, neighbours, whole, (low, high), seed)
    if is_url(source):
        raise InputError("atlas reads a folder, not a URL; copy it to this machine first")
    folder = Folder(Path(source), (".nii", ".nii.gz"))
    sessions = _sessions(folder)
    tasks = [(str(folder.root), session, axis, spacing) for session in sessions]
    studies = []
    profiles = mapped(_profile, tasks, lambda task: _Profile(reason=ENDED), workers)
    for session, profile in zip(sessions, profiles, strict=True):
        folder.audit_entries += profile.audit_entries
        if profile.reason:
            folder.add_entry("study left out", session.image, profile.reason)
        else:
            studies += _studies(folder, session, profile, protocol, axis, spacing)
    resolved = {
        "modality": "MR",
        "axis": axis,
        "spacing": spacing and list(spacing),
        "whole": whole,
        "extent": list(protocol.extent),
    }
    return SourceIndex(
        studies,
        [LABEL],
        "MR",
        folder.audit_entries,
        folder.listing,
        folder.root,
        DTYPES["MR"],
        resolved,
    )


def _sessions(folder: Folder) -> list[Session]:
    images: dict[tuple[PurePosixPath, str], tuple[str, str]] = {}
    masks: dict[tuple[PurePosixPath, str], list[str]] = defaultdict(list)
    for file in folder.files:
        image, mask = _IMAGE.fullmatch(file.path.name), _MASK.fullmatch(file.path.name)
        if mask:
            masks[file.path.parent, mask["key"] or mask["id"]].append(str(file.path))
        elif image:
            name = image["patient"] or image["id"]
            timepoint = _TIMEPOINT.fullmatch(name)
            patient = timepoint["patient"] if timepoint else name
            key = file.path.parent, image["key"] or name
            if key in images:
                folder.add_entry(
                    "study left out", file.path, f"the same session as {images[key][1]}"
                )
            images.setdefault(key, (patient, str(file.path)))
        else:
            folder.add_entry(
                "odd file", file.path, "neither a T1 image nor a lesion mask by its name"
            )
    if not images:
        raise InputError(
            f"{folder.root} holds no ATLAS image; its names are like "
            f"sub-r001s001_ses-1_space-..._T1w.nii.gz (2.0) or 031768_t1w_deface_stx.nii.gz (1.2)"
        )
    _refuse_subjects_in_two_places(images.values())
    for key in masks.keys() - images.keys():
        for mask_name in masks[key]:
            folder.add_entry("mask without an image", mask_name)
    sessions = []
    for key, (patient, image_name) in images.items():
        if key in masks:
            sessions.append(Session(normal_id(patient), image_name, tuple(masks[key])))
        else:
            folder.add_entry("study left out", image_name, "no lesion mask beside it")
    return sessions


def _refuse_subjects_in_two_places(images: Iterable[tuple[str, str]]) -> None:
    """Refuse subjects that may be two: by name one, but in two places or spelt in two ways.

    Args:
        images: subject and path of each. A subject's place is the folder that is called like it;
            without one, no two of its images have one name.
    """
    first: dict[str, tuple[str, str, str]] = {}
    without_folder: dict[str, str] = {}
    for patient, image in images:
        *folders, name = PurePosixPath(image).parts
        depth = folders.index(patient) + 1 if patient in folders else 0
        place = "/".join(folders[:depth])
        other, other_place, other_image = first.setdefault(
            normal_id(patient), (patient, place, image)
        )
        if other != patient:
            raise InputError(
                f"{other_image} and {image} differ in their subject's name only in spaces or in "
                "the Unicode form of letters; rename one"
            )
        if other_place == place and not depth:
            other_image = without_folder.setdefault(name, image)
        if other_place != place or (not depth and other_image != image):
            raise InputError(
                f"{other_image} and {image} have one subject's name and may be two subjects; give "
                "two subjects two names, or put one subject's sessions into a folder of its name"
            )


def _studies(
    folder: Folder,
    session: Session,
    profile: _Profile,
    protocol: Protocol,
    axis: Axis,
    spacing: Spacing,
) -> list[AtlasStudy]:
    window = protocol.window(len(profile.has_lesion))
    has_lesion = np.array([profile.has_lesion[place] for place in window], bool)
    if protocol.whole:
        drawn = {"": tuple(range(len(window)))} if len(window) else {}
    else:
        drawn = protocol.draw(has_lesion, session.image)
    if not any(not name.startswith("lesion-free") for name in drawn):
        counts = f"{int(has_lesion.sum())} lesion slices of {len(window)}"
        folder.add_entry("subject left out", session.image, f"too few for a sequence: {counts}")
        return []
    if not protocol.whole and len(drawn) < protocol.sequences:
        folder.add_entry("no lesion-free sequence", session.image, "too few slices without lesion")
    return [
        AtlasStudy(
            source=f"{session.image}/{name}" if name else session.image,
            patient=session.patient,
            labels={LABEL: float(has_lesion[list(places)].any())},
            split=None,
            root=str(folder.root),
            session=session,
            axis=axis,
            spacing=spacing,
            places=tuple(window[place] for place in places),
            reports=number == 0,
        )
        for number, (name, places) in enumerate(drawn.items())
    ]


# ------------------------------------------------------------------------------ reading a session


@dataclass(frozen=True)
class _Profile:
    """Which slices of a session have a lesion, or the reason why it is left out."""

    has_lesion: tuple[bool, ...] = ()
    audit_entries: list[AuditEntry] = field(default_factory=list)
    reason: str = ""


def _profile(task: tuple[str, Session, Axis, Spacing]) -> _Profile:
    from medseq_tf.readers.simpleitk_volume import VolumeFile

    root, session, axis, spacing = task
    try:
        image = VolumeFile(Path(root, session.image)).geometry()
        mask, audit_entries = _lesion_mask(root, session, image)
        slices = _cut_mask(mask, axis, spacing)
    except UnreadableVolume as error:
        return _Profile(reason=str(error))
    return _Profile(tuple(bool(plane.any()) for plane in slices), audit_entries)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _session_slices(
    root: str, session: Session, axis: Axis, spacing: Spacing, stamps: tuple
) -> tuple[list[np.ndarray], np.ndarray, tuple[AuditEntry, ...]]:
    """Read a session's slices, their masks, and audit entries; the last one read is kept.

    Args:
        root: the source.
        session: which one.
        axis: see `index_atlas`.
        spacing: see `index_atlas`.
        stamps: what changes when a file does.
    """
    from medseq_tf.readers.simpleitk_volume import read_volume

    try:
        image, audit_entries = read_volume(Path(root, session.image), session.image)
        mask, _ = _lesion_mask(root, session, image)
        masks = _cut_mask(mask, axis, spacing)
        cut = cut_image(image, axis, spacing)
    except UnreadableVolume as error:
        raise UnreadableStudy(str(error)) from None
    images, intensity_entries = stored_intensities(cut, "MR", session.image)
    return images, masks, (*audit_entries, *intensity_entries)


def _cut_mask(mask, axis: Axis, spacing: Spacing) -> np.ndarray:
    return np.ascontiguousarray(cut_image(mask, axis, spacing, nearest=True))


def _lesion_mask(root: str, session: Session, image):
    """Merge the masks of a session on the grid of its image: a uint8 image of 0 and 1."""
    from medseq_tf.readers import simpleitk_volume as volume

    merged = np.zeros(image.GetSize(), np.uint8)
    audit_entries = []
    for name in session.masks:
        try:
            mask, _ = volume.read_volume(Path(root, name), name)
        except UnreadableVolume as error:
            raise UnreadableVolume(f"a lesion mask cannot be used: {error}") from None
        values = np.nan_to_num(volume.voxels(mask))
        lesion = volume.image_like(mask, (values > max(values.max(), 0) / 2).astype(np.uint8))
        if not volume.same_grid(lesion, image):
            coverage = volume.covered(image, lesion)
            detail = f"its extent covers {coverage:.0%} of the image's"
            if coverage < SMALLEST_COVERAGE:
                raise UnreadableVolume(f"a lesion mask is on another grid and {detail}")
            audit_entries.append(AuditEntry("mask on another grid", name, f"resampled; {detail}"))
            lesion = volume.nearest_on(lesion, image)
        merged |= volume.voxels(lesion)
    return volume.image_like(image, merged), audit_entries
