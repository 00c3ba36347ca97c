"""Figures that chose themselves are labelled and have no interval; reads of test patients count."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from small_run import SMALL, run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset import holdout_reuse, selection
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation import comparison, evaluate, results_text
from medseq_tf.reporting import figures, model_card, report


def predictions(rng, split, count=40, effect=1.0):
    truth = np.arange(count) % 2
    probability = 1 / (1 + np.exp(-effect * truth + effect / 2 - rng.normal(size=count)))
    return pd.DataFrame(
        {
            "study": [f"{split}{i}" for i in range(count)],
            "patient": [f"{split}{i}" for i in range(count)],
            "slices": 5,
            "split": split,
            "label": "lesion",
            "truth": truth.astype(float),
            "probability": probability,
            "calibrated": probability,
            "threshold": 0.5,
            "positive": probability >= 0.5,
        }
    )


# ------------------------------------------------------------------------- validation's figures


@pytest.fixture
def both(rng):
    return pd.concat([predictions(rng, "validation"), predictions(rng, "test")], ignore_index=True)


def test_validation_stands_last_labelled_and_without_an_interval(both):
    evaluated = evaluate.evaluate_predictions(both, ["lesion"], resamples=50)
    for table in (evaluated.table, evaluated.calibration):
        assert list(dict.fromkeys(table["split"])) == ["test", "validation"]
        of_validation = table[table["split"] == "validation"]
        bounds = [n for n in table if n.endswith(("low", "high")) and "null" not in n]
        assert bounds
        assert of_validation[bounds].isna().all(axis=None)
        assert of_validation["note"].str.contains("used for selection").all()
        assert table[table["split"] == "test"][bounds].notna().any(axis=None)
        assert not table[table["split"] == "test"]["note"].str.contains("used for selection").any()
    groups = evaluated.subgroups
    assert groups.loc[groups["split"] == "validation", ["low", "high"]].isna().all(axis=None)
    text = results_text.metrics_text(evaluated.table)
    assert text.count("used for selection") == 1
    lines = [line for line in text.splitlines() if line.startswith("validation")]
    assert lines
    assert len({line.rpartition(" ")[2] for line in lines}) == 1, "one note for all"
    assert all(" to " not in line for line in lines)


def test_a_comparison_on_validation_concludes_nothing(both):
    of_validation = both[both["split"] == "validation"]
    found = comparison.compare_tables(
        {"a": of_validation, "b": of_validation.assign(probability=0.3)}, ["lesion"], 50
    )
    assert found.differences[["low", "high", "p"]].isna().all(axis=None)
    assert found.table[["low", "high"]].isna().all(axis=None)
    assert "used for selection" in found.text()


def test_no_band_is_drawn_of_what_was_used_for_selection(both):
    def bands(table):
        drawing = figures.roc(table, ["lesion"], resamples=50)
        return len(drawing.figure.axes[0].collections)

    assert bands(both[both["split"] == "test"].assign(selected=False)) == 1
    assert bands(both[both["split"] == "validation"].assign(selected=True)) == 0


@pytest.fixture(scope="module")
def data(demo_data, tmp_path_factory):
    """A copy of the demo cohort, whose count of reads no other test raises."""
    copy = tmp_path_factory.mktemp("data") / "prepared"
    shutil.copytree(demo_data, copy, ignore=shutil.ignore_patterns(holdout_reuse.FILE))
    return copy


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return run_small(data, tmp_path_factory.mktemp("runs") / "first", "fit.epochs=1")


def test_the_model_card_puts_the_test_patients_first(run):
    card = model_card.card(run)
    rows = [line for line in card.splitlines() if line.startswith(("| test", "| validation"))]
    kinds = [line.split("|")[1].strip() for line in rows]
    assert list(dict.fromkeys(kinds)) == ["test", "validation, used for selection"]
    of_validation = [line for line in rows if line.startswith("| validation")]
    assert all(line.split("|")[5].strip() == "-" for line in of_validation)
    assert "others with 95% intervals" not in card
    assert "have been read once" in card


def test_a_run_of_before_is_shown_without_the_intervals_that_it_stored(run, tmp_path):
    import json

    copy = tmp_path / "old"
    shutil.copytree(run.path, copy)
    stored = json.loads((copy / "metrics.json").read_text("utf-8"))
    for row in stored["table"]:
        row |= {"low": 0.6, "high": 0.9, "note": ""}
    stored["table"].sort(key=lambda row: row["split"] == "test")
    (copy / "metrics.json").write_text(json.dumps(stored), "utf-8")
    table = type(run)(copy).metrics
    assert table["split"].iloc[0] == "test"
    assert table.loc[table["split"] == "validation", ["low", "high"]].isna().all(axis=None)


# --------------------------------------------------------------- where a recipe was chosen


def chosen(prepared, rows, **more):
    patients = " ".join(sorted(selection.patient_keys(prepared.studies.iloc[rows])))
    choice = {"by": "search s", "cohort": "12 patients", "score": "auroc 0.9", **more}
    return recipes.from_values({"chosen": [{**choice, "patients": patients}]})


def test_a_recipe_knows_the_patients_it_was_chosen_on(demo_data):
    prepared = Prepared.load(demo_data)
    recipe = chosen(prepared, np.arange(12))
    count, of, last = selection.chosen_on(recipe, prepared.studies)
    assert (count, of, last.by) == (12, 40, "search s")
    assert selection.chosen_on(recipe, prepared.studies.iloc[12:])[0] == 0
    assert selection.note(recipe, prepared.studies.iloc[12:]) == ""
    assert "chosen on 12 of these 40 patients" in selection.note(recipe, prepared.studies)
    assert recipes.from_values(recipe.model_dump(mode="json")) == recipe
    assert not any(key.startswith("chosen") for key in recipe.flat())
    assert "chosen" not in recipes.Experiment().to_yaml()


@pytest.mark.parametrize(
    "preset",
    ["adrenal", "fsm_bilstm", "fsm_bilstm_ct", "frozen_linear", "handcrafted", "joined_linear"],
)
def test_presets_chosen_on_a_cohort_say_so(preset):
    words = selection.origins(recipes.load(preset, ["seed=1"]))
    assert len(words) == 1
    assert words[0].startswith("the recipe was chosen on ")
    assert words[0].endswith("its figures on those patients are too good")


def test_other_ids_do_not_hide_them(demo_data):
    """The same studies prepared from a listing with one file more have other salted ids."""
    prepared = Prepared.load(demo_data)
    recipe = chosen(prepared, np.arange(12))
    renamed = prepared.studies.assign(patient_id=prepared.studies["patient_id"].str[::-1])
    assert selection.chosen_on(recipe, renamed)[:2] == (12, 40)


# ----------------------------------------------------------------------------- test reads


def test_every_figure_of_the_test_patients_counts(data, run, tmp_path):
    first = evaluate.evaluate(run, data, resamples=20)
    times = first.reads.times
    assert times >= 2, "the training's own figures, and these"
    assert first.reads.recipes == 1
    assert f"have been read {times} times, by 1 recipe" in first.text()
    assert evaluate.evaluate(run, data, resamples=20).reads.times == times + 1
    assert evaluate.evaluate(run, data, split="validation", resamples=20).reads is None
    other = run_small(data, tmp_path / "other", "fit.epochs=1", "seed=1")
    assert (other.reads.times, other.reads.recipes) == (times + 2, 2)
    comparison.compare([run, other], data, "validation", resamples=20)
    comparison.compare([run, other], data, resamples=20)
    assert evaluate.evaluate(run, data, resamples=20).reads.times == times + 5
    words = "the best of these recipes is too good"
    assert words in model_card.card(other)
    assert words in report.page(other)
    assert not np.isnan(Prepared.load(data).labels).any(), "the data set opens as before"


def test_other_patients_have_another_count(data):
    prepared = Prepared.load(data)
    studies, recipe = prepared.studies["study_id"], recipes.Experiment(seed=7)
    few = holdout_reuse.record(prepared, studies[:3], recipe)
    again = holdout_reuse.record(prepared, studies[:2], recipe)
    assert again.times == few.times + 1
    assert again.patients == 2
    with open(prepared.path / holdout_reuse.FILE, "a") as file:
        file.write('{"data": "half a line')
    assert holdout_reuse.record(prepared, studies[:2], recipe).times == again.times + 1
    assert holdout_reuse.record(prepared, studies[:2], recipe).times == again.times + 2


def test_a_data_set_that_cannot_be_written_is_read_all_the_same(data, monkeypatch):
    import builtins

    prepared, whole = Prepared.load(data), open

    def read_only(path, mode="r", *rest, **more):
        if str(path).endswith(holdout_reuse.FILE) and mode != "rb":
            raise PermissionError(13, "Permission denied")
        return whole(path, mode, *rest, **more)

    monkeypatch.setattr(builtins, "open", read_only)
    found = holdout_reuse.record(prepared, prepared.studies["study_id"], recipes.Experiment())
    assert not found.counted
    assert "cannot be written" in found.text()


def _read_often(path, seed):
    prepared = Prepared.load(path)
    for _ in range(20):
        holdout_reuse.record(prepared, prepared.studies["study_id"], recipes.Experiment(seed=seed))


def test_reads_at_once_are_all_counted(demo_data, tmp_path):
    shutil.copytree(demo_data, tmp_path / "data", ignore=shutil.ignore_patterns(holdout_reuse.FILE))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_read_often, [tmp_path / "data"] * 2, (1, 2)))
    prepared = Prepared.load(tmp_path / "data")
    found = holdout_reuse.record(prepared, prepared.studies["study_id"][:1], recipes.Experiment())
    assert (found.times, found.recipes) == (41, 3)


def test_a_run_of_a_chosen_recipe_has_no_interval_on_the_patients_who_chose_it(data, tmp_path):
    """A searched recipe, cross-validated on the patients of the search."""
    from medseq_tf.training.train import train

    prepared = Prepared.load(data)
    recipe = recipes.load(chosen(prepared, np.arange(30)), [*SMALL, "fit.epochs=1"])
    run = train(recipe, data, tmp_path / "run", folds=2, track=False, verbose=False)
    assert run.metrics[["low", "high"]].isna().all(axis=None)
    words = "chosen on 30 of these 40 patients"
    assert run.metrics["note"].str.contains(words).all()
    for point in run.operating_points.values():
        assert point["sensitivity"][1:] == point["specificity"][1:] == [None, None]
    said = next(note for note in run.notes if "with each fold left out" in note)
    assert " to " not in said, "no interval"
    assert words in evaluate.evaluate(run, data, resamples=20).text()
    page, card = report.page(run), model_card.card(run)
    assert words in page
    assert words in card
    assert "--nested" in card
    assert "AUROC has no interval" in page
    assert recipes.load(run.path / "experiment.yaml").chosen == recipe.chosen


def test_a_comparison_with_a_chosen_recipe_concludes_nothing(data, run, tmp_path):
    copy = tmp_path / "chosen"
    shutil.copytree(run.path, copy)
    everyone = chosen(Prepared.load(data), np.arange(40))
    (copy / "experiment.yaml").write_text(
        run.experiment.model_copy(update={"chosen": everyone.chosen}).to_yaml(), "utf-8"
    )
    found = comparison.compare([run, copy], resamples=20)
    assert found.differences[["low", "high", "p"]].isna().all(axis=None)
    table = found.table.set_index("model")
    assert table.loc["chosen", "low"].isna().all()
    assert table.loc["first", "low"].notna().any()
    assert "chosen on 8 of these 8 patients" in found.text()


def test_preparing_anew_does_not_forget_the_reads(tmp_path):
    from medseq_tf.dataset.prepare import prepare

    arguments = {"out": tmp_path / "d", "patients": 6, "size": 16, "workers": 1, "progress": False}
    prepared = prepare("demo", **arguments)
    holdout_reuse.record(prepared, prepared.studies["study_id"], recipes.Experiment())
    again = prepare("demo", overwrite=True, **arguments)
    assert again.fingerprint == prepared.fingerprint
    assert holdout_reuse.record(again, again.studies["study_id"], recipes.Experiment()).times == 2
