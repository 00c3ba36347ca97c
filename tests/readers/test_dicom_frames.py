"""Frames of enhanced multi-frame images: the slices of the single frames that they are made of."""

from __future__ import annotations

import io
import shutil
import struct

import numpy as np
import pydicom
import pytest
from dicom_heads import head_study
from dicom_writer import (
    ENHANCED_CT,
    dicom_file,
    image,
    kinds,
    series_of,
    stack,
    write,
    write_stack,
)
from faulty_archive import FaultyArchive
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.archive_study import find_archive_studies
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.dicom.index import find_dicom_studies, index_dicom

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
GROUPS = {
    "position": (0x00209113, 0x00200032, "DS"),
    "orientation": (0x00209116, 0x00200037, "DS"),
    "spacing": (0x00289110, 0x00280030, "DS"),
    "slope": (0x00289145, 0x00281053, "DS"),
    "intercept": (0x00289145, 0x00281052, "DS"),
    "unit": (0x00289145, 0x00281054, "LO"),
    "time": (0x00209111, 0x00209128, "UL"),
    "dimensions": (0x00209111, 0x00209157, "UL"),
    "b_value": (0x00189117, 0x00189087, "FD"),
    "echo": (0x00189114, 0x00189082, "FD"),
    "component": (0x00189226, 0x00089208, "CS"),
    "real_world_slope": (0x00409096, 0x00409225, "FD"),
}
"""What a frame says -> the sequence of its functional group, and the element in it."""
USUAL = {"orientation": (1, 0, 0, 0, 1, 0), "spacing": (1, 1), "slope": 1, "intercept": -1024}


def encoded(kind, value):
    if kind in ("UL", "FD"):
        numbers = value if isinstance(value, tuple) else (value,)
        return struct.pack(f"<{len(numbers)}{'I' if kind == 'UL' else 'd'}", *numbers)
    return "\\".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value


def group(said):
    """The functional groups, a sequence each, of what is said of a frame."""
    sequences = {}
    for name, value in said.items():
        sequence, tag, kind = GROUPS[name]
        sequences.setdefault(sequence, []).append((tag, kind, encoded(kind, value)))
    return [(sequence, "SQ", [sorted(items)]) for sequence, items in sorted(sequences.items())]


def multi_frame(values, frames, shared=USUAL, **changes):
    """The elements of a file of stored values (T, H, W) and what is said of each frame."""
    elements = image(
        values,
        t00080016=ENHANCED_CT,
        t00280008=("IS", str(len(values))),
        t00200032=None,
        t00200037=None,
        t00280030=None,
        t00281052=None,
        t00281053=None,
    )
    elements[0x52009229] = ("SQ", [group(shared)])
    elements[0x52009230] = ("SQ", [group(frame) for frame in frames])
    for name, value in changes.items():
        tag = int(name[1:], 16)
        if value is None:
            elements.pop(tag)
        else:
            elements[tag] = value if isinstance(value, tuple) else (elements[tag][0], value)
    return elements


def mr(values, frames, shared=USUAL, **changes):
    shared = {name: value for name, value in shared.items() if name not in ("slope", "intercept")}
    changes = {"t00080016": ENHANCED_MR, "t00080060": "MR", **changes}
    return multi_frame(values, frames, shared, **changes)


# -------------------------------------------------------------------- as the single frames they are


@st.composite
def series(draw):
    """Slices in any order, of a rescaling each; what may be shared is, or lies with each frame."""
    count = draw(st.integers(3, 6))
    slopes = draw(st.lists(st.sampled_from([1, 0.5, 2, 1.25]), min_size=count, max_size=count))
    intercepts = draw(st.lists(st.sampled_from([-1024, 0, 3.5]), min_size=count, max_size=count))
    orientation = draw(st.sampled_from([(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0)]))
    where = {name: draw(st.booleans()) for name in ("orientation", "spacing", "slope", "intercept")}
    return slopes, intercepts, orientation, where, draw(st.permutations(range(count)))


