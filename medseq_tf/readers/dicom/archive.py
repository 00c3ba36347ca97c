"""A DICOM archive by DICOMweb (PS3.18): what is in it, its files, and results stored in it.

    studies, series, instances      QIDO-RS, page by page
    metadata, retrieve              WADO-RS; files as they lie there, several at a time
    store                           STOW-RS

What an archive answers is held to what was asked: another study, a file of another series, more
bytes than a file can have, or half a message are refused. No message names a study.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from medseq_tf.errors import InputError, Unreachable, did_you_mean
from medseq_tf.readers.dicom.connection import (
    AT_A_TIME,
    Answer,
    BadAnswer,
    Connection,
    Denied,
    Sent,
)
from medseq_tf.readers.dicom.elements import quiet_pydicom, with_file_meta
from medseq_tf.readers.dicom.metadata import TRANSFER_SYNTAX
from medseq_tf.readers.dicom.multipart import NotWhole, message_of, parts_of
from medseq_tf.readers.storage import NotThere, StorageError, UnavailableStudy, checked_url

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SCHEMES = ("dicomweb+https://", "dicomweb+http://")
"""What the address of an archive starts with where folders and files have addresses, too."""

MOST_JSON = 2**28
"""Bytes of an answer in JSON: the metadata of some 20,000 files."""
MOST_FILE = 2**31
"""Bytes of a file of which nothing else is known."""
_PAGE = 200
"""Asked for at a time; some archives refuse to be asked for more."""
_JSON = "application/dicom+json"
_FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DATES = re.compile(r"\d{8}|\d{8}-\d{8}|\d{8}-|-\d{8}")

STUDY_UID, SERIES_UID, SOP_UID = "0020000D", "0020000E", "00080018"
_OF_SERIES = {
    "SeriesInstanceUID": SERIES_UID,
    "Modality": "00080060",
    "SeriesDescription": "0008103E",
    "NumberOfSeriesRelatedInstances": "00201209",
}
_COMMON_KEYWORDS = (
    "Modality", "StudyDate", "StudyDescription", "StudyInstanceUID", "AccessionNumber",
    "PatientID", "StudyTime", "StudyID", "ModalitiesInStudy", "ReferringPhysicianName",
    "InstitutionName", "PatientName",
)  # fmt: skip
_SHOWN = ("ModalitiesInStudy", "StudyDate", "StudyDescription")
"""What studies are asked for by, and tells of no patient."""

_THERE_ALREADY = (0x0111, 0xB00E)
"""Failure reasons: a duplicate SOP instance (PS3.7, annex C), and Azure's own for it."""

_ESCAPED = re.compile(r"[^\w*,.:?-]", re.ASCII)

Parameters = Sequence[tuple[str, str]]
Json = Mapping[str, Any]
"""A data set as DICOM JSON holds it (PS3.18, F.2): tag -> VR and values."""


