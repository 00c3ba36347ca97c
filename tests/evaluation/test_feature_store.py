"""Stored features: what they hold, under what name, and that only what is whole is ever read."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_network
from feature_stores import ROWS, VARIED, build, entries, filling, make, plain

from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation import feature_views
from medseq_tf.evaluation.feature_folder import feature_folder
from medseq_tf.evaluation.feature_store import join
from medseq_tf.input.batches import evaluation_batches, training_batches, training_plan
from medseq_tf.input.sampling import Part


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny_network.install(monkeypatch)


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


# ------------------------------------------------------------------------------- what it holds


@pytest.mark.parametrize("neighbours", [0, 1])
def test_features_are_the_networks_own_of_every_slice(prepared, neighbours):
    store = make(prepared, f"input.neighbours={neighbours}")
    network = build(store.experiment).encoder.network
    for row in (0, 7):
        images = prepared.slices(row) / np.float32(255)
        channels = [images]
        if neighbours:
            channels = [images[[0, *range(len(images) - 1)]], images]
            channels += [images[[*range(1, len(images)), len(images) - 1]]]
        expected = np.asarray(network(np.stack(channels, axis=-1)))
        np.testing.assert_allclose(store.of(row), expected, rtol=1e-5, atol=1e-6)


THINNED = ("sequence.policy=all", "sequence.length=3", "sequence.evaluation.policy=even")


def test_only_slices_that_are_ever_shown_are_computed(prepared, tmp_path):
    """Of a long study that is thinned; under a name of their own."""
    store = make(prepared, *THINNED, "sequence.evaluation.length=4", folder=tmp_path)
    every = make(prepared, "sequence.policy=random", folder=tmp_path)
    row = int(prepared.studies["slices"].argmax())
    length = int(prepared.studies["slices"].max())
    shown = {(2 * place + 1) * length // (2 * count) for count in (3, 4) for place in range(count)}
    assert store.views.shown(row).tolist() == sorted(shown)
    np.testing.assert_allclose(store.of(row), every.of(row)[sorted(shown)], rtol=1e-5, atol=1e-6)
    assert store.views.key(row) != every.views.key(row)
    recipe = store.experiment
    slices = evaluation_batches(prepared, [row, 0], recipe, batch_size=64)
    model = build(recipe)
    for (inputs, _, rows), (expected, _, of) in zip(
        store.evaluation_batches([row, 0]), slices, strict=True
    ):
        assert rows.tolist() == of.numpy().tolist()
        features = model.extract(expected["slices"], expected["lengths"])
        np.testing.assert_allclose(inputs["features"], features, rtol=1e-5, atol=1e-5)


def test_a_study_gets_the_same_bits_whoever_is_computed_with_it(prepared):
    together, alone = make(prepared), make(prepared)
    together.prepare(plain())
    np.testing.assert_array_equal(together.of(7), alone.of(7))


def test_batches_are_those_of_the_slices(prepared):
    """The same order, slices, padding and labels, epoch by epoch."""
    store = make(prepared, "sequence.policy=all", "sequence.order=shuffled")
    model = build(store.experiment)
    for epoch in (0, 3):
        slices = training_batches(prepared, ROWS, store.experiment, epoch)
        for (found, labels), (inputs, expected) in zip(
            store.training_batches(ROWS, epoch), slices, strict=True
        ):
            np.testing.assert_array_equal(found["lengths"], inputs["lengths"])
            np.testing.assert_array_equal(labels, expected)
            features = model.extract(inputs["slices"], inputs["lengths"])
            np.testing.assert_allclose(found["features"], features, rtol=1e-5, atol=1e-6)
    pairs = zip(
        store.evaluation_batches(ROWS, batch_size=4),
        evaluation_batches(prepared, ROWS, store.experiment),
        strict=True,
    )
    for (found, labels, rows), (inputs, expected, owners) in pairs:
        np.testing.assert_array_equal(rows, owners)
        np.testing.assert_array_equal(labels, expected)
        features = model.extract(inputs["slices"], inputs["lengths"])
        np.testing.assert_allclose(found["features"], features, rtol=1e-5, atol=1e-6)


def test_batches_are_joined_from_any_whole_group_on(prepared):
    store = make(prepared)
    single = list(store.training_batches(ROWS, 1))
    joined = list(store.training_batches(ROWS, 1, together=2))
    assert [len(labels) for _, labels in joined] == [8, 2]
    for number, (inputs, labels) in enumerate(joined):
        expected = join(single[2 * number : 2 * number + 2])
        np.testing.assert_array_equal(inputs["features"], expected[0]["features"])
        np.testing.assert_array_equal(inputs["lengths"], expected[0]["lengths"])
        np.testing.assert_array_equal(labels, expected[1])
    ((rest, _),) = store.training_batches(ROWS, 1, first_batch=2, together=2)
    np.testing.assert_array_equal(rest["features"], joined[1][0]["features"])


@pytest.mark.parametrize("count", [2, 5])
def test_parts_of_batches_are_the_batches(prepared, tmp_path, count):
    """A part may be empty; several processes that compute a part each share what they compute."""
    whole = list(make(prepared).training_batches(ROWS, 1, together=2))
    stores = [make(prepared, folder=tmp_path) for _ in range(count)]
    for number, store in enumerate(stores):
        store.prepare_training(ROWS, 0, part=Part(number, count))
    parts = [
        list(store.training_batches(ROWS, 1, together=2, part=Part(number, count)))
        for number, store in enumerate(stores)
    ]
    for (inputs, labels), *mine in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([part[1] for part in mine]), labels)
        joined = np.concatenate([part["features"] for part, _ in mine])
        np.testing.assert_array_equal(joined, inputs["features"])


def test_mirrored_slices_have_features_of_their_own(prepared, tmp_path):
    store = make(prepared, "sequence.evaluation.mirrored=true", *VARIED, folder=tmp_path)
    before = make(prepared, folder=tmp_path)
    assert store.views.key(0) == before.views.key(0)
    images = prepared.slices(0)[:, :, ::-1, None] / np.float32(255)
    expected = np.asarray(build(store.experiment).encoder.network(images))
    mirrored = store.of(0, feature_views.MIRRORED)
    np.testing.assert_allclose(mirrored, expected, rtol=1e-5, atol=1e-6)
    assert store.views.key(0, feature_views.MIRRORED) != store.views.key(0)

    store.prepare_training(ROWS, 0)
    model, count = build(store.experiment), store.computed
    pairs = zip(
        store.evaluation_batches(ROWS, batch_size=4),
        evaluation_batches(prepared, ROWS, store.experiment),
        strict=True,
    )
    for (found, *_, owners), (inputs, _, rows) in pairs:
        np.testing.assert_array_equal(owners, rows)
        features = model.extract(inputs["slices"], inputs["lengths"])
        np.testing.assert_allclose(found["features"], features, rtol=1e-5, atol=1e-6)
    assert store.computed == count + 2 * len(ROWS) - 1


# -------------------------------------------------------------------------------- on disk


def test_an_entry_is_computed_once_and_read_by_others(prepared, tmp_path):
    first = make(prepared, folder=tmp_path)
    first.prepare(plain())
    assert first.computed == len(entries(tmp_path)) == 10
    second = make(prepared, "fit.epochs=9", "model.aggregator.units=3", "seed=0", folder=tmp_path)
    second.prepare(plain())
    assert second.computed == 0
    for row in ROWS:
        np.testing.assert_array_equal(first.of(row), second.of(row))
        path = tmp_path / first.views.key(row)[:2] / first.views.key(row)
        np.testing.assert_array_equal(np.load(path, allow_pickle=False), first.of(row))


def test_neither_names_nor_content_tell_a_study_or_patient(prepared, tmp_path):
    make(prepared, *VARIED, folder=tmp_path).prepare([(0, None), (0, (0, 1)), (1, (0, 0))])
    ids = {*prepared.studies["study_id"], *prepared.studies["patient_id"]}
    found = b"".join(str(p).encode() + p.read_bytes() for p in entries(tmp_path))
    assert not [one for one in ids if one.encode() in found]


OTHERS = {
    "weights": ("seed=1",),
    "output": ("model.encoder.output=max",),
    "outputs": ("model.encoder.output=[average, max]",),
    "network": ("model.encoder.network=MobileNetV3Large",),
    "size": ("input.size=24",),
    "neighbours": ("input.neighbours=1",),
    "dtype": ("features.dtype=float16",),
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_what_changes_features_changes_their_name(prepared, settings):
    assert make(prepared).views.key(0) != make(prepared, *settings).views.key(0)


def test_a_view_has_a_name_of_its_own(prepared):
    store, same = make(prepared, *VARIED), make(prepared, *VARIED)
    keys = {store.views.key(row, draw) for row in (0, 1) for draw in (None, (0, 0), (0, 1), (1, 0))}
    assert len(keys) == 8
    assert store.views.key(0, (0, 1)) == same.views.key(0, (0, 1))
    assert store.views.key(0) == make(prepared).views.key(0), (
        "plain slices know nothing of augmentation"
    )
    assert store.views.key(0, (0, 1)) != make(prepared, *VARIED, "augment.flip.p=0.4").views.key(
        0, (0, 1)
    )


def test_another_precision_versions_or_storage_change_the_name(prepared, monkeypatch):
    before = make(prepared).views.key(0)
    monkeypatch.setattr(feature_views.cv2, "__version__", "0.0")
    assert make(prepared).views.key(0) != before
    monkeypatch.undo()
    tiny_network.install(monkeypatch)
    info = {**prepared.info, "storage": {"dtype": "uint8", "offset": 1}}
    assert make(dataclasses.replace(prepared, info=info)).views.key(0) != before


def test_the_same_slices_under_other_ids_keep_their_name(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_SALT", "pepper")
    settings = {"patients": 40, "size": 32, "difficulty": 0.0, "workers": 1, "progress": False}
    other = prepare("demo", out=tmp_path / "other", **settings)
    assert set(other.studies["study_id"]).isdisjoint(prepared.studies["study_id"])
    assert make(other, *VARIED).views.key(3, (0, 1)) == make(prepared, *VARIED).views.key(3, (0, 1))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


def swap(path):
    path.write_bytes(next(p for p in entries(path.parents[1]) if p != path).read_bytes())


def rubbish(path):
    path.write_bytes(os.urandom(500))


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, empty, swap, rubbish, remove])
def test_what_is_not_whole_is_computed_again(prepared, tmp_path, damage):
    make(prepared, folder=tmp_path).prepare(plain())
    expected = make(prepared).of(4)
    store = make(prepared, folder=tmp_path)
    path = tmp_path / store.views.key(4)[:2] / store.views.key(4)
    damage(path)
    store.prepare(plain())
    assert store.computed == 1
    np.testing.assert_array_equal(store.of(4), expected)
    np.testing.assert_array_equal(np.load(path), expected)


def test_an_entry_of_another_shape_is_not_read(prepared, tmp_path):
    store = make(prepared, folder=tmp_path)
    store._parts[0].files.write(store.views.key(0), np.zeros((3, 6), np.float32))
    assert store._parts[0].files.read(store.views.key(0), 3) is not None
    store.prepare([(0, None)])
    assert store.computed == 1


def test_killed_while_writing_it_goes_on_where_it_was(prepared, tmp_path):
    process = filling(prepared, tmp_path, dies_at=6)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    process.stderr.close()
    assert len(entries(tmp_path)) == 5
    store, expected = make(prepared, folder=tmp_path), make(prepared)
    store.prepare(plain(range(20)))
    assert store.computed == 15
    for row in range(20):
        np.testing.assert_array_equal(store.of(row), expected.of(row))


def test_two_processes_may_fill_one_folder(prepared, tmp_path):
    processes = [filling(prepared, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.wait() == 0, process.stderr.read().decode()
        process.stderr.close()
    store, expected = make(prepared, folder=tmp_path), make(prepared)
    store.prepare(plain(range(20)))
    assert store.computed == 0
    for row in range(20):
        np.testing.assert_array_equal(store.of(row), expected.of(row))
    assert not list(tmp_path.glob("*/.*"))


def test_what_another_process_wrote_meanwhile_is_not_computed_again(prepared, tmp_path):
    store, other = make(prepared, folder=tmp_path), make(prepared, folder=tmp_path)
    find, asked = store._find, []

    def find_later(pair):
        asked.append(pair)
        if len(asked) == len(ROWS):
            other.prepare(plain())
        return find(pair) if len(asked) > len(ROWS) else False

    store._find = find_later
    store.prepare(plain())
    assert store.computed == 0


def test_stopped_half_way_it_goes_on_where_it_was(prepared, tmp_path):
    store = make(prepared, folder=tmp_path)
    with pytest.raises(Stopped, match="stopped at features: 4/10 studies, 0 cached"):
        store.prepare(plain(), stopped=lambda: store.computed == 4)
    again = make(prepared, folder=tmp_path)
    again.prepare(plain())
    assert again.computed == 6


def test_progress_says_how_many_there_were(prepared, tmp_path, capsys):
    make(prepared, folder=tmp_path).prepare(plain(range(4)))
    make(prepared, folder=tmp_path, verbose=True).prepare(plain())
    assert capsys.readouterr().out == "features: 10/10 studies, 4 cached\n"


# --------------------------------------------------------------------------------- the place


def test_the_place_is_named_by_hand_or_environment_or_is_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_FEATURES", str(tmp_path / "named"))
    assert feature_folder(tmp_path / "by hand") == tmp_path / "by hand"
    assert feature_folder() == tmp_path / "named"
    monkeypatch.delenv("MEDSEQ_TF_FEATURES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert feature_folder() == tmp_path / "cache" / "medseq_tf" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert feature_folder() == tmp_path / ".cache" / "medseq_tf" / "features"
    assert (tmp_path / "named").stat().st_mode & 0o077 == 0


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot be kept there.*--features or MEDSEQ"):
            feature_folder(place)


def test_a_full_disk_is_one_line(prepared, tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    store = make(prepared, folder=tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"kept there \(No space left on device\); name another"):
        store.prepare(plain())
    assert not list(tmp_path.glob("*/*"))


# ------------------------------------------------------------------------------------- memory


def test_features_that_do_not_fit_in_memory_are_read_from_disk(prepared, tmp_path):
    held = make(prepared, *VARIED, "features.views=2")
    for cache in ("none", "memory"):
        store = make(prepared, *VARIED, "features.views=2", f"fit.cache={cache}", folder=tmp_path)
        store.prepare_training(ROWS, 0)
        assert bool(store._held) == (cache == "memory")
        for found, expected in zip(
            store.training_batches(ROWS, 0), held.training_batches(ROWS, 0), strict=True
        ):
            np.testing.assert_array_equal(found[0]["features"], expected[0]["features"])


def test_an_entry_that_is_taken_away_meanwhile_is_computed_again(prepared, tmp_path):
    store = make(prepared, "fit.cache=none", folder=tmp_path)
    expected = np.array(store.of(2))
    for path in entries(tmp_path):
        path.unlink()
    np.testing.assert_array_equal(store.of(2), expected)


def test_float16_is_off_by_one_in_2000_at_most(prepared, tmp_path):
    exact, half = make(prepared), make(prepared, "features.dtype=float16", folder=tmp_path)
    half.prepare([(0, None)])
    assert np.load(entries(tmp_path)[0]).dtype == np.float16
    np.testing.assert_allclose(half.of(0), exact.of(0), rtol=1 / 2000, atol=1e-7)


def test_features_beyond_float16_say_so(prepared, monkeypatch):
    store = make(prepared, "features.dtype=float16")
    compute = store._parts[0].compute
    store._parts[0].compute = lambda images: compute(images) * 1e9
    with pytest.raises(InputError, match=r"too large for float16; set features\.dtype=float32"):
        store.of(0)


# -------------------------------------------------------------------------------------- views


def test_views_are_augmented_studies_and_all_differ(prepared):
    store = make(prepared, *VARIED, "augment.gaussian_noise.p=1")
    assert store.of(0, (0, 0)).shape == store.of(0).shape
    views = [store.of(row, (g, v)) for row in (0, 1) for g in (0, 1) for v in (0, 1)]
    views += [store.of(0), make(prepared, *VARIED, "seed=1").of(0, (0, 0))]
    means = {float(view.mean()) for view in views}
    assert len(means) == len(views)


def test_each_sequence_draws_its_view_evenly_and_for_itself(prepared):
    settings = (*VARIED, "features.views=4", "sequence.per_study=3")
    store = make(prepared, *settings)

    def drawn(rows, epoch):
        plan = training_plan(prepared, rows, store.experiment, epoch)
        return {(s.study, s.number): store.views.draw(epoch, s) for batch in plan for s in batch}

    counts = np.zeros(4)
    for epoch in range(40):
        for generation, view in drawn(ROWS, epoch).values():
            assert generation == 0
            counts[view] += 1
    assert counts.sum() == 40 * 10 * 3
    assert (np.abs(counts - 300) < 60).all()
    everyone, some = drawn(ROWS, 5), drawn(ROWS[4:], 5)
    assert some == {key: draw for key, draw in everyone.items() if key[0] >= 4}


def test_without_augmentation_there_is_one_view(prepared):
    store = make(prepared)
    store.prepare_training(ROWS, 0)
    assert store.computed == 10
    list(store.evaluation_batches(ROWS))
    assert store.computed == 10, "training and evaluation read the same"


def test_views_are_computed_ahead_only_as_far_as_they_will_be_drawn(prepared):
    store = make(prepared, *VARIED, "features.views=8", "fit.epochs=3")
    store.prepare_training(ROWS, 0)
    wanted = store.computed
    assert 10 < wanted <= 30
    for epoch in range(3):
        list(store.training_batches(ROWS, epoch))
    assert store.computed == wanted
    whole = make(prepared, *VARIED, "features.views=2", "fit.epochs=100")
    whole.prepare_training(ROWS, 0)
    assert whole.computed == 20


def test_views_are_drawn_anew_on_schedule(prepared):
    settings = (*VARIED, "features.views=2", "features.redraw=3", "fit.epochs=9")
    store = make(prepared, *settings)
    assert [store.views.generation(epoch) for epoch in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    first = make(prepared, *settings).of(0, (0, 1))
    store.prepare_training(ROWS, 0)
    store.prepare_training(ROWS, 2)
    before = store.computed
    store.prepare_training(ROWS, 3)
    assert store.computed > before
    assert {draw[0] for _, draw in store._held} == {1}
    assert (store.of(0, (1, 1)) != first).any()


def test_a_damaged_study_is_one_line(prepared, monkeypatch):
    store = make(prepared)
    monkeypatch.setattr(Prepared, "record", lambda self, row: b"\x00" * 40)
    with pytest.raises(InputError, match=r"study \w+ is damaged; copy the data set again, whole"):
        store.of(0)


def test_entries_are_for_those_who_may_use_the_folder(prepared, tmp_path):
    """Neither more open than the folder nor, in a shared one, closed to the others."""
    for mode in (0o700, 0o770):
        folder = tmp_path / oct(mode)
        folder.mkdir()
        folder.chmod(mode)
        make(prepared, folder=folder).prepare([(0, None)])
        entry = next(path for path in folder.rglob("*") if path.is_file())
        assert stat.S_IMODE(entry.parent.stat().st_mode) == mode
        assert stat.S_IMODE(entry.stat().st_mode) == mode & 0o666


def test_a_full_disk_is_known_before_the_network_starts(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "medseq_tf.evaluation.feature_folder.shutil.disk_usage",
        lambda folder: SimpleNamespace(free=100),
    )
    store = make(prepared, folder=tmp_path)
    with pytest.raises(InputError, match="are free; name another folder with --features"):
        store.prepare([(0, None)])
    assert store.computed == 0