@given(series=series(), parts=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_frames_in_any_order_and_any_parts_are_the_single_slices(
    tmp_path_factory, series, parts, seed
):
    slopes, intercepts, orientation, is_shared, order = series
    values, positions = stack(len(order), np.random.default_rng(seed))
    said = [
        {
            "position": tuple(map(float, position)),
            "orientation": orientation,
            "spacing": (0.5, 0.75),
            "slope": slope,
            "intercept": intercept,
        }
        for position, slope, intercept in zip(positions, slopes, intercepts, strict=True)
    ]
    if is_shared["slope"] or is_shared["intercept"]:  # they stand in one group
        for frame in said:
            frame.update(slope=slopes[0], intercept=intercepts[0])
    shared_names = {name for name, shared in is_shared.items() if shared}
    if shared_names & {"slope", "intercept"}:
        shared_names |= {"slope", "intercept"}
    singles = [
        image(
            values[i],
            positions[i],
            t00200037=encoded("DS", orientation),
            t00280030="0.5\\0.75",
            t00281053=f"{said[i]['slope']:g}",
            t00281052=f"{said[i]['intercept']:g}",
        )
        for i in range(len(values))
    ]
    shared = {name: said[0][name] for name in shared_names}
    files = []
    for number, places in enumerate(np.array_split(order, parts)):
        frames = [{k: v for k, v in said[i].items() if k not in shared} for i in places]
        changes = {
            "t00080018": f"1.2.3.{9 - number}",
            "t00209161": ("UI", "1.2.3.77"),
            "t00209162": ("US", number + 1),
            "t00209163": ("US", parts),
        }
        files.append(multi_frame(values[places], frames, shared, **(changes if parts > 1 else {})))
    folder = tmp_path_factory.mktemp("a")
    (one,) = index_dicom(write(folder / "one", *files)).studies
    (other,) = index_dicom(write(folder / "other", *singles)).studies
    ours, theirs = one.read(), other.read()
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.grid, theirs.grid)
    assert {e.kind for e in ours.audit_entries} == {e.kind for e in theirs.audit_entries}
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A folder of single-frame slices of each modality."""
    pytest.importorskip("highdicom", reason="highdicom is not installed, which writes them")
    folder = tmp_path_factory.mktemp("heads")
    return {
        modality: head_study(folder / modality, modality=modality, tilt=tilt)
        for modality, tilt in (("CT", -12.0), ("MR", 0.0))
    }


@pytest.mark.parametrize("modality", ["CT", "MR"])
@given(data=st.data())
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_what_highdicom_makes_of_single_frames_gives_their_slices(
    heads, tmp_path_factory, modality, data
):
    from highdicom.legacy import LegacyConvertedEnhancedCTImage, LegacyConvertedEnhancedMRImage

    head = heads[modality]
    order = data.draw(st.permutations(range(len(head.paths))))
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, JPEGLSLossless, RLELossless]))
    singles = [pydicom.dcmread(head.paths[place]) for place in order]
    made = {"CT": LegacyConvertedEnhancedCTImage, "MR": LegacyConvertedEnhancedMRImage}[modality]
    enhanced = made(
        singles,
        series_instance_uid="2.25.77",
        series_number=2,
        sop_instance_uid="2.25.78",
        instance_number=1,
    )
    if syntax != ExplicitVRLittleEndian:
        enhanced.compress(syntax, generate_instance_uid=False)
    folder = tmp_path_factory.mktemp("a")
    enhanced.save_as(folder / "enhanced.dcm")
    ((ours,), _), ((theirs,), _) = (find_dicom_studies(f) for f in (folder, head.folder))
    assert len({picture.path for picture in ours.pictures}) == 1
    read, expected = ours.read(), theirs.read()
    np.testing.assert_array_equal(read.images, expected.images)
    np.testing.assert_array_equal(read.grid, expected.grid)
    shutil.rmtree(folder)


# --------------------------------------------------------------------- several frames of one place


def at(height, **said):
    return {"position": (0.0, 0.0, float(height)), **said}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"time": 1}, {"time": 2}),
        ({"echo": 4.0}, {"echo": 90.0}),
        ({"b_value": 0.0}, {"b_value": 1000.0}),
        ({"component": "MAGNITUDE"}, {"component": "IMAGINARY"}),
        ({"component": "MAGNITUDE", "echo": 1.5}, {"component": "REAL", "echo": 0.0}),
        ({"dimensions": (1, 1)}, {"dimensions": (1, 2)}),
        ({"b_value": 0.0, "dimensions": (1, 2)}, {"b_value": 800.0, "dimensions": (1, 1)}),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_of_the_frames_at_one_position_the_same_kind_is_used(tmp_path, rng, first, second, parts):
    values, positions = stack(5, rng)
    frames = [at(p[2], **said) for said in (first, second) for p in positions]
    both = np.concatenate([values, values + 1])
    order = rng.permutation(10)
    files = [
        mr(both[places], [frames[i] for i in places], t00080018=f"1.2.3.{9 - number}")
        for number, places in enumerate(np.array_split(order, parts))
    ]
    index = index_dicom(write(tmp_path, *files))
    assert [(e.kind, e.detail) for e in index.audit_entries] == [
        ("duplicate slice positions", "5 images left out")
    ]
    np.testing.assert_array_equal(index.studies[0].read().images, values)


def test_frames_at_one_position_are_no_stack(tmp_path):
    values, _ = stack(5)
    file = multi_frame(values, [at(7, time=t + 1) for t in range(5)])
    with pytest.raises(InputError, match="1 slices, fewer than 3"):
        index_dicom(write(tmp_path, file))


def test_of_two_stacks_the_larger_is_used(tmp_path):
    values, positions = stack(7)
    across = {"orientation": (1, 0, 0, 0, 0, -1)}
    frames = [at(p[2], orientation=(1, 0, 0, 0, 1, 0)) for p in positions[:4]]
    frames += [{"position": (0.0, float(y), 0.0), **across} for y in range(3)]
    order = [4, 0, 5, 1, 2, 6, 3]
    shared = {name: value for name, value in USUAL.items() if name != "orientation"}
    file = multi_frame(values[order], [frames[i] for i in order], shared)
    index = index_dicom(write(tmp_path, file))
    assert kinds(index) == ["several orientations or sizes in a series"]
    np.testing.assert_array_equal(index.studies[0].read().images, values[:4] - 1024)


def test_a_slice_knows_its_frame(tmp_path):
    values, positions = stack(5)
    order = [3, 0, 4, 1, 2]
    file = multi_frame(values[order], [at(positions[i][2]) for i in order])
    (study,) = index_dicom(write(tmp_path, file)).studies
    assert [order[picture.place] for picture in study.pictures] == [0, 1, 2, 3, 4]
    headers = study.source_headers()
    assert [int(header.NumberOfFrames) for header in headers] == [5] * 5


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless, RLELossless])
def test_an_archive_gives_the_slices_of_the_files_in_a_folder(tmp_path, syntax):
    """Of two files whose frames lie between each other's."""
    _, positions = stack(6)
    values = np.full((6, 4, 6), 1000) + np.arange(6)[:, None, None]
    for number, places in enumerate(([4, 0, 2], [1, 5, 3])):
        elements = multi_frame(
            values[places],
            [at(positions[i][2], dimensions=(1, i + 1)) for i in places],
            t00080018=f"1.2.3.{9 - number}",
            t00209161=("UI", "1.2.3.77"),
            t00209162=("US", number + 1),
            t00209163=("US", 2),
        )
        data_set = pydicom.dcmread(io.BytesIO(dicom_file(elements)))
        if syntax != ExplicitVRLittleEndian:
            data_set.compress(syntax, generate_instance_uid=False)
        data_set.save_as(tmp_path / f"{number}")
    (study,), _ = find_dicom_studies(tmp_path)
    with FaultyArchive(sorted(tmp_path.iterdir())) as archive:
        (asked,), audit_entries = find_archive_studies(archive.url)
        ours, theirs = asked.read(), study.read()
        assert len(asked.source_headers()) == 6
    assert audit_entries == []
    np.testing.assert_array_equal(ours.images, values - 1024)
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.grid, theirs.grid)


