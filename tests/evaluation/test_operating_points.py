"""The threshold of each label: by which rule it is chosen, on whom, and what is said of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_run import run_small

from medseq_tf.evaluation import metrics, operating_points

RULE = "sensitivity>=0.9"


@pytest.fixture
def studies(rng):
    truth = (np.arange(90) % 3 == 0).astype(float)
    return truth, 1 / (1 + np.exp(-(1.5 * truth - 1 + rng.normal(size=90))))


def test_validation_chooses_by_the_rule_and_says_so(studies):
    truth, probability = studies
    columns = (truth[:, None], probability[:, None], np.arange(90), ["lesion"])
    usual = operating_points.of_validation(*columns)["lesion"]
    assert usual == operating_points.of_validation(*columns, "youden")["lesion"]
    assert usual.chosen_on == "the validation patients"
    careful = operating_points.of_validation(*columns, RULE)["lesion"]
    assert careful.threshold == metrics.choose_threshold(truth, probability, RULE)
    assert careful.threshold < usual.threshold
    assert metrics.confusion(truth, probability, careful.threshold).recall >= 0.9
    assert f"chosen on the validation patients by {RULE} (30 positive, 60 negative)" in (
        operating_points.measured(careful.to_dict())
    )


def test_folds_choose_by_the_rule_and_measure_it_with_each_fold_left_out(studies):
    truth, probability = studies
    fold, names = np.arange(90) // 3 % 3 + 1, [f"s{i:02d}" for i in range(90)]
    table = pd.DataFrame(
        {"study": names, "patient": names, "label": "lesion", "truth": truth, "fold": fold,
         "probability": probability, "repeat": 1}
    )  # fmt: skip
    point = operating_points.of_folds(table, ["lesion"], RULE)["lesion"]
    assert point.threshold == metrics.choose_threshold(truth, probability, RULE)
    assert point.chosen_on == f"the held-out predictions of all patients by {RULE}"
    found = []
    for number in (1, 2, 3):
        rest, own = fold != number, (fold == number) & (truth == 1)
        cut = metrics.choose_threshold(truth[rest], probability[rest], RULE)
        found.append(probability[own] >= cut)
    assert point.sensitivity[0] == pytest.approx(np.concatenate(found).mean())


def test_the_recipe_names_the_rule_of_its_run(demo_data, tmp_path):
    settings = ("fit.epochs=1", "fit.threshold=specificity>=0.8", "split.validation=0.4")
    run = run_small(demo_data, tmp_path / "run", *settings)
    assert run.experiment.fit.threshold == "specificity>=0.8"
    validation = run.predictions[run.predictions["split"] == "validation"]
    columns = (validation["truth"], validation["probability"])
    expected = metrics.choose_threshold(*columns, "specificity>=0.8")
    assert run.thresholds["lesion"] == pytest.approx(expected)
    assert metrics.confusion(*columns, run.thresholds["lesion"]).specificity >= 0.8
    assert (validation["positive"] == (validation["probability"] >= expected)).all()
    assert run.operating_points["lesion"]["chosen_on"].endswith("by specificity>=0.8")
    assert "chosen on validation by specificity>=0.8)" in (run.path / "model_card.md").read_text()
