"""What DICOM results copy of their source, and how they come out the same each time.

Patient and study are copied as they are. Dates and times are the source's: of the series, or else
of the acquisition, the content or the study, so that the same answer made tomorrow is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medseq_tf.errors import printable

if TYPE_CHECKING:
    from pydicom import Dataset

NEEDED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""What each object of a patient holds, empty where it is not known (type 2)."""
MANUFACTURER = "medseq_tf"
RESEARCH = "Research use only, not for diagnosis"
"""What every object says of itself."""

_CLOCKS = ("Series", "Acquisition", "Content", "Study")
_OF_FRAMES = (
    *("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("DimensionIndexSequence", "DimensionOrganizationSequence", "SpecimenDescriptionSequence"),
)


def source_of(header: Dataset) -> Dataset:
    """Return a header as that of a CT picture of one frame, from which highdicom makes objects.

    All that is `NEEDED` is there, known or not; a value that is none is left out. What `settle`
    copies afterwards is the header's own.
    """
    from pydicom import Dataset
    from pydicom.datadict import dictionary_VR
    from pydicom.uid import CTImageStorage

    source = Dataset()
    for element in header:  # which decodes texts by the header's own character set
        if element.keyword not in _OF_FRAMES:
            source.add(element)
    for name in NEEDED:
        if not _is_sound(name, header):
            source.add_new(name, dictionary_VR(name), None)
    source.add_new("SOPClassUID", "UI", CTImageStorage)
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
    """Give an object of highdicom's the header's patient, study and dates, and return it."""
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
    return result


def when(header: Dataset) -> tuple[str, str]:
    """Return the date and the time of a source."""
    for of in _CLOCKS:
        if date := str(header.get(f"{of}Date") or ""):
            return date, str(header.get(f"{of}Time") or "000000")
    return "19000101", "000000"


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
