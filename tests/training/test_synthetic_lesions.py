"""Synthetic lesions: where they may lie, what they change, and what an encoder learns from them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from small_run import SMALL

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import SyntheticLesions
from medseq_tf.runs.run import Run
from medseq_tf.training import pretraining
from medseq_tf.training.loop import Fitter
from medseq_tf.training.synthetic_lesions import add_lesion, tissue, vary
from medseq_tf.training.train import train

RECIPE = (
    *SMALL,
    "model.encoder.paddings=[2, 1]",
    "model.encoder.filters=[8, 12]",
    "model.encoder.pooling=lesion_map",
    "model.encoder.mirrored=true",
    "model.encoder.fsm=null",
    "pretraining.steps=6",
    "pretraining.slices=4",
)


def head(slices=5, size=64):
    """Grey tissue in a white ring, on black."""
    image = np.zeros((size, size), np.float32)
    cv2.ellipse(image, (size // 2,) * 2, (size // 3, size * 2 // 5), 0, 0, 360, 1.0, -1)
    cv2.ellipse(image, (size // 2,) * 2, (size // 3 - 3, size * 2 // 5 - 3), 0, 0, 360, 0.5, -1)
    return np.repeat(image[None], slices, axis=0)


def recipe(*overrides):
    return recipes.load(recipes.Experiment(), [*RECIPE, *overrides])


@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from([32, 64]))
@settings(max_examples=40)
def test_a_lesion_lies_in_tissue_and_changes_nothing_else(seed, slices, size):
    image = head(slices, size)
    changed, mask = add_lesion(image, SyntheticLesions(), np.random.default_rng(seed))
    where = tissue(image)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert not mask[where == 0].any()
    np.testing.assert_array_equal(changed[where == 0], image[where == 0])
    assert np.isfinite(changed).all()


def test_tissue_is_inside_the_skull():
    image, size = head(1)[0], 64
    where = tissue(image[None])[0]
    assert where[size // 2, size // 2] == 1
    assert not where[image == 0].any()
    assert not where[image == 1].any()


@pytest.mark.parametrize(("bright", "sign"), [(0.0, -1), (1.0, 1)])
def test_a_lesion_is_darker_or_brighter_than_tissue_by_its_contrast(bright, sign):
    wanted = SyntheticLesions(bright=bright, contrast=(0.2, 0.2), radius=(0.1, 0.2))
    for seed in range(8):
        image = head()
        changed, mask = add_lesion(image, wanted, np.random.default_rng(seed))
        assert mask.any()
        found = (changed - image)[mask > 0]
        assert np.sign(found.mean()) == sign
        assert 0.05 < np.abs(found.mean()) < 0.45  # two lesions may overlap


def test_without_tissue_nothing_is_added():
    black = np.zeros((4, 64, 64), np.float32)
    changed, mask = add_lesion(black, SyntheticLesions(), np.random.default_rng(0))
    np.testing.assert_array_equal(changed, black)
    assert not mask.any()


def test_a_mask_is_varied_as_its_slices_are():
    image = head()
    image[:, 30:40, 24:30] = 0.9
    mask = (np.abs(image - 0.9) < 0.01).astype(np.float32)
    for seed in range(5):
        varied, moved = vary(image, mask, np.random.default_rng(seed))
        inside = cv2.erode(moved[0], np.ones((3, 3)))
        around = cv2.dilate(moved[0], np.ones((7, 7))) - cv2.dilate(moved[0], np.ones((3, 3)))
        assert varied[0][inside > 0].mean() > varied[0][around > 0].mean() + 0.2


def test_one_seed_gives_one_batch(demo_data):
    prepared, wanted = Prepared.load(demo_data), recipe()
    store = SliceStore(prepared, wanted)
    rows = pretraining.healthy(prepared, np.arange(len(prepared)))
    draws = [
        pretraining.lesion_batch(store, rows, wanted, np.random.default_rng(seed))
        for seed in (3, 3, 4)
    ]
    for first, second in zip(draws[0], draws[1], strict=True):
        np.testing.assert_array_equal(first, second)
    assert draws[0][0].shape != draws[2][0].shape or (draws[0][0] != draws[2][0]).any()
    slices, mask = draws[0]
    assert slices.shape[1:] == (32, 32, 1)
    assert mask.shape == slices.shape[:3]


def test_only_studies_without_a_finding_get_lesions(demo_data):
    prepared = Prepared.load(demo_data)
    rows = np.arange(len(prepared))
    np.testing.assert_array_equal(
        pretraining.healthy(prepared, rows), np.flatnonzero(prepared.labels[:, 0] == 0)
    )
    with pytest.raises(InputError, match=r"without a finding.*set pretraining to null"):
        pretraining.healthy(prepared, np.flatnonzero(prepared.labels[:, 0] == 1))


def test_without_one_no_run_is_begun(demo_data, tmp_path):
    prepared = Prepared.load(demo_data)
    ill = np.flatnonzero(prepared.labels[:, 0] == 1)
    splits = {"train": ill[:-2], "validation": ill[-2:-1], "test": ill[-1:]}
    with pytest.raises(InputError, match="the training split has no negative patient"):
        train(recipe(), prepared, tmp_path / "run", splits=splits, track=False, verbose=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_learns_synthetic_lesions_and_finds_others(demo_data):
    prepared = Prepared.load(demo_data)
    wanted = recipe("pretraining.steps=150", "pretraining.contrast=[0.2, 0.5]")
    store = SliceStore(prepared, wanted)
    rows = pretraining.healthy(prepared, np.arange(len(prepared)))
    seen, unseen = rows[::2], rows[1::2]
    model = models.build(wanted.model, (32, 32, 1), 1, seed=0)
    pretraining.pretrain(model, store, seen, wanted, verbose=False)
    slices, masks = zip(
        *(
            pretraining.lesion_batch(store, unseen, wanted, np.random.default_rng(seed))
            for seed in range(100, 110)
        ),
        strict=True,
    )
    features = np.asarray(model.encoder.backbone.layer(np.concatenate(slices), training=False))
    area = np.concatenate(masks).sum((1, 2))
    clear = (area == 0) | (area > 20)
    assert features.shape == (len(area), 2)
    assert roc_auc_score(area[clear] > 0, features[clear, 1]) > 0.75


def test_the_fit_leaves_a_frozen_encoder_as_it_is_and_resumes_to_the_same_bits(
    demo_data, tmp_path, monkeypatch
):
    from medseq_tf.training import loop

    class Killed(BaseException):
        pass

    def weights(run):
        return [np.asarray(v) for v in run.model().variables]

    def make(out, **arguments):
        return train(recipe("fit.checkpoint_minutes=0"), demo_data, tmp_path / out,
                     track=False, verbose=False, **arguments)  # fmt: skip

    kept = []
    pretrain = loop.pretrain

    def remember(model, *arguments, **more):
        pretrain(model, *arguments, **more)
        kept.append([w.numpy() for w in model.encoder.backbone.weights])

    monkeypatch.setattr(loop, "pretrain", remember)
    whole = make("whole")
    assert len(kept) == 1
    for before, after in zip(kept[0], whole.model().encoder.backbone.weights, strict=True):
        np.testing.assert_array_equal(before, after.numpy())

    save, saves = Fitter.save, []

    def die(self):
        save(self)
        saves.append(1)
        if len(saves) == 2:
            raise Killed

    monkeypatch.setattr(Fitter, "save", die)
    with pytest.raises(Killed):
        make("killed")
    monkeypatch.setattr(Fitter, "save", save)
    resumed = make("killed", resume=True)
    assert len(kept) == 2  # a restored state is past the pretraining
    for first, second in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(first, second)
    assert Run.open(tmp_path / "killed").info["status"] == "finished"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.encoder.pooling=average", "needs model.encoder.pooling=lesion_map"),
        ("input.neighbours=1", "set input.neighbours=0"),
        ("model.encoder.weights=per_position", "need weights=shared"),
        ("pretraining.radius=[0, 0.1]", "above 0"),
    ],
)
def test_what_does_not_fit_is_one_line(change, message):
    with pytest.raises(InputError, match=message):
        recipe(change)