# ------------------------------------------------------------------------------------- values


def test_a_real_world_value_mapping_is_no_rescaling(tmp_path):
    values, positions = stack(4)
    frames = [at(p[2], real_world_slope=3.0) for p in positions]
    (study,) = index_dicom(write(tmp_path, mr(values, frames))).studies
    np.testing.assert_array_equal(study.read().images, values)


def test_mr_is_rescaled_frame_by_frame(tmp_path):
    values, positions = stack(4)
    slopes = [1, 3, 2, 5]
    frames = [
        at(p[2], slope=slope, intercept=4) for p, slope in zip(positions, slopes, strict=True)
    ]
    index = index_dicom(write(tmp_path, mr(values, frames)))
    expected = values * np.reshape(slopes, (-1, 1, 1)) + 4
    np.testing.assert_array_equal(index.studies[0].read().images, expected)
    assert kinds(index) == ["several rescalings in a series"]


# ---------------------------------------------------------------------------------- what is odd


def test_a_part_of_a_concatenation_that_lacks_is_named(tmp_path):
    values, positions = stack(6)
    files = [
        multi_frame(
            values[places],
            [at(positions[i][2]) for i in places],
            t00209161=("UI", "1.2.3.77"),
            t00209162=("US", number),
            t00209163=("US", 3),
        )
        for number, places in ((1, [0, 1, 2]), (3, [4, 5]))
    ]
    index = index_dicom(write(tmp_path, *files))
    assert ("incomplete concatenation", "1 of 3 files are not there") in [
        (e.kind, e.detail) for e in index.audit_entries
    ]
    np.testing.assert_array_equal(index.studies[0].read().images, values[[0, 1, 2, 4, 5]] - 1024)


