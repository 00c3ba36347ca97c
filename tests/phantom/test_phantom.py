"""The demo cohort: repeatable, free of confounders, with its lesions where the masks say."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.phantom.head import BONE
from medseq_tf.phantom.reader import index_demo
from medseq_tf.phantom.writers import write_image_folder
from medseq_tf.readers.image_folder import index_image_folder


@pytest.fixture(scope="module")
def cohort():
    """200 rendered patients, 32 x 32."""
    settings = DemoCohort(patients=200, size=32)
    return settings, [settings.render(patient) for patient in range(settings.patients)]


def test_same_settings_same_pictures_in_any_order():
    first, again = (DemoCohort(size=32) for _ in range(2))
    again.render(5)
    np.testing.assert_array_equal(first.render(3).volume, again.render(3).volume)
    assert not np.array_equal(first.render(3).volume[:3], first.render(4).volume[:3])
    other = dataclasses.replace(first, seed=1).render(3).volume
    assert not np.array_equal(other[:3], first.render(3).volume[:3])


def test_threads_of_products_change_no_picture():
    """With two threads, NumPy's product once rounded this patient's otherwise."""
    study = index_demo(patients=130, size=96, slices=(10, 20)).studies[88]
    assert study.source == "patient-0089"
    with threadpool_limits(1):
        one = study.read().images
    with threadpool_limits(2):
        two = study.read().images
    np.testing.assert_array_equal(one, two)


def test_a_patient_does_not_depend_on_the_cohort_around_it():
    few, many = DemoCohort(patients=3, size=32), DemoCohort(patients=300, size=32)
    np.testing.assert_array_equal(few.render(2).volume, many.render(2).volume)


def test_shapes_units_and_labels(cohort):
    settings, studies = cohort
    for patient, study in enumerate(studies[:30]):
        assert study.volume.dtype == np.int16
        assert study.mask.dtype == np.uint8
        assert study.volume.shape == study.mask.shape
        assert study.volume.shape[1:] == (32, 32)
        assert 12 <= len(study.volume) <= 30
        assert study.labels == settings.labels_of(patient)
        assert study.volume.min() < -900
        assert 300 < study.volume.max() < 1.5 * BONE
        assert study.spacing[1:] == (230 / 32, 230 / 32)
        assert 2 < study.spacing[0] < 15


def test_positive_patients_have_a_mask_on_consecutive_slices(cohort):
    _, studies = cohort
    for study in studies:
        shown = np.flatnonzero(study.mask.any(axis=(1, 2)))
        assert (len(shown) > 0) == (study.labels["lesion"] == 1)
        if len(shown):
            assert len(shown) >= 2
            assert np.all(np.diff(shown) == 1)


def test_prevalence_is_as_set():
    cohort = DemoCohort(patients=2000, prevalence=0.3)
    labels = [cohort.labels_of(patient)["lesion"] for patient in range(2000)]
    assert abs(np.mean(labels) - 0.3) < 0.04


def test_neither_slice_count_nor_brightness_tells_the_label(cohort):
    _, studies = cohort
    labels = [study.labels["lesion"] for study in studies]
    for value in (
        [len(study.volume) for study in studies],
        [photographs(study.volume).mean() for study in studies],
    ):
        assert 0.35 < roc_auc_score(labels, value) < 0.65


def test_the_histogram_alone_is_not_enough(cohort):
    _, studies = cohort
    labels = [study.labels["lesion"] for study in studies]
    images = [photographs(study.volume) for study in studies]
    features = [np.histogram(i, bins=32, range=(0, 256), density=True)[0] for i in images]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_predict(classifier, features, labels, cv=5, method="predict_proba")
    assert roc_auc_score(labels, scores[:, 1]) < 0.85


def test_heads_are_nearly_symmetric():
    """Mirrored about the picture's middle, a healthy head resembles itself more than another."""
    cohort = DemoCohort(patients=20, size=64, prevalence=0.0, slices=(20, 20))
    volumes = [np.clip(cohort.render(p).volume, -100, 200).astype(float) for p in range(20)]
    own = [np.abs(v - v[:, :, ::-1]).mean() for v in volumes]
    others = [np.abs(a - b[:, :, ::-1]).mean() for a, b in itertools.pairwise(volumes)]
    assert np.mean(own) < np.mean(others)


def test_difficulty_makes_lesions_fainter_and_smaller():
    contrast, size = [], []
    for difficulty in (0.0, 0.9):
        lesions = DemoCohort(patients=12, prevalence=1.0, difficulty=difficulty)
        bright, voxels = [], []
        for patient in range(12):
            study = lesions.render(patient)
            inside = study.volume[study.mask > 0].astype(float)
            bright.append(np.ptp(np.percentile(inside, [10, 90])))
            voxels.append(study.mask.mean())
        contrast.append(np.mean(bright))
        size.append(np.mean(voxels))
    assert contrast[1] < 0.8 * contrast[0]
    assert size[1] < 0.7 * size[0]


@pytest.mark.parametrize("label", ["hemorrhage", "ischemia", "fracture", "mass", "edema"])
def test_each_of_five_labels_changes_the_head_where_the_mask_says(label):
    """A patient whose only label this is, against the same patient with other contrast."""
    cohort = DemoCohort(patients=400, labels=5, difficulty=0.0)
    alone = [
        patient
        for patient in range(cohort.patients)
        if [name for name, on in cohort.labels_of(patient).items() if on] == [label]
    ]
    study = cohort.render(alone[0])
    healthy = dataclasses.replace(cohort, prevalence=0.0).render(alone[0])
    change = np.abs(study.volume.astype(float) - healthy.volume)
    assert study.mask.any()
    assert not healthy.mask.any()
    assert change[study.mask > 0].mean() > 8
    if label != "mass":
        assert change[study.mask == 0].mean() < 1


