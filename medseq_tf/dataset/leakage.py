"""Leakage: the patients, slices and near copies of slices that two splits share.

A copy is a slice that was re-encoded, resized or brightened a little. Two slices of different
patients are near duplicates if their perceptual hashes differ in at most `DISTANCE` bits and the
same frequencies correlate by at least `CORRELATION`. The hash makes the search fast; the
correlation keeps apart neighbouring patients' slices, which look alike. It is the signs of the 255
lowest frequencies of the slice's cosine transform, brought to 64 x 64 (after Zauner 2010, section
3.2.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd

from medseq_tf.dataset.near_hashes import near
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError

DISTANCE = 16
"""Most bits of 255 in which the hashes of a slice and its copy differ."""
CORRELATION = 0.995
"""Least correlation of the low frequencies of a slice and its copy."""
DISTANCE_WITHOUT_PIXELS = 8
"""As `DISTANCE`, where only the hash of one of the two is there and nothing correlates them."""

LEAST_CONTRAST = 8.0
"""Standard deviation, on the scale 0..255, below which a slice says too little to be compared."""

SOFT_TISSUE = (-160.0, 240.0)
SIDE, FREQUENCIES = 64, 16
WORDS = FREQUENCIES**2 // 64
"""Numbers of 64 bits that a hash takes."""

RUN, UNSEEN = "the run's data", "this data set"
"""The parts of an audit of a data set that a run has not seen."""

_PLACE = ("split", "study", "slice")
PAIR_COLUMNS = ("kind", *_PLACE, *(f"other_{name}" for name in _PLACE), "distance", "correlation")


@dataclass(frozen=True)
class Audit:
    """What the parts of a data set share.

    Attributes:
        parts: studies, patients and slices by split; with folds, by the fold that tests them.
        shared_patients: ids (salted hashes) of patients who are in more than one part.
        pairs: one row a pair of slices of two parts: `kind` (`same slice` or `near duplicate`),
            `split`, `study`, `slice` (from 0), the same of the other, `distance` (bits) and
            `correlation`; the likest first.
        compared: slices that were compared by hash.
        blank: slices that say too little to be compared.
        unreadable: studies that could not be read.
        slices: what a run keeps to know its studies again, see `known_slices`.
    """

    parts: pd.DataFrame
    shared_patients: list[str]
    pairs: pd.DataFrame
    compared: int
    blank: int
    unreadable: list[str]
    slices: pd.DataFrame | None = None

    @property
    def is_clean(self) -> bool:
        """Whether the parts share nothing that was found."""
        return not self.shared_patients and self.pairs.empty

    def text(self, most: int = 10) -> str:
        """Return the audit for a terminal."""
        lines = [
            f"{row.part}: {row.studies} studies of {row.patients} patients, {row.slices} slices"
            for row in self.parts.itertuples()
        ]
        lines.append(f"patients in more than one part: {len(self.shared_patients)}")
        lines += [f"    {patient}" for patient in self.shared_patients[:most]]
        for kind in ("same slice", "near duplicate"):
            pairs = self.pairs[self.pairs["kind"] == kind]
            studies = pairs[["study", "other_study"]].drop_duplicates()
            lines.append(
                f"{kind}s across parts: {len(pairs)}"
                + (f" between {len(studies)} pairs of studies" if len(pairs) else "")
            )
            lines += [
                f"    study {row.study} slice {row.slice} ({row.split}) and study "
                f"{row.other_study} slice {row.other_slice} ({row.other_split}): "
                f"{row.distance} of 255 bits"
                + (
                    f", correlation {row.correlation:.4f}"
                    if row.correlation == row.correlation
                    else ""
                )
                for row in pairs.head(most).itertuples()
            ]
        lines.append(
            f"{self.compared} slices compared; {self.blank} say too little to be compared"
            + (f"; {len(self.unreadable)} studies cannot be read" if self.unreadable else "")
        )
        return "\n".join(lines)


def audit(
    prepared: Prepared,
    splits: Mapping[str, Sequence[str]] | Sequence[Mapping[str, Sequence[str]]],
    distance: int = DISTANCE,
    correlation: float = CORRELATION,
) -> Audit:
    """Look for patients and slices that two splits share.

    Args:
        prepared: the data set.
        splits: study ids by split, or a list of such splits, one a fold: then the parts are the
            folds' test studies, of which any two are on both sides of some fold.
        distance: see `DISTANCE`.
        correlation: see `CORRELATION`.

    Raises:
        InputError: a study that the data set does not have.
    """
    part_of = _parts(prepared, splits)
    rows = np.flatnonzero(part_of != "")
    studies = prepared.studies
    patients = studies["patient_id"].to_numpy()[rows]
    seen = pd.DataFrame({"patient": patients, "part": part_of[rows]}).drop_duplicates()
    shared = sorted(seen.loc[seen["patient"].duplicated(), "patient"].unique())
    hashed = perceptual_hashes(prepared, rows)
    return Audit(
        _counts(studies.iloc[rows], part_of[rows]),
        shared,
        _pairs(prepared, hashed, part_of, distance, correlation),
        len(hashed.rows),
        hashed.blank,
        hashed.unreadable,
        known_slices(prepared, hashed, rows),
    )


# ---------------------------------------------------------------- a run's studies, known again


def known_slices(prepared: Prepared, hashed: PerceptualHashes, rows: np.ndarray) -> pd.DataFrame:
    """Return what is kept of some studies to know them again in another data set.

    It holds no picture: hashes alone, of which no slice can be made again.

    Returns:
        One row a slice: `study`, `patient`, `slice` (from 0), `content` (its hash, see
        `records.slice_hash`; None where it says too little) and `bits` (32 bytes, its
        perceptual hash; None where it says too little).
    """
    telling = zip(hashed.rows.tolist(), hashed.slices.tolist(), hashed.bits, strict=True)
    bits = {(row, place): words.tobytes() for row, place, words in telling}
    table = _slice_table(prepared, rows)
    places = zip(table["row"], table["slice"], strict=True)
    return table.drop(columns="row").assign(
        bits=pd.Series([bits.get(place) for place in places], dtype=object)
    )


def _slice_table(prepared: Prepared, rows: np.ndarray) -> pd.DataFrame:
    """Return `row`, `study`, `patient`, `slice` and `content`, one row a slice."""
    studies = prepared.studies.iloc[rows]
    table = pd.DataFrame(
        {
            "row": rows,
            "study": studies["study_id"].to_numpy(object),
            "patient": studies["patient_id"].to_numpy(object),
            "slice": [list(range(len(hashes))) for hashes in studies["slice_hashes"]],
            "content": [list(hashes) for hashes in studies["slice_hashes"]],
        }
    )
    return table.explode(["slice", "content"], ignore_index=True).astype({"slice": int})


def seen_before(known: pd.DataFrame, prepared: Prepared) -> pd.DataFrame:
    """Return the slices of a data set whose pixels are those of a slice that a run knows.

    The pixels are those of the source, so the size and aspect of either data set, and the salt of
    its ids, make no difference.

    Returns:
        One row a slice: `study`, `patient`, `slice`, and the first of the `known_slices` that it
        equals: `other_study`, `other_patient`, `other_slice`.
    """
    mine = _slice_table(prepared, np.arange(len(prepared))).drop(columns="row")
    mine = mine.dropna(subset="content")
    first = known.dropna(subset="content").drop_duplicates("content")
    first = first[["content", "study", "patient", "slice"]]
    first = first.rename(columns={c: f"other_{c}" for c in ("study", "patient", "slice")})
    return mine.merge(first, on="content").drop(columns="content")


def audit_unseen(
    known: pd.DataFrame, prepared: Prepared, distance: int = DISTANCE_WITHOUT_PIXELS
) -> Audit:
    """Look for copies, in a data set that a run has not seen, of slices of its own studies.

    Of the run's slices only their hashes are known, so there is no correlation to tell a copy from
    a slice that looks alike, and the hashes have to be nearer.
    """
    hashed = perceptual_hashes(prepared, np.arange(len(prepared)))
    theirs = known.dropna(subset="bits").reset_index(drop=True)
    words = b"".join(theirs["bits"]) if len(theirs) else b""
    bits = np.frombuffer(words, np.uint64).reshape(-1, WORDS)
    ids = prepared.studies["study_id"].to_numpy()
    hashes = prepared.studies["slice_hashes"]
    studies, slices, contents = (theirs[name].to_numpy() for name in ("study", "slice", "content"))
    rows = []
    for close in near(hashed.bits, bits, distance):
        for mine, other, differing in zip(*close, strict=True):
            row, place = int(hashed.rows[mine]), int(hashed.slices[mine])
            kind = _kind(hashes.iat[row][place], contents[other])
            there = (RUN, studies[other], int(slices[other]))
            rows.append((kind, UNSEEN, ids[row], place, *there, int(differing), np.nan))
    parts = pd.DataFrame(
        {
            "part": [RUN, UNSEEN],
            "studies": [known["study"].nunique(), len(prepared)],
            "patients": [known["patient"].nunique(), prepared.studies["patient_id"].nunique()],
            "slices": [len(known), int(prepared.studies["slices"].sum())],
        }
    )
    shared = sorted(set(known["patient"]) & set(prepared.studies["patient_id"]))
    return Audit(parts, shared, _table(rows), len(hashed.rows), hashed.blank, hashed.unreadable)


# ------------------------------------------------------------------------------ the parts of a set


def _parts(
    prepared: Prepared, splits: Mapping[str, Sequence[str]] | Sequence[Mapping[str, Sequence[str]]]
) -> np.ndarray:
    """Return the part of each row of the data set, `(studies,)` str; empty for none."""
    row_of = {study: row for row, study in enumerate(prepared.studies["study_id"])}
    if isinstance(splits, Mapping):
        parts = dict(splits)
    else:
        parts = {f"fold {number}": split["test"] for number, split in enumerate(splits, start=1)}
    part_of = np.full(len(row_of), "", dtype=object)
    for part, members in parts.items():
        unknown = [study for study in members if study not in row_of]
        if unknown:
            raise InputError(
                f"{prepared.path}: has no study {unknown[0]} (and {len(unknown) - 1} more of "
                f"{part}): the splits are of another data set"
            )
        part_of[[row_of[study] for study in members]] = part
    return part_of


def _counts(studies: pd.DataFrame, part_of: np.ndarray) -> pd.DataFrame:
    grouped = studies.assign(part=part_of).groupby("part", sort=False)
    counts = grouped.agg(
        studies=("study_id", "size"), patients=("patient_id", "nunique"), slices=("slices", "sum")
    )
    order = [name for name in ("train", "validation", "test") if name in counts.index]
    return counts.loc[order or sorted(counts.index, key=lambda p: (len(p), p))].reset_index()


# ------------------------------------------------------------------------------------------ pairs


def _pairs(
    prepared: Prepared,
    hashed: PerceptualHashes,
    part_of: np.ndarray,
    distance: int,
    correlation: float,
) -> pd.DataFrame:
    patients = np.unique(prepared.studies["patient_id"], return_inverse=True)[1]
    part, patient = part_of[hashed.rows].astype(str), patients[hashed.rows]
    pairs: list[tuple[int, int, int, float]] = []
    for name in np.unique(part)[:-1]:
        here, there = np.flatnonzero(part == name), np.flatnonzero(part > name)
        for a, b, bits in near(hashed.bits[here], hashed.bits[there], distance):
            a, b = here[a], there[b]
            strangers = patient[a] != patient[b]
            a, b, bits = a[strangers], b[strangers], bits[strangers]
            left, right = (hashed.frequencies[i].astype(np.float32) for i in (a, b))
            alike = (left * right).sum(axis=1)
            copies = alike >= correlation
            pairs += zip(a[copies], b[copies], bits[copies], alike[copies], strict=True)
    ids, hashes = prepared.studies["study_id"].to_numpy(), prepared.studies["slice_hashes"]
    rows = []
    for first, second, differing, likeness in pairs:
        row, place = int(hashed.rows[first]), int(hashed.slices[first])
        other, other_place = int(hashed.rows[second]), int(hashed.slices[second])
        kind = _kind(hashes.iat[row][place], hashes.iat[other][other_place])
        places = (part[first], ids[row], place, part[second], ids[other], other_place)
        rows.append((kind, *places, int(differing), min(float(likeness), 1.0)))
    return _table(rows)


def _kind(content: str | None, other_content: str | None) -> str:
    """Say what two slices that look alike are to each other, by the hashes of their pixels."""
    same = content is not None and content == other_content
    return "same slice" if same else "near duplicate"


def _table(rows: list[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(PAIR_COLUMNS))
    order = ["kind", "distance", "study", "slice", "other_study", "other_slice"]
    return table.sort_values(order, ascending=[False] + [True] * 5, ignore_index=True)


# ------------------------------------------------------------------------- perceptual hashes


@dataclass(frozen=True)
class PerceptualHashes:
    """The slices that say something: where each stands and what it looks like.

    Attributes:
        rows: row of the data set, `(slices,)`.
        slices: position in its study, `(slices,)`.
        bits: the hash, `(slices, 4)` uint64.
        frequencies: unit vectors of the low frequencies, `(slices, 255)` float16.
        blank: number of slices that say too little.
        unreadable: studies that could not be read.
    """

    rows: np.ndarray
    slices: np.ndarray
    bits: np.ndarray
    frequencies: np.ndarray
    blank: int
    unreadable: list[str]


def perceptual_hashes(prepared: Prepared, rows: Sequence[int] | np.ndarray) -> PerceptualHashes:
    """Hash all slices of some studies; each study is decoded once."""
    owners: list[int] = []
    positions: list[int] = []
    vectors: list[np.ndarray] = []
    unreadable: list[str] = []
    blank = 0
    for row in map(int, rows):
        try:
            images = prepared.slices(row)
            if prepared.channels > 1:
                images = images[..., 0]
            images = _to_grey(images, prepared.info)
        except InputError:
            unreadable.append(str(prepared.studies["study_id"].iat[row]))
            continue
        telling = np.flatnonzero(images.std(axis=(1, 2)) >= LEAST_CONTRAST)
        blank += len(images) - len(telling)
        vectors += [_low_frequencies(images[i]) for i in telling]
        positions += telling.tolist()
        owners += [row] * len(telling)
    frequencies = np.array(vectors, np.float16).reshape(-1, FREQUENCIES**2 - 1)
    bits = np.packbits(np.pad(frequencies > 0, ((0, 0), (0, 1))), axis=1).view(np.uint64)
    return PerceptualHashes(
        np.array(owners, np.int64),
        np.array(positions, np.int64),
        bits,
        frequencies,
        blank,
        unreadable,
    )


def _to_grey(images: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
    """Bring intensities `(T, H, W)` to 0..255: HU by a soft-tissue window, MRI by its range."""
    if images.dtype == np.uint8:
        return images.astype(np.float32)
    low, high = SOFT_TISSUE if info["unit"] == "HU" else np.quantile(images, [0.01, 0.99])
    return np.clip((images - low) * (255 / max(high - low, 1)), 0, 255).astype(np.float32)


def _low_frequencies(image: np.ndarray) -> np.ndarray:
    """Return the unit vector `(255,)` of the lowest frequencies without the mean."""
    method = cv2.INTER_AREA if min(image.shape) > SIDE else cv2.INTER_LINEAR
    image = cv2.resize(image, (SIDE, SIDE), interpolation=method)
    vector = cv2.dct(image)[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return vector / max(float(np.linalg.norm(vector)), 1e-6)
