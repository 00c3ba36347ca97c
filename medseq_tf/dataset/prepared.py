"""A prepared data set: its studies and, study by study, its slices, from the folder of `prepare`.

dataset.json      format version, labels, modality, unit, size, counts, fingerprint, preparation
studies.parquet   one row a study
shards/*.tfrecord one `tf.train.Example` a study, each slice a lossless PNG
audit.json, audit.txt   what was odd in the source
test_reads.jsonl  how often its patients answered for figures, once they have; see `holdout_reuse`
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from medseq_tf import files
from medseq_tf.dataset.records import png_channels
from medseq_tf.dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, Value, decode_example, unframe
from medseq_tf.errors import InputError, note, printable
from medseq_tf.readers.classes import LABELS, Classes
from medseq_tf.readers.columns import COVARIATE
from medseq_tf.readers.series import Series, are_texts, series_text

FORMAT_VERSION = 2
LABELS_FILE = "CSV"
"""What `dataset.json` calls a file of labels; its name may say whose it is."""
READS = "test_reads.jsonl"
KEYS = (
    *("label_names", "modality", "unit", "size", "storage", "counts", "fingerprint"),
    *("preparation", "studies", "shards"),
)

_whole: dict[tuple[int, ...], str] = {}
"""The SHA-256 of the shards that this process has read, by what tells a changed file."""
_hashing = threading.Lock()


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared data set, read from its folder; slices are read when they are asked for.

    A shard's SHA-256 is compared with that of `dataset.json` when the process first reads from it,
    a study's checksum and its id whenever it is read: a shard of another preparation, or in
    another's place, gives an error, never other slices.

    Attributes:
        path: the folder.
        info: the content of `dataset.json`.
        studies: one row a study: `study_id`, `patient_id` (salted hashes), `slices` (their number),
            `split` (or null), `content_hash`, `slice_hashes` (None for a slice that says too
            little), `source` (relative to the source), `shard`, `offset`, `length` (where its
            example lies) and one float column `label.<name>` a label, nan where unknown. Where they
            were asked for: `site` (a name or `site-<hash>`), `date` (its rank, 0 for the oldest)
            and `covariate.<name>` (a number or a category), null where missing.
    """

    path: Path
    info: dict[str, Any]
    studies: pd.DataFrame

    @classmethod
    def open(cls, data: str | os.PathLike | Prepared) -> Prepared:
        """`load` a prepared data set; one that is open already is returned as it is."""
        return data if isinstance(data, Prepared) else cls.load(data)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Prepared:
        """Open a prepared data set and check that all its files are there, whole.

        Raises:
            InputError: if the folder is not a prepared data set, is of another format version, or
                lacks files or parts of them.
        """
        path = Path(path)
        info = _read_info(path)
        _check_shards(path, info)
        try:
            table = (path / "studies.parquet").read_bytes()
        except OSError as error:
            raise InputError(f"{path}/studies.parquet cannot be read; prepare again") from error
        if hashlib.sha256(table).hexdigest() != info["studies"]["sha256"]:
            raise InputError(
                f"{path}/studies.parquet is not the one that dataset.json was written with; "
                "prepare again"
            )
        studies = files.read_parquet(table)
        needed = {f"label.{name}" for name in info["label_names"]} | _other_columns(info)
        if (
            not needed <= set(studies)
            or not set(studies["shard"]) <= set(info["shards"])
            or any(
                is_numeric_dtype(studies[f"{COVARIATE}{name}"]) != (covariate["kind"] == "number")
                for name, covariate in covariates_of(info).items()
            )
        ):
            raise InputError(
                f"{path}/dataset.json names columns or shards that studies.parquet does not have; "
                "prepare again"
            )
        return cls(path, info, studies)

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def contents(self) -> dict[str, str]:
        """The content hash of each study, by id."""
        return dict(zip(self.studies["study_id"], self.studies["content_hash"], strict=True))

    @property
    def label_names(self) -> list[str]:
        """The labels, in the order of the columns of `labels`."""
        return list(self.info["label_names"])

    @property
    def classes(self) -> Classes | None:
        """The classes, where the labels exclude each other; None for yes/no labels."""
        return classes_of(self.info)

    @property
    def outputs(self) -> str:
        """What a model of these studies tells: `labels`, `classes` or `ordered`."""
        return self.classes.outputs if self.classes else LABELS

    @property
    def covariates(self) -> dict[str, dict[str, Any]]:
        """What else is known of studies: by name its `kind`, number or category, and categories."""
        return covariates_of(self.info)

    @property
    def series(self) -> Series | None:
        """The series that studies have, and how they are read; None where each is one stack."""
        return series_of(self.info)

    @property
    def channels(self) -> int:
        """The channels of a slice: 1, or as many as there are series that are read so."""
        return self.series.channels if self.series else 1

    @property
    def marked_series(self) -> tuple[str, ...]:
        """The names of the series that follow one another in a study; none where there are none."""
        return self.series.names if self.series and self.series.in_turn else ()

    def series_of(self, row: int) -> np.ndarray:
        """Return (L,) int32: the number of its series for each slice of a study; zeros without."""
        if not self.marked_series:
            return np.zeros(self.studies["slices"].iat[row], np.int32)
        return np.asarray(self.studies["series"].iat[row], np.int32)

    @property
    def labels(self) -> np.ndarray:
        """(studies, labels) float32: 0, 1, or nan where unknown."""
        return self.studies[[f"label.{name}" for name in self.label_names]].to_numpy(np.float32)

    def with_classes(self, classes: Classes) -> Prepared:
        """Return these studies with other names' classes, such as a run's, in their order.

        Args:
            classes: at least those that a study has; the others have none.

        Raises:
            InputError: a study's class is not among them, or these are yes/no labels.
        """
        expected = ", ".join(classes.names)
        if self.classes is None:
            raise InputError(
                f"{self.path}: has yes/no labels ({', '.join(self.label_names)}), not classes that "
                f"exclude each other ({expected}); prepare it again with --classes"
            )
        present = (self.labels == 1).any(axis=0)
        own = [name for name, is_there in zip(self.label_names, present, strict=True) if is_there]
        if unknown := [name for name in own if name not in classes.names]:
            raise InputError(
                f"{self.path}: has the classes {', '.join(own)}, the model knows "
                f"{expected}, and not {', '.join(unknown)}"
            )
        if self.classes == classes:
            return self
        columns = [f"label.{name}" for name in classes.names]
        is_known = self.studies[f"label.{self.label_names[0]}"].notna()
        one_hot = self.studies.reindex(columns=columns, fill_value=0.0)
        one_hot = one_hot.where(is_known, np.nan)
        others = self.studies.drop(columns=[f"label.{name}" for name in self.label_names])
        info = {**self.info, "label_names": list(classes.names), "classes": classes.to_json()}
        return dataclasses.replace(self, info=info, studies=pd.concat([others, one_hot], axis=1))

    def with_series(self, series: Series | None) -> Prepared:
        """Return these studies with series that are numbered as other ones, such as a run's.

        Of those that follow one another some may lack. Where no name is the same, series are taken
        in their order, which is noted: patterns of another hospital's descriptions may differ.

        Raises:
            InputError: these are read in another way, or which is which is in doubt.
        """
        own = self.series
        if own == series:
            return self
        expected, has = (series_text(s) for s in (series, own))
        if own is None or series is None or own.read_as != series.read_as:
            raise InputError(
                f"{self.path}: its studies are {has}, those that the model knows {expected}; "
                "prepare it again as those were (--series-as, --series)"
            )
        known, numbers = list(series.names), list(range(len(series.names)))
        same = [known.index(name) for name in own.names if name in known]
        if not same and len(own.names) == len(known):
            note(f"{self.path}: {has} are taken for {expected}, in this order")
        elif own.read_as == "channels" or len(same) < len(own.names) or same != sorted(same):
            there = [name for name in known if name in own.names]
            wanted = there if own.read_as == "sequence" and len(there) > 1 else known
            raise InputError(
                f"{self.path}: has {has}, the model knows {expected}; prepare it again with "
                f"--series {','.join(wanted)}"
            )
        else:
            numbers = same
        info = {**self.info, "series": series.to_json()}
        if own.read_as == "channels":
            return dataclasses.replace(self, info=info)
        of_slices = [np.asarray(numbers)[of_study] for of_study in self.studies["series"]]
        studies = self.studies.assign(series=pd.Series(of_slices, self.studies.index))
        return dataclasses.replace(self, info=info, studies=studies)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content, the labels and the preparation of all studies."""
        return self.info["fingerprint"]

    @property
    def audit(self) -> dict[str, Any]:
        """What was odd in the source: `counts` by kind and the list of `entries`."""
        audit = json.loads((self.path / "audit.json").read_text(encoding="utf-8"))
        if "findings" in audit:  # as version 0.1 called them
            audit["entries"] = audit.pop("findings")
        return audit

    def audit_text(self, most: int | None = 10) -> str:
        """The audit to be printed, with the first `most` audit entries of each kind (None: all).

        Of classes, and where sites are known, it says how many studies are of each.
        """
        counts, *entries = audit_text(self.audit, most).splitlines(keepends=True)
        return "".join([counts, *self._shares(), *entries])

    def _shares(self) -> Iterator[str]:
        """Say how many studies are of each class and of each site, a line each."""
        if self.classes:
            ordered = ", lowest first" if self.classes.ordered else ""
            counts = {name: self.studies[f"label.{name}"].sum() for name in self.classes.names}
            yield f"{self.classes.column}{ordered}: {_listed(counts)}\n"
        if "site" in self.studies:
            yield f"sites: {_listed(self.studies['site'].value_counts().to_dict())}\n"

    def verify(self) -> None:
        """Read all shards and compare them with `dataset.json`; each once in a process.

        Raises:
            InputError: if a shard is another than the one that `prepare` wrote.
        """
        for shard in self.info.get("shards", ()):
            self._open(shard).close()

    def record(self, row: int) -> bytes:
        """Return the serialised `tf.train.Example` of the study at `row`; safe from any thread.

        Raises:
            InputError: if its shard is another than the one that `prepare` wrote, or the study's
                checksum does not fit.
        """
        shard, offset, length = (self.studies[c].iat[row] for c in ("shard", "offset", "length"))
        with self._open(shard) as file:
            try:
                file.seek(offset - HEADER_BYTES)
                return unframe(file.read(HEADER_BYTES + length + FOOTER_BYTES))
            except (OSError, ValueError):
                raise self._damaged(row) from None

    def _open(self, shard: str) -> io.FileIO:
        """Open a shard that is known to be whole."""
        path = self.path / "shards" / shard
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            raise InputError(f"{path} is missing; copy the data set again, whole") from None
        try:
            if _digest(file) != self.info["shards"][shard]["sha256"]:
                raise InputError(
                    f"{path} is not the shard that dataset.json was written with (its SHA-256 "
                    "differs); copy the data set again, whole, or prepare again"
                )
        except BaseException:
            file.close()
            raise
        return file

    def encoded_slices(self, row: int) -> list[bytes]:
        """Return the PNG files of the slices of the study at `row`, in scan order."""
        return [bytes(png) for png in self._example(row)["slices"]]

    def _example(self, row: int) -> dict[str, Value]:
        """Return the features of the study at `row`."""
        record = self.record(row)
        try:
            example = decode_example(record)
            study_id, slices = bytes(example["study_id"][0]).decode(), len(example["slices"])
            masks = len(example.get("masks", example["slices"]))
        except (ValueError, LookupError, TypeError):
            raise self._damaged(row) from None
        count = self.studies["slices"].iat[row]
        if study_id != self.studies["study_id"].iat[row] or not slices == masks == count:
            raise self._damaged(row)
        return example

    def slices(self, row: int, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Decode slices of the study at `row`.

        Returns:
            (T, H, W) intensities in `info["unit"]`: uint8 (photographs), int16 or uint16; of
            several `channels` (T, H, W, channels).
        """
        dtype, offset = self.info["storage"]["dtype"], self.info["storage"]["offset"]
        stored = self._decoded(row, self._example(row)["slices"], indices, dtype, self.channels)
        return (stored.astype(np.int32) + offset).astype(np.int16) if offset else stored

    def masks(
        self, row: int, indices: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray | None:
        """Return (T, H, W) uint8 lesion masks of 0 and 1 of the study at `row`; None without."""
        encoded = self._example(row).get("masks")
        if encoded is None:
            return None
        return (self._decoded(row, encoded, indices, "uint8") > 0).astype(np.uint8)

    def _decoded(
        self,
        row: int,
        encoded: Value,
        indices: Sequence[int] | np.ndarray | None,
        dtype: str,
        channels: int = 1,
    ) -> np.ndarray:
        """Decode PNG files, all or some of them, to (T, size, size), perhaps of channels."""
        slices: list[Any] = []
        try:
            for png in encoded if indices is None else [encoded[i] for i in indices]:
                slices.append(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))
        except (ValueError, LookupError, TypeError, cv2.error):
            raise self._damaged(row) from None
        in_file = png_channels(channels) if channels > 1 else []
        shape = (self.info["size"], self.info["size"], *([len(in_file)] if in_file else []))
        if any(image is None or image.shape != shape or image.dtype != dtype for image in slices):
            raise self._damaged(row)
        stack = np.stack(slices)
        return stack[..., [in_file.index(c) for c in range(channels)]] if in_file else stack

    def _damaged(self, row: int) -> InputError:
        return InputError(
            f"{self.path}/shards/{self.studies['shard'].iat[row]}: study "
            f"{self.studies['study_id'].iat[row]} is damaged; copy the data set again, whole"
        )


