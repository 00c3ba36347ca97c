"""Explanations of classes that exclude each other: of the called one, of any one, in numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import medseq_tf
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explain import (
    Explained,
    choose_studies,
    explain_studies,
    explain_study,
)
from medseq_tf.evaluation.explain.explainer import Explainer
from medseq_tf.evaluation.explain.explanation import PIXEL_METHODS
from medseq_tf.evaluation.explain.quality import measure_quality
from medseq_tf.readers.classes import Classes

NAMES = ["hemorrhage", "ischemia", "mass"]


@pytest.fixture(scope="module")
def found(class_run, class_data):
    """A test study's explanation."""
    return explain_study(class_run, class_data, class_run.splits["test"][0])


def test_the_called_class_is_explained_and_all_are_told_of(found, class_run, class_data):
    stored = class_run.predictions
    stored = stored[stored["study"] == found.study].set_index("label")["probability"]
    assert list(found.probabilities) == NAMES
    assert found.probabilities == pytest.approx(stored.to_dict(), abs=1e-5)
    assert found.labels == [found.called] == [stored.idxmax()]
    assert found.thresholds == {}
    prepared = Prepared.load(class_data)
    row = prepared.studies.set_index("study_id").loc[found.study]
    assert row[f"label.{found.true_class}"] == 1
    assert sum(found.base_values.values()) == pytest.approx(1, abs=1e-6)
    assert {label for _, label in found.heat} == set(found.ties) == {found.called}
    gradients = found.slices.groupby("label", sort=False)["gradients"]
    assert list(gradients.groups) == NAMES
    assert (gradients.count() > 0).to_dict() == {name: name == found.called for name in NAMES}


def test_what_a_slice_adds_to_a_class_it_takes_from_the_others(found):
    shown = found.slices[found.slices["shown"] > 0]
    by_slice = shown.groupby("slice")[["importance", "occlusion", "running", "alone"]].sum()
    np.testing.assert_allclose(by_slice["importance"], 0, atol=1e-6)
    np.testing.assert_allclose(by_slice["occlusion"], 0, atol=1e-6)
    np.testing.assert_allclose(by_slice["running"], 1, atol=1e-6)
    np.testing.assert_allclose(by_slice["alone"], 1, atol=1e-6)
    last = shown.groupby("label")["running"].last()
    assert last.to_dict() == pytest.approx(found.probabilities, abs=1e-5)


def test_any_class_is_explained_by_its_name(found, class_run, class_data):
    other = next(name for name in NAMES if name != found.called)
    named = explain_study(class_run, class_data, found.study, other, pixels=PIXEL_METHODS)
    assert named.labels == [other]
    assert named.called == found.called
    assert set(named.heat) == {(method, other) for method in PIXEL_METHODS}
    same = ["label", "slice", "shown", "importance", "occlusion", "alone", "running"]
    pd.testing.assert_frame_equal(named.slices[same], found.slices[same])
    assert f"what speaks for {other}" in named.heading(other)
    with pytest.raises(InputError, match=f"label = 'glioma': expected one of {', '.join(NAMES)}"):
        explain_study(class_run, class_data, found.study, "glioma")


def test_pixels_speak_for_the_log_odds_of_a_class(found, class_run, class_data):
    study = Explainer(class_run, Prepared.load(class_data), [found.study]).shown(found.study)
    slices = tf.gather(study.inputs, study.sequences[0])
    black = tf.fill(slices.shape, tf.cast(study.black, tf.float32))
    probabilities = [
        tf.sigmoid(study.model({"slices": one[None], "lengths": np.array([len(one)], np.int32)}))
        for one in (slices, black)
    ]
    number = NAMES.index(found.called)
    ends = [np.log(p[0, number] / (1 - p[0, number])) for p in probabilities]
    total = np.nansum(found.heat["integrated_gradients", found.called])
    assert total == pytest.approx(float(ends[0] - ends[1]), rel=0.1, abs=2e-3)


def test_words_and_figures_name_the_called_and_the_true_class(found):
    called, truth = found.called, found.true_class
    other = "" if called == truth else f" {found.probabilities[truth]:.3f}"
    heading = found.heading(called)
    assert heading == (
        f"lesion: called {called} {found.probabilities[called]:.3f}, truth {truth}{other}"
    )
    assert (found.call("mass"), found.truth_in_words("mass")) == (called, truth)
    text = Explained([found], []).text()
    assert heading in text
    assert "positive" not in text
    assert all(f"{name} {found.probabilities[name]:.3f}" in text for name in NAMES)
    figure = found.curves()
    bars, running = figure.axes
    assert bars.get_ylabel() == f"importance for {found.called}"
    legend = [words.get_text() for words in running.get_legend().get_texts()]
    assert {words.split(",")[0] for words in legend} == set(NAMES)
    assert sum("called" in words for words in legend) == 1
    assert sum("truth" in words for words in legend) == 1
    assert len(running.lines) == 3
    assert found.called in found.sheet(columns=4).get_suptitle()
    assert f"called {found.called}" in found.alternative()


