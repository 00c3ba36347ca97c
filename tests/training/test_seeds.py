"""Several models that differ by their seeds, and predict as one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from runs_compared import assert_same_weights
from small_run import run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.holdout_reuse import Reads
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.explain.explain import explain_study
from medseq_tf.serving.model import LoadedRun
from medseq_tf.training.one_run import of_seed

SHORT = ("fit.epochs=2", "fit.seeds=2")


@pytest.fixture(scope="module")
def averaged(demo_data, tmp_path_factory):
    return run_small(demo_data, tmp_path_factory.mktemp("runs") / "averaged", *SHORT)


def probabilities(run, split):
    table = run.predictions
    return table[table["split"] == split].set_index("study")["probability"]


def test_its_probability_is_the_mean_of_models_that_differ_by_their_seeds(
    averaged, demo_data, tmp_path
):
    members = [member.run for member in averaged.members]
    assert [run.path.name for run in members] == ["seed_1", "seed_2"]
    assert [weight for _, weight in averaged.members] == [0.5, 0.5]
    first, second = members
    assert first.experiment.seed == averaged.experiment.seed != second.experiment.seed
    assert first.splits == second.splits == averaged.splits
    alone = run_small(demo_data, tmp_path / "alone", "fit.epochs=2")
    assert_same_weights(first, alone)
    for split in ("validation", "test"):
        own = [probabilities(run, split) for run in members]
        assert not np.array_equal(*own)
        mean = sum(one.loc[own[0].index] for one in own) / 2
        np.testing.assert_allclose(probabilities(averaged, split).loc[mean.index], mean, rtol=1e-12)
    validation = averaged.predictions[averaged.predictions["split"] == "validation"]
    known = validation["truth"].to_numpy(), validation["probability"].to_numpy()
    assert averaged.thresholds["lesion"] == pytest.approx(metrics.choose_threshold(*known))


def test_what_it_says_it_says_wherever_it_predicts(averaged, demo_data):
    stored = averaged.predictions[averaged.predictions["split"] == "test"]
    evaluated = evaluate(averaged, demo_data).predictions
    pd.testing.assert_frame_equal(
        evaluated[["study", "probability", "threshold", "calibrated"]].reset_index(drop=True),
        stored[["study", "probability", "threshold", "calibrated"]].reset_index(drop=True),
        rtol=1e-6,
    )
    served = LoadedRun.open(averaged)
    assert [member.weight for member in served.members] == [0.5, 0.5]
    assert served.description.members == 2
    study = stored["study"].iloc[0]
    explained = explain_study(averaged, demo_data, study)
    assert explained.probabilities["lesion"] == pytest.approx(
        stored["probability"].iloc[0], abs=1e-6
    )
    assert any("mean of 2 models" in note for note in explained.notes)


def test_the_whole_is_reported_and_counted_once(averaged):
    assert (averaged.path / "report.html").is_file()
    assert isinstance(averaged.reads, Reads)
    for run, _ in averaged.members:
        assert run.reads is None
        assert not (run.path / "report.html").exists()
    with pytest.raises(InputError, match="take one of its seeds"):
        averaged.model()


def test_stopped_in_the_second_it_goes_on_there(averaged, demo_data, tmp_path):
    folder = tmp_path / "run"

    def stop():
        return (folder / "seed_2" / "history.csv").is_file()

    with pytest.raises(Stopped):
        run_small(demo_data, folder, *SHORT, stop=stop)
    first = (folder / "seed_1" / "model.keras").stat()
    resumed = run_small(demo_data, folder, *SHORT, resume=True)
    assert (folder / "seed_1" / "model.keras").stat() == first
    pd.testing.assert_frame_equal(resumed.predictions, averaged.predictions, check_exact=True)


@pytest.mark.slow
def test_each_fold_has_several(demo_data, tmp_path):
    run = run_small(demo_data, tmp_path / "cv", "fit.epochs=1", "fit.seeds=2", folds=2)
    places = [member.run.path.relative_to(run.path).as_posix() for member in run.members]
    assert places == ["fold_1/seed_1", "fold_1/seed_2", "fold_2/seed_1", "fold_2/seed_2"]
    assert [weight for _, weight in run.members] == [0.25] * 4
    tested = run.predictions[run.predictions["split"] == "test"]
    assert sorted(tested["study"]) == sorted(Prepared.load(demo_data).studies["study_id"])
    again = evaluate(run, demo_data).predictions
    np.testing.assert_allclose(
        again.set_index("study")["probability"].loc[tested["study"]],
        tested["probability"],
        rtol=1e-6,
    )


def test_seeds_are_others_for_each_model_and_recipe():
    recipe = recipes.load("fsm_bilstm", ["fit.seeds=3"])
    other = recipe.model_copy(update={"seed": 1})
    seeds = [of_seed(one, number).seed for one in (recipe, other) for number in (1, 2, 3)]
    assert len(set(seeds)) == 6
    assert of_seed(recipe, 2).fit.seeds == 1
    with pytest.raises(InputError, match=r"set fit\.seeds=1"):
        recipes.load("unet", ["fit.seeds=2"])
