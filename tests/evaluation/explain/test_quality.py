"""Quality of explanations: against lesion masks, and better than chance."""

from __future__ import annotations

import numpy as np
import pytest

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explainer import Explainer
from medseq_tf.evaluation.explain.explanation import PIXEL_METHODS
from medseq_tf.evaluation.explain.quality import _score_methods, measure_quality


def test_quality_knows_its_methods_whatever_the_studies(run, demo_data):
    with pytest.raises(InputError, match="pixels = 'magic': expected grad_cam or integrated"):
        measure_quality(run, demo_data, pixels=["magic"])


def test_quality_is_measured_against_masks_and_chance(run, demo_data, prepared):
    found = measure_quality(run, demo_data, "test")
    table = found.table.set_index("method")
    assert {"importance", "occlusion", "alone", "gradients", "random"} <= set(table.index)
    assert set(PIXEL_METHODS) <= set(table.index)
    assert table.loc["random", "slice_hit"] == table.loc["random", "top_k"]
    assert 0 < table.loc["random", "pixel_hit"] < 0.3
    values = table.drop(columns="studies").stack().dropna()
    assert values.between(0, 1).all()
    starts = found.deletion.groupby("method")["probability"].first()
    assert starts.nunique() == 1
    assert found.figure().axes
    assert "studies with a lesion" in found.text()
    middles = []
    every = Explainer(run, prepared, run.splits["test"])
    for name in run.splits["test"]:
        shown, masks = every.shown(name).distinct, prepared.masks(every.row_of[name])
        lesion = None if masks is None else masks[shown].any(axis=(1, 2))
        if lesion is not None and lesion.any() and not lesion.all():
            middles.append(lesion[len(lesion) // 2])
    assert table.loc["middle", "slice_hit"] == pytest.approx(np.mean(middles))
    assert f"the middle slice shows a lesion in {np.mean(middles):.0%}" in found.text()


def test_a_perfect_explanation_scores_one_and_its_reverse_nothing(run, demo_data, prepared):
    every = Explainer(run, prepared, prepared.studies["study_id"].tolist())
    for name in prepared.studies["study_id"]:
        masks = prepared.masks(every.row_of[name])
        shown = every.shown(name).distinct
        lesion = masks[shown].any(axis=(1, 2))
        if lesion.any() and lesion.sum() * 2 < len(lesion):
            break
    found = every.explain(name)
    mine = found.slices["shown"] > 0
    found.slices.loc[mine, "importance"] = lesion.astype(float)
    found.slices.loc[mine, "alone"] = -lesion.astype(float)
    scored = _score_methods(found, every.shown(name), masks, lesion, 0)
    figures = {method: values for method, values, _ in scored}
    assert (figures["importance"]["slice_hit"], figures["importance"]["top_k"]) == (1, 1)
    assert (figures["alone"]["slice_hit"], figures["alone"]["top_k"]) == (0, 0)


def test_without_masks_quality_says_so(run, tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(Prepared, "masks", lambda self, row, indices=None: None)
    with pytest.raises(InputError, match="no positive test study with a lesion mask"):
        measure_quality(run, prepared)