@dataclass(frozen=True, repr=False)
class Query:
    """What studies are wanted: keywords of DICOM and values, with `*` and `?`; all where empty."""

    terms: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> Query:
        """Read `Modality=CT,StudyDate=20260101-20260131,StudyDescription=*HEAD*`.

        Raises:
            InputError: it is something else.
        """
        from pydicom.datadict import tag_for_keyword

        terms: dict[str, str] = {}
        for part in (text or "").split(",") if (text or "").strip() else []:
            keyword, _, value = (piece.strip() for piece in part.partition("="))
            if not keyword or not value:
                raise InputError(
                    "the query is not KEYWORD=VALUE,..., such as Modality=CT,StudyDate="
                    "20260101-20260131,StudyDescription=*HEAD*"
                )
            if tag_for_keyword(keyword) is None:
                hint = did_you_mean(keyword, _COMMON_KEYWORDS)
                raise InputError(
                    f"query: {keyword} is no keyword of DICOM{hint}; such are "
                    f"{', '.join(_COMMON_KEYWORDS[:6])}"
                )
            keyword = "ModalitiesInStudy" if keyword == "Modality" else keyword
            if keyword in terms:
                raise InputError(f"query: {keyword} is given twice")
            if keyword == "StudyDate" and not _DATES.fullmatch(value):
                raise InputError(
                    "query: StudyDate is no date such as 20260131, or two with a hyphen between"
                )
            terms[keyword] = value
        return cls(terms)

    @property
    def ways(self) -> list[list[tuple[str, str]]]:
        """How the query is sent, one way after the other until something is found.

        Not every archive decodes what a URL has to escape: a blank and the like are sent as `?`,
        which any character fits, and what is found is held to the true values by `fits`. Nor does
        every archive know `?`: then the values are sent as they are.
        """
        wild = [(keyword, _ESCAPED.sub("?", value)) for keyword, value in self.terms.items()]
        literal = list(self.terms.items())
        shown = [("includefield", keyword) for keyword in self.terms]
        return [way + shown for way in ([wild, literal] if wild != literal else [wild])]

    def fits(self, item: Json) -> bool:
        """Whether a study that was found is one that was wanted, as far as that is said of it."""
        from pydicom.datadict import tag_for_keyword

        return all(
            _fits(item, f"{tag_for_keyword(keyword):08X}", value)
            for keyword, value in self.terms.items()
        )

    def __str__(self) -> str:
        """Return the query without what may tell of a patient."""
        return ",".join(
            f"{keyword}={value if keyword in _SHOWN else '(withheld)'}"
            for keyword, value in self.terms.items()
        )

    def __repr__(self) -> str:
        """As `str`: errors and logs may show it."""
        return f"Query({self})"


@dataclass(frozen=True)
class FoundInArchive:
    """A study in an archive, and what that says of it.

    Attributes:
        study_uid: its StudyInstanceUID.
        modalities: of its series.
        series: how many; None where it does not say.
        instances: how many; None likewise.
    """

    study_uid: str = field(repr=False)
    modalities: tuple[str, ...] = ()
    series: int | None = None
    instances: int | None = None


class BadQuery(BadAnswer):
    """The archive does not take what it is asked."""


