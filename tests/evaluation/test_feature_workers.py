"""Features that workers compute: the files of one process, and no worker that would give others."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import pytest
from feature_stores import entries
from interrupted_features import dying_store

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation.feature_workers import (
    FeaturePlace,
    SpreadFeatureStore,
    feature_place,
    studies_together,
)
from medseq_tf.execution.executor import LocalExecutor, executor_for
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.training.beginning import features_alone, model_and_features, new_model
from medseq_tf.training.train import train

MEASURES = recipes.load("handcrafted", ["input.size=32"])
NETWORK = recipes.load(
    recipes.Experiment(),
    [
        "input.size=32",
        "input.mean=0",
        "input.std=1",
        "model.encoder.name=keras_application",
        "model.encoder.network=MobileNetV3Small",
        "model.encoder.weights=none",
        "augment.gaussian_noise.p=0.7",
        "augment.flip.p=0.5",
        "features.views=2",
    ],
)
VIEWS = [(row, draw) for row in range(6) for draw in (None, (0, 0), (0, 1), (-1, 0))]
PLAIN = [(row, None) for row in range(24)]


class Elsewhere(LocalExecutor):
    """Workers in this process, of whom it is noted what they were asked for."""

    def __init__(self):
        super().__init__(1)
        self.asked, self.ended, self.closed = [], set(), False

    def map(self, function, items, stand_in, *, name, setup, **settings):
        self.name, self.settings = name, settings
        worker = setup()
        try:
            for item in items:
                self.asked.append(item)
                yield stand_in(item) if item[0][0] in self.ended else function(worker, item)
        finally:
            self.closed = True


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "spread").mkdir()
    return FeaturePlace(tmp_path / "spread", Elsewhere())


def store_of(prepared, recipe, place=None, verbose=False):
    return model_and_features(recipe, SliceStore(prepared, recipe), place, verbose)[1]


def files_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in entries(folder)}


def of_one_process(prepared, recipe, views, folder):
    folder.mkdir()
    store_of(prepared, recipe, folder).prepare(views)
    return files_of(folder)


@pytest.mark.parametrize("recipe", [MEASURES, NETWORK], ids=["measures", "network"])
def test_workers_write_the_files_of_one_process(prepared, place, tmp_path, recipe):
    views = VIEWS if recipe is NETWORK else PLAIN
    store = store_of(prepared, recipe, place)
    store.prepare(views)
    assert files_of(place.folder) == of_one_process(prepared, recipe, views, tmp_path / "one")
    assert store.computed == len(views)
    alone = store_of(prepared, recipe)
    for row, draw in views[:3]:
        np.testing.assert_array_equal(store.of(row, draw), alone.of(row, draw))
    assert place.executor.name == "encode"
    assert [len(of_study) for of_study in place.executor.asked] == (
        [4] * 6 if recipe is NETWORK else [1] * 24
    )


def test_workers_are_asked_for_what_is_missing_alone(prepared, place):
    store_of(prepared, MEASURES, place.folder).prepare(PLAIN[::2])
    store = store_of(prepared, MEASURES, place)
    store.prepare(PLAIN)
    assert place.executor.asked == [[view] for view in PLAIN[1::2]]
    again = store_of(prepared, MEASURES, place)
    again.prepare(PLAIN)
    assert len(place.executor.asked) == 12
    assert again.computed == 0


def test_a_run_is_the_same_whoever_computes_its_features(demo_data, place, tmp_path):
    settings = {"track": False, "verbose": False, "overrides": ["input.size=32"]}
    spread = train("handcrafted", demo_data, tmp_path / "a", features=place, **settings)
    alone = train("handcrafted", demo_data, tmp_path / "b", features=tmp_path / "one", **settings)
    assert place.executor.asked
    assert spread.predictions.equals(alone.predictions)
    for found, expected in zip(spread.model().weights, alone.model().weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def other_seed(recipe):
    return recipes.load(recipe, ["seed=1"])


def test_a_worker_that_would_compute_others_is_refused(prepared, place, class_data, tmp_path):
    moved = tmp_path / "moved"
    wrong = {
        "weights is": (other_seed(NETWORK), prepared.path),
        "network is": (recipes.load(NETWORK, ["model.encoder.output=max"]), prepared.path),
        "sees another data set there": (NETWORK, class_data),
        f"{moved}": (NETWORK, moved),
    }
    model = new_model(NETWORK, prepared, seed=NETWORK.seed)
    slices = SliceStore(prepared, NETWORK)
    for message, (recipe, data) in wrong.items():
        rebuild = functools.partial(features_alone, recipe, data, place.folder)
        store = SpreadFeatureStore(model, slices, NETWORK, place, False, rebuild)
        with pytest.raises(InputError, match=f"node .*{message}|{message}.*node"):
            store.prepare(PLAIN)
    assert not entries(place.folder)


def test_a_worker_that_sees_another_folder_of_features_is_refused(prepared, place):
    store = store_of(prepared, MEASURES, place)
    store.mark.unlink()
    with pytest.raises(InputError, match="data and features are to lie on storage that all"):
        store.prepare(PLAIN)


def test_a_study_that_ends_its_workers_is_named_by_its_hash(prepared, place):
    place.executor.ended = {3}
    with pytest.raises(InputError, match=f"study {prepared.studies['study_id'].iat[3]}: computing"):
        store_of(prepared, MEASURES, place).prepare(PLAIN)
    assert len(entries(place.folder)) == 3
    assert place.executor.closed


def test_stopped_it_asks_no_further(prepared, place):
    store = store_of(prepared, MEASURES, place)
    with pytest.raises(Stopped, match="stopped at features: 4/24 studies, 0 cached"):
        store.prepare(PLAIN, stopped=lambda: store.computed == 4)
    assert place.executor.closed
    assert len(place.executor.asked) == 4


def test_features_are_put_where_there_is_memory(prepared, place):
    held, read = (
        store_of(prepared, recipes.load(MEASURES, [f"fit.cache={cache}"]), place)
        for cache in ("memory", "none")
    )
    held.prepare(PLAIN)
    read.prepare(PLAIN)
    assert len(held._held) == 24
    assert not read._held
    np.testing.assert_array_equal(held.of(2), read.of(2))


def test_pieces_are_few_studies_so_that_all_workers_have_some_to_the_end():
    assert [studies_together(n, 4) for n in (1, 16, 32, 100, 10**6)] == [1, 1, 2, 6, 16]


def test_without_ray_the_place_is_the_folder(tmp_path, place):
    with feature_place(tmp_path / "plain", None) as found:
        assert found == tmp_path / "plain"
    with feature_place(place, "10.0.0.1:6379") as found:
        assert found is place


# ------------------------------------------------------------------------------------------- Ray


def test_two_nodes_write_the_files_of_one_process(prepared, two_nodes, tmp_path):
    expected = of_one_process(prepared, NETWORK, VIEWS, tmp_path / "one")
    with feature_place(tmp_path / "spread", two_nodes) as place:
        store_of(prepared, NETWORK, place).prepare(VIEWS)
    assert files_of(tmp_path / "spread") == expected


@pytest.mark.slow
def test_a_run_learns_from_what_two_nodes_compute(demo_data, two_nodes, tmp_path):
    settings = {"track": False, "verbose": False, "overrides": ["input.size=32"]}
    folders = {"out": tmp_path / "spread", "features": tmp_path / "features"}
    spread = train("handcrafted", demo_data, ray=two_nodes, **folders, **settings)
    alone = train("handcrafted", demo_data, tmp_path / "b", features=tmp_path / "one", **settings)
    assert files_of(tmp_path / "features") == files_of(tmp_path / "one")
    assert spread.predictions.equals(alone.predictions)


def test_a_killed_worker_loses_nothing(prepared, two_nodes, tmp_path):
    expected = of_one_process(prepared, MEASURES, PLAIN, tmp_path / "one")
    folder = tmp_path / "spread"
    folder.mkdir()
    with executor_for(None, two_nodes) as executor:
        place = FeaturePlace(folder, executor)
        rebuild = functools.partial(dying_store, tmp_path, MEASURES, prepared.path, folder)
        model = new_model(MEASURES, prepared, seed=MEASURES.seed)
        slices = SliceStore(prepared, MEASURES)
        SpreadFeatureStore(model, slices, MEASURES, place, False, rebuild).prepare(PLAIN)
    assert (tmp_path / "died").is_file()
    assert files_of(folder) == expected
