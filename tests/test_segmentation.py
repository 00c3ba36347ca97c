"""Segmenters from masks to the export: on the same road as any other model."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from medseq_tf import recipe as recipes
from medseq_tf.cli import cli
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.explain.explain import explain_study
from medseq_tf.evaluation.explain.quality import measure_quality
from medseq_tf.evaluation.inference import study_predictions, study_probabilities
from medseq_tf.input.batches import evaluation_batches, training_batches
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.serving.export import export
from medseq_tf.training.train import train

SIDE = 16
SMALL = (
    f"input.size={SIDE}",
    "model.encoder.width=2",
    "sequence.per_study=2",
    "fit.epochs=2",
    "fit.batch_size=16",
)


class Drawn(Prepared):
    """Studies of pictures that are white where their lesion is, so that picture and mask agree."""

    def slices(self, row, indices=None):
        images = 255 * self.studies["drawn"].iat[row]
        return images if indices is None else images[indices]

    def masks(self, row, indices=None):
        if self.studies["unmasked"].iat[row]:
            return None
        masks = self.studies["drawn"].iat[row]
        return masks if indices is None else masks[indices]


@pytest.fixture
def drawn(rng, tmp_path):
    """Six studies of 2 to 4 slices; the last two have no masks and the labels 0 and 1."""
    counts = [2, 3, 4, 2, 3, 3]
    discs = []
    for count in counts:
        discs.append(np.zeros((count, 32, 32), np.uint8))
        for image in discs[-1]:
            cv2.circle(
                image, tuple(map(int, rng.integers(8, 24, 2))), int(rng.integers(4, 8)), 1, -1
            )
    table = pd.DataFrame(
        {
            "study_id": [f"{i:016x}" for i in range(6)],
            "slices": counts,
            "drawn": discs,
            "unmasked": [False] * 4 + [True] * 2,
            "label.lesion": [1.0, 1.0, 1.0, 1.0, 0.0, 1.0],
        }
    )
    info = {
        "label_names": ["lesion"],
        "modality": "photograph",
        "storage": {"dtype": "uint8", "offset": 0},
        "fingerprint": "of what is drawn",
    }
    return Drawn(tmp_path, info, table)


def recipe(*overrides, preset="unet"):
    return recipes.load(
        preset, [*SMALL, "input.size=32", "input.mean=0", "input.std=1", *overrides]
    )


MOVED = (
    "sequence.length=3",
    "augment.rotation={degrees: 30, p: 1, per: slice}",
    "augment.flip={p: 0.5, per: slice}",
    "augment.resized_crop={scale: [0.5, 1], p: 1}",
    "augment.grid_distortion={p: 1}",
    "augment.optical_distortion={p: 1}",
)


def test_masks_are_moved_as_their_slices_are(drawn):
    batches = list(training_batches(drawn, range(4), recipe(*MOVED), epoch=1))
    assert batches
    for inputs, masks in batches:
        slices, lengths = inputs["slices"].numpy()[..., 0], inputs["lengths"].numpy()
        for image, mask, length in zip(slices, masks.numpy(), lengths, strict=True):
            np.testing.assert_array_equal(mask[:length], image[:length] >= 0.5)
            assert np.isnan(mask[length:]).all()
            assert mask[:length].any()


def test_noise_blur_and_holes_leave_the_masks_alone(drawn):
    fades = ("augment.gaussian_noise={p: 1}", "augment.gaussian_blur={p: 1}",
             "augment.coarse_dropout={p: 1}")  # fmt: skip
    plain = [masks for _, masks in training_batches(drawn, range(4), recipe(*MOVED), epoch=1)]
    faded = [m for _, m in training_batches(drawn, range(4), recipe(*MOVED, *fades), epoch=1)]
    for one, other in zip(plain, faded, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_study_without_masks_has_no_lesion_if_its_label_says_so(drawn):
    (_, masks, rows), *_ = evaluation_batches(drawn, [4, 5], recipe(), masks=True)
    by_row = dict(zip(rows.numpy(), masks.numpy(), strict=True))
    assert (by_row[4] == 0).all()
    assert np.isnan(by_row[5]).all()


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_masks_come_at_the_size_of_the_input(drawn, cache):
    store = SliceStore(drawn, recipe("input.size=16", f"fit.cache={cache}"))
    masks = store.masks(2, np.array([3, 1, 1]))
    assert masks.shape == (3, 16, 16)
    assert masks.dtype == np.float32
    assert set(np.unique(masks)) == {0, 1}
    np.testing.assert_array_equal(masks[1], masks[2])
    area = drawn.masks(2)[[3, 1]].mean(axis=(1, 2))
    np.testing.assert_allclose(masks[:2].mean(axis=(1, 2)), area, atol=0.03)


# ---------------------------------------------------------------------------------- the whole road


@pytest.fixture(scope="module")
def run(demo_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unet"
    return train("unet", demo_data, out, overrides=SMALL, track=False, verbose=False)


def test_a_run_is_scored_by_pixel_and_by_patient(run):
    assert {"val_dice", "val_iou", "val_loss", "val_auroc"} <= set(run.history)
    assert run.history["val_loss"].gt(0).all()
    table = run.metrics.set_index(["split", "metric"])["value"]
    test = run.predictions[run.predictions["split"] == "test"]
    expected = metrics.pixel_metrics(*(test[name] for name in ("found", "false", "missed")))
    for name, value in expected.items():
        assert table["test", name] == pytest.approx(float(value), nan_ok=True)
    assert 0 <= table["test", "auroc"] <= 1
    assert "dice" in (run.path / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_evaluate_gives_the_runs_own_figures(run, demo_data):
    found = evaluate(run, demo_data, resamples=20)
    own = run.predictions[run.predictions["split"] == "test"].reset_index(drop=True)
    columns = ["study", "probability", "found", "false", "missed"]
    pd.testing.assert_frame_equal(found.predictions[columns], own[columns])
    assert "pixel_precision" in found.text()


@pytest.mark.slow
def test_pixels_are_those_of_the_lesion_map(run, demo_data):
    """Counted again from the explanation, which asks the model another way."""
    prepared = Prepared.load(demo_data)
    store = SliceStore(prepared, run.experiment)
    row = int(np.flatnonzero(prepared.labels[:, 0] == 1)[0])
    model = run.model()
    answers = study_predictions(model, store, [row], run.experiment)
    alone = study_probabilities(model, store, [row], run.experiment)
    np.testing.assert_allclose(answers.probabilities, alone, atol=1e-5)
    found = explain_study(run, prepared, prepared.studies["study_id"].iat[row])
    assert list(found.heat) == [("lesion_map", "lesion")]
    called = found.heat["lesion_map", "lesion"] > 0.5
    truth = store.masks(row, np.arange(len(called))) == 1
    cells = (called & truth, called & ~truth, ~called & truth)
    np.testing.assert_array_equal(answers.pixels[0], [cell.sum() for cell in cells])


def test_pixels_are_those_of_the_slices_as_they_are(run, demo_data):
    prepared = Prepared.open(demo_data)
    store, rows, model = SliceStore(prepared, run.experiment), np.arange(4), run.model()
    recipe = recipes.load(run.experiment, ["sequence.evaluation.mirrored=true"])
    plain = study_predictions(model, store, rows, run.experiment)
    found = study_predictions(model, store, rows, recipe)
    np.testing.assert_array_equal(found.pixels, plain.pixels)
    assert found.loss == plain.loss
    assert (found.probabilities != plain.probabilities).any()
    expected = study_probabilities(model, store, rows, recipe)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


def test_other_explanations_of_pixels_are_refused(run, demo_data):
    study = run.splits["test"][0]
    command = ["explain", str(run.path), "--data", str(demo_data), "--study", study]
    done = CliRunner().invoke(cli, [*command, "--pixels", "grad_cam"])
    assert isinstance(done.exception, InputError)
    assert "'grad_cam': expected lesion_map" in str(done.exception)


@pytest.mark.slow
def test_quality_and_export_take_a_segmenter(run, demo_data, tmp_path):
    quality = measure_quality(run, demo_data)
    assert "lesion_map" in set(quality.table["method"])
    exported = export(run, tmp_path / "unet", data=demo_data)
    assert exported.difference < 1e-5


def test_data_without_masks_is_refused(drawn, tmp_path):
    drawn.studies["unmasked"] = True
    drawn.info.update(preparation={}, size=32)
    drawn.studies["patient_id"] = drawn.studies["study_id"]
    drawn.studies["slice_hashes"] = [[] for _ in range(6)]
    rows = {"train": np.arange(4), "validation": np.array([4]), "test": np.array([5])}
    asked = {"splits": rows, "track": False, "verbose": False}
    with pytest.raises(InputError, match="unet needs lesion masks"):
        train(recipe(), drawn, tmp_path / "run", **asked)
    with pytest.raises(InputError, match="has no lesion masks, from which a segmenter learns"):
        train(recipe("requires=null"), drawn, tmp_path / "run", **asked)
