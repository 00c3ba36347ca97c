"""What DICOM results copy of their source, and how they come out the same each time.

Patient and study are copied as they are. Dates and times are the source's: of the series, or else
of the acquisition, the content or the study, so that the same answer made tomorrow is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from medseq_tf.errors import InputError, printable

if TYPE_CHECKING:
    from pydicom import Dataset

NEEDED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""What each object of a patient holds, empty where it is not known (type 2)."""
RESEARCH = "Research use only, not for diagnosis"
"""What every object says of itself."""

UTF8 = "ISO_IR 192"
UNKNOWN_DATE, UNKNOWN_TIME = "19000101", "000000"
"""Of a source that names none."""

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_CLOCKS = ("Series", "Acquisition", "Content", "Study")
_OF_FRAMES = (
    *("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("DimensionIndexSequence", "DimensionOrganizationSequence", "SpecimenDescriptionSequence"),
)
_METHODS = {"DeidentificationMethod", "DeidentificationMethodCodeSequence"}
"""Of which an object holds one whose patient's identity is removed (type 1C)."""


def source_of(header: Dataset) -> Dataset:
    """Return a header as that of a CT picture of one frame, from which highdicom makes objects.

    All that is `NEEDED` is there, known or not; of the rest what is empty, and a value that is
    none, is left out. What `settle` copies afterwards is the header's own.
    """
    from pydicom import Dataset
    from pydicom.datadict import dictionary_VR
    from pydicom.uid import CTImageStorage

    source = Dataset()
    header.decode()  # by its own character set; the source has another
    for element in header:
        if element.keyword not in _OF_FRAMES and not element.is_empty:
            source.add(element)
    for name in NEEDED:
        if name not in source or not _is_sound(name, header):
            source.add_new(name, dictionary_VR(name), None)
    if source.get("PatientIdentityRemoved") == "YES" and not _METHODS & set(source.dir()):
        source.add_new("DeidentificationMethod", "LO", "not named by the source")
    source.add_new("SOPClassUID", "UI", CTImageStorage)
    source.add_new("SpecificCharacterSet", "CS", UTF8)
    return source


def _is_sound(name: str, header: Dataset) -> bool:
    from pydicom.valuerep import DA, TM

    value = header.get(name)
    if name == "PatientSex":
        return value in ("M", "F", "O")
    try:
        return value is not None and {"Date": DA, "Time": TM}.get(name[-4:], str)(value) is not None
    except ValueError:
        return False


def settle(result: Any, header: Dataset) -> Dataset:
    """Give an object of highdicom's the header's patient, study and dates, and return it.

    Its text is in UTF-8, which has letters that the source's may lack.
    """
    for name in NEEDED:
        if name in header:
            result.add(header[name])
    date, time = when(header)
    for name, value in (("Date", date), ("Time", time)):
        for of in ("InstanceCreation", "Content", "Series"):
            if of != "InstanceCreation" or f"{of}{name}" in result:
                setattr(result, f"{of}{name}", value)
    for equipment in result.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    result.SpecificCharacterSet = UTF8
    return result


def when(header: Dataset) -> tuple[str, str]:
    """Return the date and the time of a source."""
    for of in _CLOCKS:
        date, time = (str(header.get(f"{of}{part}") or "").strip() for part in ("Date", "Time"))
        if len(date) == 8 and _is_of_form(date, "%Y%m%d"):
            is_time = _is_of_form(time, "%H%M%S" if len(time) == 6 else "%H%M%S.%f")
            return date, time if is_time else UNKNOWN_TIME
    return UNKNOWN_DATE, UNKNOWN_TIME


def _is_of_form(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)
    except ValueError:
        return False
    return True


def evidence(headers: Sequence[Dataset]) -> list[Dataset]:
    """Return each instance of a source once, with nothing of the patient.

    Raises:
        InputError: an instance has no UID, so that nothing can refer to it.
    """
    from pydicom import Dataset

    instances: dict[str, Dataset] = {}
    for header in headers:
        instance = Dataset()
        for name in _UIDS:
            setattr(instance, name, str(header.get(name) or ""))
        if not all(instance[name].value for name in _UIDS):
            raise InputError(f"no result can refer to a file that lacks one of {', '.join(_UIDS)}")
        for name in NEEDED:
            setattr(instance, name, None)
        instances[instance.SOPInstanceUID] = instance
    return list(instances.values())


def long_string(text: Any, most: int = 64) -> str:
    """Return a text as a value that is no more than so many letters, without DICOM's separator."""
    return printable(text).replace("\\", "/").strip()[:most]


def references(headers: list[Dataset]) -> list[Any]:
    """Return a reference to each of the instances that headers are of."""
    from pydicom import Dataset

    items = []
    for header in {str(header.SOPInstanceUID): header for header in headers}.values():
        item = Dataset()
        item.ReferencedSOPClassUID = header.SOPClassUID
        item.ReferencedSOPInstanceUID = header.SOPInstanceUID
        items.append(item)
    return items