class Archive:
    """A DICOMweb server, asked by one process.

    Attributes:
        url: the root of its services, without any credential.
    """

    def __init__(self, connection: Connection):
        self.url = connection.url
        self._connection = connection

    @classmethod
    def open(cls, url: str, *, insecure_tls: bool = False, seconds: float = 30.0) -> Archive:
        """Settle who asks which archive; nothing is asked yet.

        Args:
            url: of its DICOMweb services, such as `https://pacs/dicom-web`, or after `dicomweb+`.
            insecure_tls: whether any certificate of the server will do.
            seconds: that it may be silent.

        Raises:
            InputError: the URL is none of an archive or may hold a secret, or the environment's
                credentials cannot be used (see `connection`).
        """
        return cls(Connection(plain_url(url), insecure_tls, seconds))

    def close(self) -> None:
        """Close the connections; another request opens one again."""
        self._connection.close()

    # ------------------------------------------------------------------------ what there is

    def studies(self, query: Query) -> Iterator[FoundInArchive]:
        """Look for studies.

        Raises:
            InputError: it is no archive, or refuses the query or the credentials.
            Unreachable: it does not answer.
        """
        try:
            for parameters in query.ways:
                is_found = False
                for item in filter(query.fits, self._found("studies", STUDY_UID, parameters)):
                    is_found = True
                    yield FoundInArchive(
                        text_of(item, STUDY_UID),
                        tuple(m for m in values_of(item, "00080061") if isinstance(m, str)),
                        _count(item, "00201206"),
                        _count(item, "00201208"),
                    )
                if is_found:
                    return
        except BadQuery as error:
            if not query.terms:
                self._refuse(error)
            raise InputError(
                f"{self.url}: {error}: not every archive can be asked for every keyword ({query}), "
                "or this is no DICOMweb server, whose address ends like /dicom-web"
            ) from None
        except StorageError as error:
            self._refuse(error)

    def series(self, study_uid: str) -> list[dict[str, Any]]:
        """List the series of a study: SeriesInstanceUID, Modality and so on, where it says so.

        Raises:
            UnavailableStudy: they cannot be had.
            Unreachable: the archive does not answer, or no longer lets in.
        """
        with self._of_study():
            path = f"studies/{_checked(study_uid)}/series"
            found = self._found(path, SERIES_UID, (), study_uid)
            return [
                {name: values_of(item, tag)[0] for name, tag in _OF_SERIES.items()
                 if values_of(item, tag)}
                for item in found
            ]  # fmt: skip

    def instances(self, study_uid: str, series_uid: str | None = None) -> list[str]:
        """List the SOPInstanceUIDs of a study or series; the errors are those of `series`."""
        with self._of_study():
            path = f"{_path(study_uid, series_uid)}/instances"
            return [text_of(item, SOP_UID) for item in self._found(path, SOP_UID, (), study_uid)]

    def has_instance(self, study_uid: str, sop_uid: str) -> bool:
        """Whether a study holds an object; the errors are those of `series`."""
        with self._of_study():
            path, parameters = f"{_path(study_uid)}/instances", [("SOPInstanceUID", sop_uid)]
            try:
                found = self._found(path, SOP_UID, parameters)
                return any(text_of(item, SOP_UID) == sop_uid for item in found)
            except NotThere:
                return False

    def _found(
        self, path: str, key: str, parameters: Parameters, study_uid: str | None = None
    ) -> Iterator[Json]:
        """What is found, page by page: each once, by the UID that is its key."""
        seen: set[str] = set()
        offset = 0
        while True:
            pages = [("limit", str(_PAGE)), ("offset", str(offset))]
            page = self._json(path, [*parameters, *pages])
            new = [item for item in page if text_of(item, key) not in seen]
            for item in new:
                _require_study(item, study_uid)
                uid = _checked(text_of(item, key))
                if uid not in seen:
                    seen.add(uid)
                    yield item
            if not new:  # the last, or what an archive answers that knows no pages
                return
            offset += len(page)

    # ------------------------------------------------------------------------ what is in it

    def metadata(self, study_uid: str, series_uid: str | None = None) -> list[Dataset]:
        """Read the data sets of a study or series, all but pixels and what else is large.

        The errors are those of `series`.
        """
        from pydicom.dataset import Dataset

        found = self.metadata_json(study_uid, series_uid)
        with self._of_study(), quiet_pydicom():
            try:
                return [
                    with_file_meta(
                        Dataset.from_json(_without_pixels(item), lambda *_: None),
                        text_of(item, TRANSFER_SYNTAX),
                    )
                    for item in found
                ]
            except Exception:  # whatever pydicom makes of odd values
                raise BadAnswer("metadata that cannot be read") from None

    def metadata_json(self, study_uid: str, series_uid: str | None = None) -> list[Json]:
        """Read what `metadata` reads, as it is sent."""
        with self._of_study():
            found = self._json(f"{_path(study_uid, series_uid)}/metadata", ())
            if not found:
                raise BadAnswer("it has no metadata of it")
            for item in found:
                _require_study(item, study_uid)
                if series_uid not in (None, text_of(item, SERIES_UID)):
                    raise BadAnswer("metadata of another series than was asked for")
                _checked(text_of(item, SOP_UID))
            return found

    def retrieve(
        self,
        study_uid: str,
        series_uid: str,
        sop_uids: Sequence[str],
        most_bytes: int = MOST_FILE,
    ) -> Iterator[tuple[str, bytes]]:
        """Read whole files of a series, in order, each in its own transfer syntax.

        Args:
            study_uid: the study.
            series_uid: the series.
            sop_uids: the files.
            most_bytes: that one of them may have.

        Raises:
            UnavailableStudy: one cannot be had.
            Unreachable: the archive does not answer, or no longer lets in.
        """

        def file(sop_uid: str) -> bytes:
            path = f"{_path(study_uid, series_uid)}/instances/{_checked(sop_uid)}"
            return self._file(path, most_bytes)

        with self._of_study(), ThreadPoolExecutor(AT_A_TIME, "medseq_tf-archive") as threads:
            waiting: deque[tuple[str, Future[bytes]]] = deque()
            try:
                for sop_uid in sop_uids:
                    waiting.append((sop_uid, threads.submit(file, sop_uid)))
                    if len(waiting) > AT_A_TIME:
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _file(self, path: str, most_bytes: int) -> bytes:
        return self._connection.ask(_only_file, path, _FILES, most_bytes)

    def _json(self, path: str, parameters: Parameters) -> list[Json]:
        return self._connection.ask(_datasets, path, _JSON, MOST_JSON, parameters)

    # ----------------------------------------------------------------------- what is added

    def store(self, files: Sequence[bytes]) -> None:
        """Store DICOM files; one that is there already is no error.

        Raises:
            InputError: the archive refuses one, or all, or is no archive.
            Unreachable: it does not answer.
        """
        body, boundary = message_of(files)
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        try:
            sent = Sent(body, kind)
            refused = self._connection.ask(_refused, "studies", _JSON, MOST_JSON, sent=sent)
        except (NotThere, BadAnswer, Denied) as error:
            raise InputError(
                f"{self.url} stores nothing: {error}; does it take results (STOW-RS), and of who "
                "asks?"
            ) from None
        except StorageError as error:
            self._refuse(error)
        if refused is not None:
            reasons = {f"{_count(item, '00081197') or 0:04X}" for item in refused}
            raise InputError(
                f"{self.url} refused {len(refused) or len(files)} of {len(files)} objects to be "
                f"stored (failure reason {', '.join(sorted(reasons)) or 'not said'}; PS3.18, "
                "table I.2-2)"
            )

    # ------------------------------------------------------------------------- what failed

    @contextlib.contextmanager
    def _of_study(self) -> Iterator[None]:
        """Turn what a study costs alone, and what all, into their exceptions."""
        try:
            yield
        except (NotThere, BadAnswer) as error:
            raise UnavailableStudy(f"the archive: {error}") from None
        except StorageError as error:
            self._check_answers()
            raise UnavailableStudy(f"the archive: {error}") from None

    def _check_answers(self) -> None:
        """Raise Unreachable if the archive no longer answers."""
        try:
            self._json("studies", [("limit", "1")])
        except StorageError as error:
            self._lost(error)

    def _lost(self, error: StorageError) -> NoReturn:
        raise Unreachable(
            f"{self.url} no longer answers: {error}; run the same command again later"
        ) from None

    def _refuse(self, error: StorageError) -> NoReturn:
        """Raise what is wrong with the archive as a whole."""
        if isinstance(error, Denied):
            raise InputError(
                f"{self.url}: {error}; MEDSEQ_TF_DICOMWEB_TOKEN, or _USER and _PASSWORD, or a "
                "netrc file hold them"
            ) from None
        if isinstance(error, (NotThere, BadAnswer)):
            raise InputError(
                f"{self.url} is no DICOMweb server that can be used: {error}; give the root of its "
                "services, such as https://pacs/dicom-web"
            ) from None
        raise Unreachable(f"{self.url} does not answer: {error}") from None


