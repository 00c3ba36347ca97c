"""What a recipe requires of its data: refused before a run begins, with the option to give."""

from __future__ import annotations

import dataclasses
import json

import pytest

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.requirements import check_requirements
from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_volumes
from medseq_tf.training.train import train
from medseq_tf.tuning.tune import tune

COHORT = DemoCohort(patients=6, size=24, slices=(4, 7), difficulty=0.0, prevalence=0.5)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    place = tmp_path_factory.mktemp("volumes")
    write_volumes(COHORT, place / "source", as_photographs=True)
    return place


def prepared_with(volumes, **options):
    out = volumes / "-".join(map(str, options.values()))
    if not out.exists():
        prepare("volumes", volumes / "source", out=out, workers=1, progress=False, **options)
    return Prepared.load(out)


def test_data_as_the_preset_needs_them(volumes, capsys):
    check_requirements(recipes.load("adrenal"), prepared_with(volumes, axis="sagittal", size=32))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axis": "axial", "size": 32}, r"axis sagittal \(it has axial\).*--axis sagittal"),
        ({"axis": "sagittal", "size": 48}, r"size 32 \(it has 48\).*--size 32"),
        ({"axis": "coronal", "size": 48}, "--axis sagittal --size 32"),
        (
            {"axis": "sagittal", "size": 32, "modality": "MR"},
            r"modality photograph \(it has MR\).*--modality photograph",
        ),
    ],
)
def test_data_prepared_otherwise_are_refused_before_anything_is_written(
    volumes, tmp_path, options, words
):
    data = prepared_with(volumes, **options)
    with pytest.raises(InputError, match=f"adrenal needs .*{words}") as caught:
        train("adrenal", data, tmp_path / "run", track=False, verbose=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    space = {
        "name": "s",
        "recipe": "adrenal",
        "space": {"model.head.dropout": {"choice": [0.0, 0.1]}},
    }
    with pytest.raises(InputError, match="adrenal needs"):
        tune(space, data, tmp_path / "search", track=False, verbose=False)


def test_what_an_older_data_set_does_not_say_is_a_note(volumes):
    data = prepared_with(volumes, axis="axial", size=32)
    preparation = {**data.info["preparation"], "options": {}}
    preparation.pop("resolved")
    old = dataclasses.replace(data, info={**data.info, "preparation": preparation})
    (words,) = check_requirements(recipes.load("adrenal"), old)
    assert "axis sagittal" in words


def test_requirements_can_be_set_and_switched_off(volumes):
    data = prepared_with(volumes, axis="axial", size=32)
    for override in ("requires=null", "requires.axis=null"):
        check_requirements(recipes.load("adrenal", [override]), data)
    needs = {
        "requires.labels=2": "2 labels",
        "requires.unit=HU": "unit HU",
        "requires.masks=true": "lesion masks",
        "requires.modality=CT": "modality CT",
        "requires.aspect=stretch": "--aspect stretch",
    }
    for override, words in needs.items():
        with pytest.raises(InputError, match=words):
            check_requirements(recipes.load(recipes.Experiment(), [override]), data)


@pytest.mark.parametrize("override", ["requires.axis=oblique", "requires.sise=3", "requires=4"])
def test_a_requirement_that_is_none(override):
    with pytest.raises(InputError, match="requires"):
        recipes.load("adrenal", [override])


def test_segmenters_need_masks(volumes, demo_data):
    data = prepared_with(volumes, axis="axial", size=32)
    for name in ("xnet", "unet", "dunet"):
        with pytest.raises(InputError, match=f"{name} needs lesion masks"):
            check_requirements(recipes.load(name), data)
        check_requirements(recipes.load(name), Prepared.load(demo_data))


def test_slices_that_have_to_be_enlarged_are_noted(demo_data):
    (words,) = check_requirements(recipes.load("fsm_bilstm"), Prepared.load(demo_data))
    assert "--size 64" in words


def test_what_was_settled_reaches_the_run_and_the_exported_model(demo_data):
    from served import small_run

    from medseq_tf.serving.description import Description

    run = small_run()
    resolved = run.dataset["preparation"]["resolved"]
    assert resolved["modality"] == "photograph"
    assert json.loads(Description.of_run(run).to_json())["preparation"]["resolved"] == resolved


def test_classes_are_no_labels(tmp_path):
    arguments = {"patients": 4, "size": 16, "slices": (3, 4), "kind": "classes"}
    data = prepare("demo", out=tmp_path / "data", workers=1, progress=False, **arguments)
    check_requirements(recipes.load(recipes.Experiment()), data)
    for count in (1, 3):
        recipe = recipes.load(recipes.Experiment(), [f"requires.labels={count}"])
        with pytest.raises(InputError, match=r"needs . labels? \(it has 3 classes of lesion\)"):
            check_requirements(recipe, data)
