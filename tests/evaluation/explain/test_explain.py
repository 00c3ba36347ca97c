"""The command `explain`: studies chosen, explained by slice and pixel, and written."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

import medseq_tf
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explain import (
    choose_studies,
    explain,
    explain_studies,
    explain_study,
)
from medseq_tf.evaluation.explain.explanation import PIXEL_METHODS


def test_a_study_is_explained_by_slice_and_pixel(run, demo_data, prepared):
    name = run.splits["test"][0]
    found = explain_study(run, demo_data, name, pixels=PIXEL_METHODS)
    stored = run.predictions.set_index("study").loc[name]
    assert found.probabilities["lesion"] == pytest.approx(stored["probability"], abs=1e-5)
    assert found.thresholds == run.thresholds
    count = int(prepared.studies.set_index("study_id").loc[name, "slices"])
    assert found.slices["slice"].tolist() == list(range(count))
    shown = found.shown_slices()
    assert len(shown) == 6
    assert (
        shown[["importance", "occlusion", "alone", "running", "gradients"]].notna().all(axis=None)
    )
    assert shown["running"].iloc[-1] == pytest.approx(stored["probability"], abs=1e-5)
    assert set(found.heat) == {(m, "lesion") for m in PIXEL_METHODS}
    sums = np.nansum(found.heat["integrated_gradients", "lesion"], axis=(1, 2))
    np.testing.assert_allclose(found.slices["gradients"].fillna(0), sums, atol=1e-6)
    assert (found.top(2)["importance"].to_numpy() == np.sort(shown["importance"])[::-1][:2]).all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.curves().axes
    assert len(found.sheet(columns=4).axes) == 8
    assert name in found.alternative()
    again = explain_study(run, demo_data, name, pixels=PIXEL_METHODS)
    pd.testing.assert_frame_equal(found.slices, again.slices)


def test_the_command_writes_figures_and_a_table(run, demo_data, tmp_path):
    found = medseq_tf.explain(run, demo_data, out=tmp_path / "out")
    assert {file.suffix for file in found.files} == {".csv", ".png"}
    assert all(file.stat().st_size for file in found.files)
    for one in found.studies:
        table = pd.read_csv(tmp_path / "out" / f"{one.study}.csv")
        assert len(table) == len(one.slices)
        assert one.study in found.text()


def test_the_surest_wrong_ones_are_chosen_then_a_right_one_of_each_class():
    table = pd.DataFrame(
        {
            "study": list("abcdefg"),
            "split": "test",
            "label": "lesion",
            "truth": [1.0, 0, 1, 0, 1, 0, np.nan],
            "probability": [0.1, 0.9, 0.45, 0.2, 0.8, 0.4, 0.99],
            "threshold": 0.5,
        }
    )
    table["positive"] = table["probability"] >= table["threshold"]
    assert choose_studies(table) == ["a", "b", "c", "e", "d"]
    assert choose_studies(table, wrong=1) == ["a", "e", "d"]
    called = table["positive"]
    again = table.assign(repeat=2, positive=~called, probability=1 - table["probability"])
    repeated = pd.concat([table.assign(repeat=1), again])
    assert choose_studies(repeated) == choose_studies(table), "the first repeat alone"


def test_a_wrong_method_is_said_for_several_studies_too(run, demo_data):
    pairs = [(name, "lesion") for name in run.splits["test"][:2]]
    with pytest.raises(InputError, match="pixels = 'magic': expected grad_cam or integrated"):
        explain_studies(run, demo_data, pairs, pixels=["magic"])
    with pytest.raises(InputError, match="label = 'tumour'"):
        explain_studies(run, demo_data, [(run.splits["test"][0], "tumour")])
    assert len(explain_studies(run, demo_data, pairs)) == 2


def test_a_study_that_cannot_be_read_is_left_out_of_several(run, demo_data, monkeypatch):
    first, second = run.splits["test"][:2]
    read = Prepared.slices

    def damaged(self, row, indices=None):
        if self.studies["study_id"].iat[row] == first:
            raise InputError(f"study {first} is damaged")
        return read(self, row, indices)

    monkeypatch.setattr(Prepared, "slices", damaged)
    found = explain_studies(run, demo_data, [(first, "lesion"), (second, "lesion")])
    assert [one.study for one in found] == [second]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"study_id": "nobody"}, "has no study 'nobody'"),
        ({"label": "tumour"}, "label = 'tumour': expected one of lesion"),
        ({"pixels": ["magic"]}, "pixels = 'magic': expected grad_cam or integrated_gradients"),
    ],
)
def test_what_cannot_be_explained_is_said(run, demo_data, arguments, message):
    with pytest.raises(InputError, match="label = 'x'"):
        explain(run, demo_data, label="x")
    with pytest.raises(InputError, match="seed = -1: expected a whole number"):
        explain(run, demo_data, seed=-1)
    arguments = {"study_id": run.splits["test"][0]} | arguments
    with pytest.raises(InputError, match=message):
        explain_study(run, demo_data, **arguments)


def test_a_damaged_model_is_no_study_that_cannot_be_read(run, demo_data, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "model.keras").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"model\.keras"):
        explain_studies(tmp_path / "run", demo_data, [(run.splits["test"][0], "lesion")])