# --------------------------------------------------------------------------- what was answered


def is_archive(place: object) -> bool:
    """Whether a place is the address of an archive where folders and files have addresses, too."""
    return isinstance(place, str) and place.startswith(SCHEMES)


def plain_url(url: str) -> str:
    """Return the checked address of an archive, without `dicomweb+`.

    Raises:
        InputError: it is none, or may hold a secret.
    """
    url = url.removeprefix("dicomweb+")
    if not url.startswith(("https://", "http://")):
        raise InputError("the address of an archive starts with https:// or http://")
    return checked_url(url)


def values_of(item: Json, tag: str) -> list[Any]:
    """Return the values of an element; none where it is absent or empty."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [value for value in values if value is not None] if isinstance(values, list) else []


def text_of(item: Json, tag: str) -> str:
    """Return the first value of an element as text."""
    values = values_of(item, tag)
    return str(values[0]).strip(" \0") if values else ""


def _fits(item: Json, tag: str, wanted: str) -> bool:
    """Whether an element is as wanted (PS3.4, C.2.2.2); also where nothing is said of it."""
    if tag not in item:
        return True
    values = [
        str(value.get("Alphabetic", "") if isinstance(value, dict) else value).casefold()
        for value in values_of(item, tag)
    ] or [""]
    first, is_range, last = wanted.partition("-")
    if is_range and isinstance(item[tag], dict) and item[tag].get("vr") in ("DA", "TM"):
        return any(v and (first or v) <= v <= (last or v) for v in values)
    pattern = re.escape(wanted.casefold()).replace(r"\*", ".*").replace(r"\?", ".")
    return any(re.fullmatch(pattern, value, re.DOTALL) for value in values)


def _count(item: Json, tag: str) -> int | None:
    try:
        return int(values_of(item, tag)[0])
    except (IndexError, OverflowError, TypeError, ValueError):
        return None


def is_uid(text: str) -> bool:
    """Whether a text is a UID (PS3.5, section 9.1)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _checked(uid: str) -> str:
    if not is_uid(uid):
        raise BadAnswer("a UID that is none")
    return uid


