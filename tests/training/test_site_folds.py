"""Leaving one site out: a fold a site, named wherever folds are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_run import run_small

from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import results_text, scoring
from medseq_tf.evaluation.evaluate import evaluate

SITES = ["hospital 1", "hospital 2", "hospital 3"]


@pytest.fixture(scope="module")
def of_sites(tmp_path_factory):
    """30 patients of three hospitals, each with one class of three."""
    out = tmp_path_factory.mktemp("prepared") / "sites"
    arguments = {"patients": 30, "size": 32, "kind": "classes", "sites": 3, "seed": 1}
    prepare("demo", out=out, workers=1, progress=False, **arguments)
    return out


@pytest.fixture(scope="module")
def left_out(of_sites, tmp_path_factory):
    return run_small(
        of_sites, tmp_path_factory.mktemp("runs") / "sites", "fit.epochs=1", folds="site"
    )


def test_each_fold_is_a_site_that_training_never_saw(left_out, of_sites):
    studies = Prepared.load(of_sites).studies.set_index("study_id")["site"]
    assert left_out.fold_sites == SITES
    assert left_out.info["folds"] == 3
    for site, fold in zip(SITES, left_out.folds, strict=True):
        assert fold.info["site"] == site
        assert set(studies[fold.splits["test"]]) == {site}
        assert site not in set(studies[fold.splits["train"] + fold.splits["validation"]])
    tested = left_out.predictions[left_out.predictions["split"] == "test"]
    assert (tested["site"] == tested["study"].map(studies)).all()


def test_the_figures_are_of_these_sites_and_say_so(left_out):
    assert "on new patients of these 3 sites" in left_out.question
    assert set(left_out.metrics["question"]) == {left_out.question}
    page = (left_out.path / "report.html").read_text("utf-8")
    assert "on new patients of these 3 sites" in page
    assert "on another cohort of this size" not in page
    assert all(f"site {site}" in page for site in SITES)
    assert ", ".join(SITES) in (left_out.path / "model_card.md").read_text("utf-8")


def test_each_site_has_its_row(left_out):
    text = results_text.folds_text(left_out.predictions, left_out.classes)
    assert "sd over sites" in text
    tested = left_out.predictions[left_out.predictions["split"] == "test"]
    by_fold = scoring.fold_table(tested, left_out.classes)
    for site, row in zip(SITES, by_fold.itertuples(), strict=True):
        own = tested[(tested["site"] == site) & (tested["truth"] == 1)]
        assert row.accuracy == pytest.approx(own["positive"].mean())
        line = next(line for line in text.splitlines() if line.startswith(f"site {site}"))
        assert line.split()[4:6] == [str(row.studies), f"{row.accuracy:.3f}"]


def test_evaluate_shows_tables_by_site_unasked(left_out, of_sites):
    found = evaluate(left_out, of_sites, resamples=20)
    by_site = found.subgroups[found.subgroups["subgroup"] == "site"]
    assert by_site["group"].unique().tolist() == SITES
    assert set(found.table["question"]) == {left_out.question}
    assert set(found.predictions["site"]) == set(SITES)


def test_resuming_goes_by_site_again(left_out, of_sites):
    again = run_small(of_sites, left_out.path, "fit.epochs=1", folds="site", resume=True)
    assert again.fold_sites == SITES
    with pytest.raises(InputError, match="has folds = site, asked for 3"):
        run_small(of_sites, left_out.path, "fit.epochs=1", folds=3, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folds": "site", "repeats": 2}, "repeats = 2: sites are left out in one way"),
        ({"folds": "sites"}, "folds = 'sites': expected a number, or `site`"),
    ],
)
def test_folds_that_mean_nothing_are_refused(of_sites, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run_small(of_sites, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_sites_says_how_to_have_them(demo_data, tmp_path):
    with pytest.raises(InputError, match="prepare it again with --site COLUMN"):
        run_small(demo_data, tmp_path / "run", folds="site")


def test_a_fold_of_patients_is_named_by_its_number():
    predictions = pd.DataFrame({"fold": [2, 1, 1]})
    assert scoring.fold_names(predictions) == {1: "fold 1", 2: "fold 2"}
    assert scoring.fold_names(predictions.assign(site=["B", "A", "A"])) == {
        1: "site A",
        2: "site B",
    }


def test_a_site_of_one_kind_has_an_accuracy_and_no_ranking():
    predictions = pd.DataFrame(
        {
            "fold": [1, 1, 1, 2, 2],
            "site": ["A", "A", "A", "B", "B"],
            "label": "stroke",
            "truth": [1.0, 1, 1, 0, 1],
            "probability": [0.9, 0.2, 0.8, 0.1, 0.6],
            "threshold": 0.5,
        }
    )
    table = scoring.fold_table(predictions).set_index("fold")
    assert table.loc[1, "accuracy"] == pytest.approx(2 / 3)
    assert np.isnan(table.loc[1, "auroc"])
    assert table.loc[2, "auroc"] == 1
    without = scoring.fold_table(predictions.drop(columns="site")).set_index("fold")
    assert np.isnan(without.loc[1, "accuracy"])
    assert without.loc[2, "accuracy"] == 1
