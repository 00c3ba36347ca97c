"""The report and the model card of an automatic run: how it was chosen, and one figure."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from automatic_run import SENTENCE, emptied

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.evaluation.comparison import auroc_differences, compare_tables
from medseq_tf.reporting import automatic as told
from medseq_tf.reporting.model_card import card
from medseq_tf.reporting.report import page, report
from medseq_tf.runs.run import Run


@pytest.fixture(scope="module", params=["labels", "classes"])
def run(request):
    return request.getfixturevalue(
        "automatic" if request.param == "labels" else "automatic_classes"
    )


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_report_says_how_it_was_chosen(run):
    html = page(run)
    text = text_of(html).split("every value, as used")[0]
    assert "How it was chosen" in text
    assert text.count("together they were ahead of `mean`") == 1
    for words in ("sequence network why sequence | is &lt;tried&gt; 50%",
                  "acquisition reference why acquisition | is &lt;tried&gt; not deployed",
                  "average 2 mean 1 nothing 1", "of 4 folds",
                  "confounding is not excluded"):  # fmt: skip
        assert words in text
    assert "0.988" not in text  # what chose is no figure of it
    assert "0.987654" not in html


def test_one_member_s_description_is_not_that_of_all(automatic, tmp_path):
    copy = Run(shutil.copytree(automatic.path, tmp_path / "run"))
    recipe = automatic.experiment.model_copy(update={"description": "Only one of them."})
    (copy.path / "experiment.yaml").write_text(recipe.to_yaml(), "utf-8")
    assert "Only one of them." not in text_of(page(copy)).split("every value, as used")[0]


def test_it_is_held_against_the_baseline_and_the_reference_by_paired_differences(run):
    predictions = run.predictions
    names = run.dataset["label_names"]
    kept = {name: run.candidates.query("candidate == @name") for name in ("mean", "acquisition")}
    found = auroc_differences(predictions, kept, names, run.classes)
    assert found["other"].tolist() == ["mean", "acquisition"]
    for name, table in kept.items():
        other = predictions.drop(columns="probability").merge(
            table[["study", "label", "fold", "probability"]], on=["study", "label", "fold"]
        )
        if run.classes:
            other = other.drop(columns="positive")
        compared = compare_tables({"run": predictions, "other": other}, names, classes=run.classes)
        expected = compared.differences.query("metric == 'auroc'").iloc[0]
        row = found.set_index("other").loc[name]
        values = ["difference", "low", "high"]
        np.testing.assert_allclose(
            row[values].to_numpy(float), expected[values].to_numpy(float), rtol=0, atol=1e-12
        )
        assert f"{name} {row['difference']:+.3f}" in text_of(page(run))


def test_the_model_card_names_what_was_compared_and_what_is_deployed(run):
    text = card(run)
    assert text.count("together they were ahead of") == 1
    assert (
        "members/sequence (the mean of 2 models), 50% of the probability: conv\\_fsm" in text
        or ("members/sequence (the mean of 2 models), 50% of the probability: conv_fsm" in text)
    )
    assert "members/neighbours, 30% of the probability" in text
    assert "24 pixels" in text
    assert "acquisition (reference: why acquisition" in text
    assert "4 models, whose probabilities are weighted and added up" in text
    assert "2 folds over all patients, each tested once in each of 2 repeats" in text
    assert "Initial weights" not in text  # of which there are as many as members
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count(" | ") for line in lines if "CLAIM" not in line}) <= 3


def test_nothing_better_than_chance_is_a_result_too(run, tmp_path):
    copy = emptied(run, tmp_path)
    text = text_of(page(copy))
    assert "Nothing beats chance." in text
    assert "sequence network why sequence | is &lt;tried&gt; not deployed" in text
    assert "| Model | None; " in card(copy)
    assert report(copy).is_file()


def test_a_run_without_what_was_tried_is_reported_all_the_same(automatic, tmp_path):
    copy = emptied(automatic, tmp_path)
    for name in ("used_for_selection.csv", "candidates.parquet"):
        (copy.path / name).unlink()
    text = text_of(page(copy))
    assert "Chosen inside the folds" not in text
    assert "Held against" not in text
    for damaged in ("candidates: 7", "[]", "candidates: [{name: a}]", "candidates: [a]"):
        (copy.path / "plan.yaml").write_text(damaged)
        with pytest.raises(InputError, match=r"plan\.yaml: is damaged"):
            page(copy)


def test_other_runs_are_reported_as_before(automatic):
    folded = automatic.parts[0].run
    assert "How it was chosen" not in page(folded)
    assert told.data(folded, pd.DataFrame(), None) is None
    assert "Initial weights" in card(folded)
    assert "Models, one per fold" in card(folded)
    assert SENTENCE not in card(folded)


@pytest.mark.parametrize(
    ("preset", "weights", "solved"),
    [
        ("joined_linear", "imagenet", True),
        ("frozen_linear", "imagenet", True),
        ("handcrafted", "none", True),
        ("vgg19_lstm", "imagenet", False),
        ("fsm_bilstm", "random", False),
    ],
)
def test_a_card_says_how_the_model_came_about(automatic, monkeypatch, preset, weights, solved):
    monkeypatch.setattr(Run, "experiment", recipes.load(preset))
    text = card(automatic.parts[0].run)
    assert f"Initial weights | {weights};" in text
    assert ("A logistic regression with an L2 penalty, solved to convergence" in text) == solved
    assert ("Best epoch by" in text) == ("epochs; loss" in text) == (not solved)
