"""Maps of a study that was predicted are those that explain gives of it."""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from small_models import COVARIATES, NETWORK, description_of, members_of, model_of, recipe_of
from small_run import SMALL

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.records import StudyRecord
from medseq_tf.dataset.tfrecord import frame
from medseq_tf.evaluation.explain import pixel_maps
from medseq_tf.evaluation.explain.graphs import ModelGraphs
from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.serving.dicom_results import maps as maps_module
from medseq_tf.serving.dicom_results.maps import slice_maps, told_label
from medseq_tf.serving.member_group import ServedMember
from medseq_tf.serving.model import LoadedRun, ServingModel
from medseq_tf.serving.open_model import GraphModel, open_saved_model
from medseq_tf.serving.study_prediction import FoundStudy, Prediction

ROW = 3


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


def record_of(prepared, row=ROW):
    return StudyRecord(framed=frame(prepared.record(row)))


def found(covariates=None):
    return FoundStudy(None, "a path", covariates=covariates)


def in_memory(prepared, *members, **changes):
    """A run of these members that was trained on the data set."""
    kind = {"uint8": "uint8", "uint16": "int16"}[prepared.info["storage"]["dtype"]]
    labels = prepared.label_names
    description = dataclasses.replace(
        description_of(kind),
        labels=labels,
        thresholds=dict.fromkeys(labels, 0.5),
        temperatures=dict.fromkeys(labels, 1.0),
        size=prepared.info["size"],
        **changes,
    )
    run = SimpleNamespace(path=prepared.path, dataset=prepared.info)
    loaded = LoadedRun(run, list(members), description)
    return GraphModel(loaded.serving_model().signatures, prepared.path, loaded)


def member(recipe, weight=1.0, seed=1, **settings):
    shape = (recipe.input.size, recipe.input.size, recipe.input.channels)
    model = models.build(recipe.model, shape, labels=1, seed=seed, **settings)
    return ServedMember(model, recipe, weight)


def classifier(*overrides):
    return recipes.load(recipes.Experiment(), [*SMALL, *overrides])


def segmenter(preset="unet", **settings):
    width = ["model.encoder.width=2", "input.size=16"]
    return member(recipes.load(preset, width), **settings)


def explained(prepared, one):
    """The study before a member, as explain shows it."""
    graphs = ModelGraphs(one.model, one.recipe)
    return ShownStudy(graphs, SliceStore(prepared, one.recipe), ROW)


@pytest.mark.parametrize("preset", ["unet", "dunet", pytest.param("xnet", marks=pytest.mark.slow)])
def test_lesion_maps_are_those_of_explain_at_the_size_of_the_stored_slices(prepared, preset):
    one = segmenter(preset)
    expected = pixel_maps.lesion_map(explained(prepared, one))
    maps = slice_maps(found(), record_of(prepared), in_memory(prepared, one))
    assert (maps.kind, maps.label, maps.values.dtype) == ("lesion", "lesion", np.float32)
    assert expected.shape[1:] == (16, 16)
    larger = tf.image.resize(expected[..., None], (32, 32))[..., 0]
    np.testing.assert_allclose(maps.values, larger, atol=1e-5)
    assert 0 <= maps.values.min() < maps.values.max() <= 1