def test_of_very_many_classes_those_that_matter_are_named(found):
    names = tuple(f"class {i}" for i in range(40))
    share = {name: float(number == 3) or 0.01 for number, name in enumerate(names)}
    rows = found.slices[found.slices["label"] == "mass"]
    many = type(found)(
        found.study, ["class 30"], share, {}, {name: float(name == "class 20") for name in names},
        pd.concat([rows.assign(label=name) for name in names]), found.images, {}, {}, [],
        classes=Classes("kind", names),
    )  # fmt: skip
    legend = [words.get_text() for words in many.curves().axes[1].get_legend().get_texts()]
    assert len(legend) == 6
    assert {"class 3, called", "class 20, truth", "class 30"} <= set(legend)
    assert len(many.curves().axes[1].lines) == 40


def table_of_calls():
    """Studies with the probabilities of three classes, and their truth."""
    studies = {
        "a": ([0.9, 0.05, 0.05], 1), "b": ([0.2, 0.7, 0.1], 0), "c": ([0.3, 0.3, 0.4], 0),
        "d": ([0.8, 0.1, 0.1], 0), "e": ([0.6, 0.2, 0.2], 0), "f": ([0.1, 0.1, 0.8], 2),
        "g": ([0.1, 0.5, 0.4], 2), "h": ([0.99, 0.0, 0.01], None),
    }  # fmt: skip
    return pd.DataFrame(
        [
            {
                "study": study,
                "split": "test",
                "label": name,
                "truth": np.nan if truth is None else float(number == truth),
                "probability": probabilities[number],
                "threshold": np.nan,
                "positive": number == int(np.argmax(probabilities)),
            }
            for study, (probabilities, truth) in studies.items()
            for number, name in enumerate(NAMES)
        ]
    )


def test_the_surest_wrong_calls_are_chosen_then_a_right_one_of_each_class():
    table, classes = table_of_calls(), Classes("lesion", tuple(NAMES))
    assert choose_studies(table, classes=classes) == ["a", "b", "g", "d", "f"]
    assert choose_studies(table, wrong=1, classes=classes) == ["a", "d", "f"]
    assert choose_studies(table, "mass", classes=classes) == ["g", "c", "f"]
    assert choose_studies(table, "ischemia", classes=classes) == ["a", "b", "g"]
    repeated = pd.concat([table.assign(repeat=1), table.assign(repeat=2, positive=False)])
    assert choose_studies(repeated, classes=classes) == choose_studies(table, classes=classes)


def test_the_command_writes_a_table_of_all_classes(class_run, class_data, tmp_path):
    study = class_run.splits["test"][0]
    done = medseq_tf.explain(class_run, class_data, study, out=tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / f"{study}.csv")
    assert table["label"].unique().tolist() == NAMES
    assert table.loc[table["shown"] > 0, "importance"].notna().all()
    (one,) = done.studies
    assert {file.name for file in done.files} == {
        f"{study}.csv",
        f"{study}_{one.called}_curves.png",
        f"{study}_{one.called}_integrated_gradients.png",
    }


def test_quality_is_measured_for_each_study_s_own_class_or_one_by_name(class_run, class_data):
    both = measure_quality(class_run, class_data, pixels=[])
    assert {"importance", "occlusion", "alone", "random"} <= set(both.table["method"])
    prepared = Prepared.load(class_data)
    labels = prepared.studies.set_index("study_id").loc[class_run.splits["test"]]
    name = NAMES[int(labels[[f"label.{name}" for name in NAMES]].sum().to_numpy().argmax())]
    of_one = measure_quality(class_run, class_data, label=name, pixels=[])
    assert 0 < of_one.table["studies"].max() <= labels[f"label.{name}"].sum()
    assert of_one.table["studies"].max() < both.table["studies"].max() <= len(labels)


def test_several_studies_are_explained_by_their_called_class(class_run, class_data):
    names = class_run.splits["test"][:2]
    found = explain_studies(class_run, class_data, [(name, None) for name in names], pixels=[])
    assert [one.labels for one in found] == [[one.called] for one in found]