def _path(study_uid: str, series_uid: str | None = None) -> str:
    path = f"studies/{_checked(study_uid)}"
    return path if series_uid is None else f"{path}/series/{_checked(series_uid)}"


def _require_study(item: Json, study_uid: str | None) -> None:
    """Refuse what an archive says of another study; it may leave out what was asked for."""
    if study_uid is not None and text_of(item, STUDY_UID) not in (study_uid, ""):
        raise BadAnswer("it answers with another study than was asked for")


def _without_pixels(item: Json) -> dict[str, Any]:
    return {
        tag: element
        for tag, element in item.items()
        if tag < "7FE0" and "BulkDataURI" not in element
    }


def _datasets(answer: Answer) -> list[Json]:
    """The data sets in an answer of JSON."""
    if answer.status == 204 or (answer.status == 200 and not answer.body):
        return []
    if answer.status == 400:
        raise BadQuery("it refuses what it is asked (status 400)")
    if answer.status != 200:
        raise BadAnswer(f"it answers with status {answer.status}")
    return _read_json(answer)


def _read_json(answer: Answer) -> list[Json]:
    if answer.kind not in (_JSON, "application/json"):
        raise BadAnswer(f"it answers with {answer.kind}, not {_JSON}")
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise NotWhole from None
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadAnswer("it answers with JSON that is no data set")
    return found


def _refused(answer: Answer) -> list[Json] | None:
    """What an archive says that it did not store; None where it has stored all."""
    if answer.status not in (200, 202, 409):
        raise BadAnswer(f"it answers with status {answer.status}")
    results = _read_json(answer) if answer.body else []
    failed = [item for result in results for item in values_of(result, "00081198")]
    refused = [item for item in failed if _count(item, "00081197") not in _THERE_ALREADY]
    return refused if refused or (answer.status == 409 and not failed) else None


def _only_file(answer: Answer) -> bytes:
    """The one file in an answer."""
    if answer.status != 200:
        raise BadAnswer(f"it answers with status {answer.status}")
    if answer.kind == "application/dicom":
        return answer.body
    if answer.kind != "multipart/related":
        raise BadAnswer(f"it answers with {answer.kind}, not DICOM files")
    parts = parts_of(answer.body, answer.parameters.get("boundary", ""))
    if len(parts) != 1:
        raise BadAnswer(f"{len(parts)} files where one was asked for")
    return parts[0]