def classes_of(info: dict[str, Any]) -> Classes | None:
    """Return the classes that a `dataset.json`, of a data set or a run, names; None for labels."""
    if "classes" not in info:
        return None
    return Classes(names=tuple(info["label_names"]), **info["classes"])


def covariates_of(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the covariates that a `dataset.json`, of a data set or a run, describes."""
    return dict(info.get("columns", {}).get("covariates", {}))


def series_of(info: dict[str, Any]) -> Series | None:
    """Return the series that a `dataset.json`, of a data set or a run, names; None for none."""
    return Series.from_json(info["series"]) if "series" in info else None


def _read_info(path: Path) -> dict[str, Any]:
    if (path / "experiment.yaml").is_file():  # a run keeps a copy of its data set's dataset.json
        raise InputError(f"{path} is the folder of a run; give the data set it was trained on")
    try:
        info = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
        version = info["format_version"]
        if version == FORMAT_VERSION:
            _check_keys(info)
            forget_labels_file(info["preparation"])
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path} is not a prepared data set (no dataset.json in it); make one with "
            f"`medseq-tf prepare`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}/dataset.json cannot be read; prepare again") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, this version reads {FORMAT_VERSION}; "
            f"prepare again"
        )
    return info


def forget_labels_file(preparation: dict[str, Any]) -> None:
    """Drop the name of the labels' file, which data sets and runs of version 0.1.0 hold."""
    labels = preparation.get("options", {}).get("labels")
    if isinstance(labels, str) and not labels.isdecimal():
        preparation["options"]["labels"] = LABELS_FILE


def _check_keys(info: dict[str, Any]) -> None:
    """Raise a LookupError, TypeError or ValueError if what is read later is not there."""
    for key in KEYS:
        info[key]
    _check_described(info)
    info["studies"]["sha256"], info["storage"]["dtype"], info["storage"]["offset"]
    for name, shard in info["shards"].items():
        shard["bytes"], shard["sha256"]
        if Path(name).name != name:
            raise ValueError(f"{name} is a path")


def _check_described(info: dict[str, Any]) -> None:
    """Raise as `_check_keys` if labels, classes, series or other columns are none."""
    classes, _ = classes_of(info), series_of(info)
    if not are_texts(info["label_names"]):
        raise TypeError("label_names are texts")
    if classes and not (isinstance(classes.column, str) and isinstance(classes.ordered, bool)):
        raise TypeError("classes are of a column, ordered or not")
    for covariate in covariates_of(info).values():
        if covariate["kind"] not in ("number", "category"):
            raise ValueError("a covariate is a number or a category")
        if covariate["kind"] == "category" and not are_texts(covariate["categories"]):
            raise TypeError("categories are texts")


def _other_columns(info: dict[str, Any]) -> set[str]:
    """Name the columns of `studies.parquet` that are no labels."""
    columns, series = info.get("columns", {}), series_of(info)
    names = {f"{COVARIATE}{name}" for name in covariates_of(info)} | {"site", "date"} & set(columns)
    return names | ({"series"} if series and series.in_turn else set())


def _check_shards(path: Path, info: dict[str, Any]) -> None:
    for name, shard in info["shards"].items():
        size, file = shard["bytes"], path / "shards" / name
        if not file.is_file():
            raise InputError(f"{file} is missing; copy the data set again, whole")
        if file.stat().st_size != size:
            raise InputError(
                f"{file} has {file.stat().st_size} bytes where dataset.json says {size}; "
                f"copy the data set again, whole"
            )


def _digest(file: io.FileIO) -> str:
    """Return an open file's SHA-256, computed once in a process while the file stays as it is."""
    stat = os.fstat(file.fileno())
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _whole:
        with _hashing:
            if key not in _whole:
                _whole[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _whole[key]


def _listed(counts: Mapping[str, float], most: int = 20) -> str:
    """Return names with their counts as a list; of many the first alone."""
    listed = [f"{printable(name)} {count:.0f}" for name, count in counts.items()]
    more = [f"... and {len(listed) - most} more"] if len(listed) > most else []
    return ", ".join([*listed[:most], *more])


def audit_text(audit: dict[str, Any], most: int | None = None) -> str:
    """Return the audit to be read: every kind with its count and its first entries (None: all)."""
    counts = audit["data_set"]
    lines = [
        f"{counts['studies']} studies of {counts['patients']} patients, {counts['slices']} slices; "
        f"{len(audit['entries'])} audit entries"
    ]
    for kind, count in audit["counts"].items():
        lines.append(f"{count:>6}  {kind}")
        named = [entry for entry in audit["entries"] if entry["kind"] == kind][:most]
        for entry in named:
            text = ": ".join(filter(None, (entry["where"], entry["detail"])))
            lines.append(" " * 10 + printable(text))
        if len(named) < count:
            lines.append(" " * 10 + f"... and {count - len(named)} more, see audit.txt")
    return "\n".join(lines) + "\n"