def test_reader_gives_photographs_and_masks():
    scan = index_demo(patients=3, size=24, labels="5", slices=(4, 6))
    assert scan.label_names == ["hemorrhage", "ischemia", "fracture", "mass", "edema"]
    assert [study.source for study in scan.studies] == [f"patient-000{n}" for n in (1, 2, 3)]
    slices = scan.studies[0].read()
    assert slices.images[0].dtype == np.uint8
    assert slices.images[0].shape == (24, 24)
    assert len(slices.images) == len(slices.masks)
    assert 4 <= len(slices.images) <= 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 3}, "labels=3 is not 1 or 5"),
        ({"difficulty": 1.5}, "difficulty=1.5 is not 0 to 1"),
        ({"slices": (9, 3)}, "slices=.* is not fewest and most"),
        ({"patients": 0}, "patients=0 is not 1 or more"),
        ({"source": "folder"}, "leave out the source"),
        ({"labels": "labels.csv"}, "labels='labels.csv' is not 1 or 5"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        index_demo(**settings)


def test_written_class_folders_are_read_back(tmp_path):
    cohort = DemoCohort(patients=6, size=24, slices=(3, 5))
    scan = index_image_folder(write_image_folder(cohort, tmp_path / "cohort"))
    assert scan.label_names == ["lesion"]
    assert not scan.audit_entries
    by_patient = {study.patient: study for study in scan.studies}
    for number in range(6):
        study, rendered = by_patient[str(number + 1)], cohort.render(number)
        assert study.labels == rendered.labels
        np.testing.assert_array_equal(study.read().images, photographs(rendered.volume))


def test_written_patient_folders_are_read_back(tmp_path):
    cohort = DemoCohort(patients=4, size=24, labels=5, slices=(3, 5), prevalence=0.5)
    scan = index_image_folder(write_image_folder(cohort, tmp_path, layout="patient"))
    assert [study.labels for study in scan.studies] == [cohort.labels_of(n) for n in range(4)]
    np.testing.assert_array_equal(
        scan.studies[2].read().images, photographs(cohort.render(2).volume)
    )
    with pytest.raises(InputError, match="layout=class holds one label"):
        write_image_folder(cohort, tmp_path / "other", layout="class")


# ------------------------------------------------------------------------------------------- sites


def test_sites_change_no_picture_and_no_id():
    plain, with_sites = index_demo(patients=9), index_demo(patients=9, sites=3)
    assert plain.listing == with_sites.listing
    assert plain.columns is None
    for study, other in zip(plain.studies, with_sites.studies, strict=True):
        assert (study.source, study.patient, study.labels) == (
            other.source,
            other.patient,
            other.labels,
        )
        assert study.others == {}
        assert list(other.others) == with_sites.columns.names
    pair = [DemoCohort(patients=2, size=32, sites=sites) for sites in (0, 3)]
    np.testing.assert_array_equal(pair[0].render(1).volume, pair[1].render(1).volume)


@pytest.mark.parametrize("kind", ["labels", "classes", "grades"])
def test_ages_tell_of_lesions_and_nothing_else_does(kind):
    cohort = DemoCohort(patients=2000, kind=kind, sites=4)
    drawn = [cohort.columns_of(patient) for patient in range(cohort.patients)]
    last = np.array([list(cohort.labels_of(patient).values())[-1] for patient in range(2000)])
    ages = np.array(
        [np.nan if row["covariate.age"] is None else row["covariate.age"] for row in drawn]
    )
    known = ~np.isnan(ages)
    assert 0.07 < 1 - known.mean() < 0.13
    assert 0.7 < roc_auc_score(last[known], ages[known]) < 0.9
    assert 0.03 < np.mean([row["covariate.sex"] is None for row in drawn]) < 0.07
    for name, value in (("site", "hospital 1"), ("covariate.sex", "F")):
        is_value = np.array([row[name] == value for row in drawn])
        assert abs(roc_auc_score(last, is_value) - 0.5) < 0.05
    days = [row["date"] for row in drawn]
    assert abs(roc_auc_score(last, days) - 0.5) < 0.05
    assert {row["site"] for row in drawn} == {f"hospital {number}" for number in range(1, 5)}


def test_a_cohort_of_classes_is_written_a_folder_each(tmp_path):
    cohort = DemoCohort(patients=6, size=16, slices=(3, 4), kind="classes")
    scan = index_image_folder(write_image_folder(cohort, tmp_path), classes="folder")
    assert set(scan.label_names) <= set(cohort.label_names)
    for study in scan.studies:
        labels = cohort.labels_of(int(study.patient) - 1)
        assert {name: labels[name] for name in scan.label_names} == study.labels


@pytest.mark.parametrize("setting", [{"labels": 5}, {"prevalence": 0.3}])
def test_what_is_of_yes_no_labels_is_no_setting_of_classes(setting):
    with pytest.raises(InputError, match="are of yes/no labels, and kind='grades' has none"):
        DemoCohort(kind="grades", **setting)
