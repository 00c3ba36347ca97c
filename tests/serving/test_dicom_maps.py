"""Maps of a study that was predicted are those that explain gives of it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from small_models import NETWORK, description_of, members_of, model_of, recipe_of
from small_run import run_small

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.records import StudyRecord
from medseq_tf.dataset.tfrecord import frame
from medseq_tf.evaluation.explain.explain import explain_study
from medseq_tf.serving.dicom_results.maps import slice_maps, told_label
from medseq_tf.serving.export import export
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.open_model import GraphModel, open_model
from medseq_tf.serving.study_prediction import FoundStudy, Prediction
from medseq_tf.training.train import train

SEGMENTER = (
    "input.size=16",
    "model.encoder.width=2",
    "sequence.per_study=2",
    "fit.epochs=2",
    "fit.batch_size=16",
)


@pytest.fixture(scope="module")
def segmenter(demo_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unet"
    return train("unet", demo_data, out, overrides=SEGMENTER, track=False, verbose=False)


@pytest.fixture(scope="module")
def classifier(demo_data, tmp_path_factory):
    return run_small(demo_data, tmp_path_factory.mktemp("runs") / "one", "fit.epochs=1")


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


def record_of(prepared, row):
    return StudyRecord(framed=frame(prepared.record(row)))


def found(covariates=None):
    return FoundStudy(None, "a path", covariates=covariates)


def explained(run, prepared, row, **settings):
    study = prepared.studies["study_id"].iat[row]
    ((_, heat),) = explain_study(run, prepared, study, **settings).heat.items()
    return heat


def test_lesion_maps_are_those_of_explain_at_the_size_of_the_stored_slices(segmenter, prepared):
    expected = explained(segmenter, prepared, 3)
    maps = slice_maps(found(), record_of(prepared, 3), GraphModel.of_run(segmenter))
    assert (maps.kind, maps.label, maps.values.dtype) == ("lesion", "lesion", np.float32)
    assert maps.values.shape == (len(expected), 32, 32)
    assert expected.shape[1:] == (16, 16)
    larger = tf.image.resize(expected[..., None], (32, 32))[..., 0]
    np.testing.assert_allclose(maps.values, larger, atol=1e-5)
    assert 0 <= maps.values.min() < maps.values.max() <= 1


def test_an_exported_segmenter_tells_the_same_as_its_run(segmenter, prepared, tmp_path):
    exported = open_model(export(segmenter, tmp_path / "served").path)
    run = GraphModel.of_run(segmenter)
    for row in (0, 3):
        record = record_of(prepared, row)
        ours, theirs = (slice_maps(found(), record, model).values for model in (run, exported))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_padding_and_batch_mates_change_no_lesion_map(segmenter, prepared):
    model = GraphModel.of_run(segmenter)
    files = [prepared.encoded_slices(row) for row in (0, 3)]
    files = [files[0][:2], files[1]]
    longest = len(files[1])
    rows = [one + [b""] * (longest - len(one)) for one in files]
    lengths = tf.constant(list(map(len, files)))
    outputs = model._signatures["lesion_map"](image_bytes=tf.constant(rows), lengths=lengths)
    for one, together in zip(files, outputs["lesion_map"].numpy(), strict=True):
        np.testing.assert_allclose(together[: len(one)], model.lesion_map(one), atol=1e-6)
        assert (together[len(one) :] == 0).all()


def test_heat_is_grad_cam_as_a_share_of_its_greatest_value(classifier, prepared):
    expected = explained(classifier, prepared, 3, pixels=["grad_cam"])
    maps = slice_maps(found(), record_of(prepared, 3), GraphModel.of_run(classifier))
    assert (maps.kind, maps.label) == ("heat", prepared.label_names[0])
    assert expected.shape == maps.values.shape
    assert np.nanmax(expected) > 0
    np.testing.assert_allclose(maps.values, expected / np.nanmax(expected), atol=1e-4)


def test_heat_of_an_ensemble_is_the_weighted_mean(automatic, prepared):
    maps = slice_maps(found(), record_of(prepared, 3), GraphModel.of_run(automatic))
    assert maps is None or (maps.values.shape[1:] == (32, 32) and np.nanmax(maps.values) <= 1)


def test_an_exported_classifier_tells_nothing(prepared):
    recipe = recipe_of(NETWORK)
    served = ServingModel(members_of([model_of(recipe)], recipe), description_of("uint8"))
    assert "lesion_map" not in served.signatures
    assert slice_maps(found(), record_of(prepared, 3), GraphModel(served.signatures)) is None


def test_the_label_that_is_shown_is_the_one_most_above_its_threshold():
    description = description_of("uint8")
    rows = [
        Prediction("s", "a", probability=0.5, threshold=0.6),
        Prediction("s", "b", probability=0.3, threshold=0.2),
    ]
    assert told_label(description, rows) == "b"
    assert told_label(description, ()) == "a"
    assert told_label(description, [Prediction("s", "tumour", called="glioma")]) == "glioma"