def without(name, said=USUAL):
    return {key: value for key, value in said.items() if key != name}


VALUES, POSITIONS = stack(5)
FRAMES = [at(p[2]) for p in POSITIONS]
OTHER_FRAMES = "functional groups of other frames than it has"


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (multi_frame(VALUES, FRAMES[:4]), OTHER_FRAMES),
        (multi_frame(VALUES, [*FRAMES, FRAMES[0]]), OTHER_FRAMES),
        (multi_frame(VALUES, [*FRAMES[:4], {}]), "image without position"),
        (multi_frame(VALUES, FRAMES, without("orientation")), "image without orientation"),
        (multi_frame(VALUES, FRAMES, without("slope")),
         "image with an impossible rescale slope or intercept"),
        (multi_frame(VALUES, FRAMES, without("intercept")),
         "image with an impossible rescale slope or intercept"),
        (multi_frame(VALUES, [*FRAMES[:4], at(9, slope=0, intercept=0)]),
         "image with an impossible rescale slope or intercept"),
        (multi_frame(VALUES, [*FRAMES[:4], at(9, slope=1, intercept=0, unit="MGML")]),
         "CT of other units than Hounsfield's"),
        (multi_frame(VALUES, FRAMES, t52009230=None), "image without position"),
    ],
)  # fmt: skip
def test_what_does_not_say_where_or_what_each_frame_is_is_left_out(tmp_path, file, reason):
    beside = series_of(*stack(3), 9)
    index = index_dicom(write(tmp_path, file, *beside))
    assert [(e.kind, e.detail) for e in index.audit_entries] == [(reason, "1 images left out")]
    assert len(index.studies) == 1


@pytest.mark.parametrize("count", ["1A", "-5", "2.5", "x"])
def test_a_number_of_frames_that_is_none_is_refused(tmp_path, count):
    folder = write_stack(tmp_path, *stack(4))
    odd = image(VALUES[0], (0, 0, 20), t00280008=("IS", count))
    (folder / "odd").write_bytes(dicom_file(odd))
    index = index_dicom(folder)
    assert [e.detail for e in index.audit_entries] == ["its number of frames is no number"]


def test_frames_without_functional_groups_keep_the_file_s_order(tmp_path):
    values, _ = stack(5)
    elements = image(values, (0, 0, 3), t00280008=("IS", "5"))
    (study,) = index_dicom(write(tmp_path, elements)).studies
    np.testing.assert_array_equal(study.read().images, values - 1024)


def test_a_header_of_many_frames_is_read(tmp_path):
    """Longer than what is read of a file at first."""
    count = 1500
    values = np.zeros((count, 4, 6), int)
    file = multi_frame(values, [at(height, time=1) for height in range(count)])
    path = tmp_path / "a"
    path.write_bytes(dicom_file(file))
    assert path.stat().st_size > 2 * 2**16
    header = read_dicom_header(path)
    assert [frame.position[2] for frame in header.frames] == list(range(count))
