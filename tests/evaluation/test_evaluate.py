"""The command `evaluate` from data to comparison."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from small_run import run_small

from medseq_tf.dataset import holdout_reuse
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.comparison import compare
from medseq_tf.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


@pytest.mark.slow
def test_a_cross_validated_run_from_data_to_comparison(prepared, tmp_path):
    """Folds, temperatures, subgroups, audit, comparison and JSON, through the functions."""
    first = run_small(prepared, tmp_path / "first", "fit.epochs=1", folds=2)
    second = run_small(prepared, tmp_path / "second", "fit.epochs=1", "seed=1", folds=2)
    ages = prepared.studies["study_id"] + "," + (np.arange(len(prepared)) % 2).astype(str)
    (tmp_path / "groups.csv").write_text("study_id,ward\n" + "\n".join(ages), "utf-8")
    found = evaluate(
        first,
        prepared,
        resamples=50,
        subgroups=tmp_path / "groups.csv",
        audit=True,
        compare=[second],
    )
    stored = first.predictions
    stored = stored[stored["split"] == "test"].sort_values("study")
    np.testing.assert_allclose(
        found.predictions.sort_values("study")[["probability", "calibrated"]],
        stored[["probability", "calibrated"]],
        atol=1e-5,
    )
    assert len(found.predictions) == len(prepared)
    assert found.audit.is_clean
    assert found.audit.parts["studies"].sum() == len(prepared)
    assert set(found.subgroups["subgroup"]) == {"slices", "ward"}
    by_fold = [
        roc_auc_score(part["truth"], part["probability"]) for _, part in stored.groupby("fold")
    ]
    values = found.table.set_index("metric")["value"]
    assert values["auroc"] == pytest.approx(np.mean(by_fold), abs=1e-6)
    rows = [json.loads(line) for line in found.json_lines().splitlines()]
    tables = {row["table"] for row in rows}
    assert {"metric", "calibration", "confusion", "subgroup", "difference", "part"} <= tables
    assert "differences, on the same patients" in found.text()
    alone = compare([first, second], resamples=50)
    assert alone.differences["difference"].notna().any()
    with pytest.raises(InputError, match="not with itself"):
        compare([first, first])


def test_a_comparison_that_is_refused_counts_as_no_read_of_the_test_patients(demo_data, tmp_path):
    shutil.copytree(demo_data, tmp_path / "data", ignore=shutil.ignore_patterns(holdout_reuse.FILE))
    prepared = Prepared.load(tmp_path / "data")
    run = run_small(prepared, tmp_path / "run", "fit.epochs=1")
    shutil.copytree(run.path, tmp_path / "of others")
    facts = tmp_path / "of others" / "dataset.json"
    info = json.loads(facts.read_text("utf-8")) | {"fingerprint": "another"}
    facts.write_text(json.dumps(info), "utf-8")
    before = (prepared.path / holdout_reuse.FILE).read_text("utf-8")
    with pytest.raises(InputError, match="another fingerprint"):
        evaluate(run, prepared, resamples=2, compare=[tmp_path / "of others"])
    shutil.copytree(run.path, tmp_path / "of nobody")
    splits = json.loads((run.path / "splits.json").read_text("utf-8"))
    splits["test"] = splits["train"][:2]
    (tmp_path / "of nobody" / "splits.json").write_text(json.dumps(splits), "utf-8")
    for refused in (
        lambda: evaluate(run, prepared, resamples=2, compare=[tmp_path / "of nobody"]),
        lambda: compare([run, tmp_path / "of nobody"], prepared, resamples=2),
    ):
        with pytest.raises(InputError, match="no study was tested by all of them"):
            refused()
    assert (prepared.path / holdout_reuse.FILE).read_text("utf-8") == before


def test_a_site_that_tells_the_label_is_said(prepared, tmp_path):
    run = run_small(prepared, tmp_path / "run", "fit.epochs=1")
    (label,) = prepared.label_names
    is_positive = prepared.studies[f"label.{label}"] == 1
    sites = replace(prepared, studies=prepared.studies.assign(site=is_positive.map(str)))
    found = evaluate(run, sites, split="validation")
    assert any("patients of site True are positive" in note for note in found.notes)
    assert found.text().endswith(f"note: {found.notes[-1]}")
    assert json.loads(found.json_lines().splitlines()[-1])["table"] == "note"
    assert not evaluate(run, prepared, split="validation").notes