def test_an_exported_segmenter_of_several_members_tells_their_mean(prepared, tmp_path):
    members = [segmenter(weight=0.25), segmenter(weight=0.75, seed=2)]
    run = in_memory(prepared, *members)
    served = run.loaded.serving_model()
    kept = tf.Module()
    kept.weights = served.weights
    signatures = {name: served.signatures[name] for name in ("describe", "lesion_map")}
    tf.saved_model.save(kept, str(tmp_path), signatures=signatures)
    exported = open_saved_model(tmp_path)
    alone = [in_memory(prepared, one) for one in members]
    for row in (0, ROW):
        ours, theirs, first, second = (
            slice_maps(found(), record_of(prepared, row), model).values
            for model in (run, exported, *alone)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_allclose(ours, 0.25 * first + 0.75 * second, atol=1e-6)


def test_padding_and_batch_mates_change_no_lesion_map(prepared):
    model = in_memory(prepared, segmenter())
    files = [prepared.encoded_slices(row) for row in (0, ROW)]
    files = [files[0][:2], files[1]]
    longest = len(files[1])
    rows = [one + [b""] * (longest - len(one)) for one in files]
    lengths = tf.constant(list(map(len, files)))
    ask = model.loaded.serving_model().lesion_map
    outputs = ask(image_bytes=tf.constant(rows), lengths=lengths)
    for one, together in zip(files, outputs["lesion_map"].numpy(), strict=True):
        np.testing.assert_allclose(together[: len(one)], model.lesion_map(one), atol=1e-6)
        assert (together[len(one) :] == 0).all()


def test_heat_is_grad_cam_as_a_share_of_its_greatest_value(prepared):
    one = member(classifier())
    expected = pixel_maps.grad_cam(explained(prepared, one), 0)
    maps = slice_maps(found(), record_of(prepared), in_memory(prepared, one))
    assert (maps.kind, maps.label) == ("heat", prepared.label_names[0])
    assert expected.shape == maps.values.shape
    assert np.nanmax(expected) > 0
    np.testing.assert_allclose(maps.values, expected / np.nanmax(expected), atol=1e-4)


def test_heat_of_an_ensemble_is_the_weighted_mean(prepared):
    """Of members that read slices at different sizes."""
    members = [
        member(classifier(), 0.25),
        member(classifier("input.size=40"), 0.75, seed=2),
    ]
    record = record_of(prepared)
    alone = [slice_maps(found(), record, in_memory(prepared, m)).values for m in members]
    assert all(np.nanmax(one) > 0.9 for one in alone)
    maps = slice_maps(found(), record, in_memory(prepared, *members))
    np.testing.assert_allclose(maps.values, 0.25 * alone[0] + 0.75 * alone[1], atol=1e-5)


def test_slices_that_no_member_is_shown_have_no_heat(prepared):
    """What a member is not shown, it says nothing of: the mean is of the others."""
    few = classifier("sequence.policy=even", "sequence.length=2")
    members = [member(few, 0.5), member(classifier(), 0.5, seed=2)]
    record = record_of(prepared)
    alone = [slice_maps(found(), record, in_memory(prepared, m)).values for m in members]
    shown = [np.isfinite(one).all(axis=(1, 2)) for one in alone]
    assert [one.sum() for one in shown] == [2, 6]
    assert (shown[0] != shown[1]).any()
    maps = slice_maps(found(), record, in_memory(prepared, *members))
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slices that neither is shown
        expected = np.nanmean(alone, axis=0)
    np.testing.assert_allclose(maps.values, expected, atol=1e-5)


def test_covariates_are_told_to_a_model_that_reads_them(prepared, monkeypatch):
    known = {covariate["name"]: covariate for covariate in COVARIATES}
    one = member(classifier("model.covariates=[sex, age]"), covariates=known)
    one.model.covariates.standardise(np.float32([[0, 20], [1, 80]]))
    info = {**prepared.info, "columns": {"covariates": known}}
    graph = in_memory(dataclasses.replace(prepared, info=info), one, covariates=COVARIATES)
    told = []

    class Told(ShownStudy):
        def told_of(self, *arguments):
            told.append(self.told["covariates"].tolist())
            return super().told_of(*arguments)

    monkeypatch.setattr(maps_module, "ShownStudy", Told)
    for covariates in ({"age": 61, "sex": "M"}, {"age": 61}, None):
        slice_maps(found(covariates), record_of(prepared), graph)
    np.testing.assert_array_equal(told, [[[1, 61]], [[np.nan, 61]], [[np.nan, np.nan]]])


def test_networks_without_feature_maps_have_no_heat(prepared):
    graph = in_memory(prepared, member(classifier("model.encoder={name: pixels}")))
    assert slice_maps(found(), record_of(prepared), graph) is None


def test_an_exported_classifier_tells_nothing(prepared):
    recipe = recipe_of(NETWORK)
    served = ServingModel(members_of([model_of(recipe)], recipe), description_of("uint8"))
    assert "lesion_map" not in served.signatures
    assert slice_maps(found(), record_of(prepared), GraphModel(served.signatures)) is None


def test_the_label_that_is_shown_is_the_one_most_above_its_threshold():
    description = description_of("uint8")
    rows = [
        Prediction("s", "a", probability=0.5, threshold=0.6),
        Prediction("s", "b", probability=0.3, threshold=0.2),
    ]
    assert told_label(description, rows) == "b"
    assert told_label(description, ()) == "a"
    assert told_label(description, [Prediction("s", "tumour", called="glioma")]) == "glioma"
