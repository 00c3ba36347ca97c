"""YAML of all sorts: its plain values, or one line within about a second."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from medseq_tf import recipe as recipes
from medseq_tf.cli import cli
from medseq_tf.errors import InputError
from medseq_tf.recipe.yaml_text import DEEPEST, yaml_values
from medseq_tf.tuning.space import Space

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
HOSTILE = {
    "billion laughs": (LAUGHS, "means more than 10000 values"),
    "merged laughs": (
        "a0: &a0 {x: 1}\n"
        + "".join(
            f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
        ),
        "means more than 10000 values",
    ),
    "within itself": ("a: &a [*a]\n", "lies within itself"),
    "deep lists": ("a: " + "[" * 50_000, "nested more than 20 levels deep"),
    "deep mappings": ("{a: " * 50_000, "nested more than 20 levels deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(700)), "nested more than 20"),
    "deep by aliases": (
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 5000)),
        "nested more than 20 levels deep",
    ),
    "long": ("a: 1\n" * 100_000, "has more than 256 KiB"),
    "wide": ("a: [" + "1, " * 80_000 + "]", "means more than 10000 values"),
    "a long number": ("a: 1" + ":30" * 60_000, "a number of more than 64 characters"),
    "a longer number": ("a: " + "9" * 200_000, "a number of more than 64 characters"),
    "a key twice": (
        "fit:\n  epochs: 3\n  patience: 2\n  epochs: 30\n",
        "line 4.*epochs stands twice",
    ),
    "a group twice": ("fit: {epochs: 3}\nfit: {patience: 2}\n", "line 2: the key fit stands twice"),
    "an object": ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML at line 1"),
    "a wrong number": ("a: !!int x\n", "not of the kind that its tag"),
    "no key": ("? [a, b]\n: 1\n", "not valid YAML at line 1"),
    "bytes": ("a: !!binary aGk=\n", "not valid YAML at line 1"),
    "control characters": ("a: \x07\n", "not valid YAML"),
}


def one_line_of(error):
    line = str(error)
    assert "\n" not in line
    assert len(line) < 400
    return line


@pytest.mark.parametrize("name", HOSTILE)
def test_recipes_and_spaces_that_are_none_are_one_line(tmp_path, name):
    text, message = HOSTILE[name]
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(InputError, match=message) as recipe:
        recipes.load(path)
    with pytest.raises(InputError, match=message) as space:
        Space.load(path)
    assert time.perf_counter() - start < 10  # minutes, or never, without bounds
    assert one_line_of(recipe.value).startswith(str(path))
    assert one_line_of(space.value).startswith(str(path))


@pytest.mark.parametrize(
    ("command", "name"), [("train", "a key twice"), ("tune", "billion laughs")]
)
def test_the_commands_say_it_in_one_line(tmp_path, command, name):
    (tmp_path / "odd.yaml").write_text(HOSTILE[name][0])
    code = "import sys; from medseq_tf.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, command, "odd.yaml", "--data", ".", "--no-track"],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "odd.yaml" in done.stderr


def test_aliases_of_a_sane_size_are_read():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}\nd: [*a, *a]\n"
    assert yaml_values(text, "a") == yaml.safe_load(text)


def test_a_merged_key_may_be_set_again_whatever_is_read_first():
    text = "b: &b {x: 2}\na: &a {<<: *b, x: 1}\nc: {<<: *a, x: 5}\nd: {<<: [*a, *b]}\n"
    assert yaml_values(text, "a") == yaml.safe_load(text)


def test_dates_stay_what_was_written():
    assert yaml_values("a: 2026-01-02", "a") == {"a": "2026-01-02"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=20,
    )
)
def test_what_is_written_comes_back(values):
    assert yaml_values(yaml.safe_dump(values), "a") == values


@given(st.text(alphabet="ab:-[]{}&*!<>|?,'\"#% \n\t1.e", max_size=60))
def test_any_text_is_values_or_one_line(text):
    try:
        refusal = str(yaml_values(text, "a"))[:0]
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal


# ---------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "sequence.per_study=1000000000",
            "sequence.per_study = 1000000000: should be at most 1000",
        ),
        ("sequence.length=1000000000", "sequence.length = 1000000000: should be at most 4096"),
        (
            "model.aggregator.units=100000000",
            "model.aggregator.units = 100000000: should be at most 8192",
        ),
        ("model.head.units=[100000000]", "model.head.units.0 = 100000000: should be at most 8192"),
        ("model.aggregator.layers=1000000", "should be at most 64"),
        ("model.encoder.filters=[16, 32, 100000000]", "model.encoder.filters.2 = 100000000"),
        ("model.encoder.kernels=[11, 5, 100000]", "should be at most 64"),
        (f"model.head.units={[8] * 100}", "at most 16 items"),
        ("features.views=1000000000", "features.views = 1000000000: should be at most 1000"),
        ("fit.batch_size=1000000000", "should be at most 65536"),
        ("fit.epochs=1000000000000", "should be at most 100000"),
        ("input.size=60000", "should be at most 1024"),
        ("augment.coarse_dropout.holes=1000000000", "should be at most 1000"),
        ("split.seed=-1", "split.seed = -1: should be greater than or equal to 0"),
        ("name=" + "a" * 300, "should have at most 100 characters"),
        ("a." * 5000 + "b=1", f"no key lies more than {DEEPEST} levels deep"),
        ("fit.epochs=" + "[" * 5000, "the value is not valid YAML"),
        ("fit={epochs: 1, epochs: 2}", "epochs stands twice"),
    ],
)
def test_a_number_far_too_large_is_one_line(override, message):
    with pytest.raises(InputError) as refused:
        recipes.load("fsm_bilstm", [override])
    assert message in one_line_of(refused.value)


def test_every_preset_keeps_to_the_bounds():
    for name in recipes.presets():
        assert recipes.load(name).to_yaml()


def test_the_command_refuses_a_number_far_too_large(tmp_path):
    result = CliRunner().invoke(
        cli,
        ["train", "fsm_bilstm", "--data", str(tmp_path), "--set", "sequence.per_study=1000000000"],
    )
    assert isinstance(result.exception, InputError)
    assert "sequence.per_study = 1000000000: should be at most 1000" in str(result.exception)


def space(**changes):
    settings = {"optimizer.learning_rate": {"float": [0.001, 0.01]}}
    return {"name": "s", "recipe": "fsm_bilstm", "space": settings, **changes}


def tangled(count):
    """Settings, each active for any of ten values of each of the two before it."""
    choice = {f"v{j}": {} for j in range(10)}
    settings = {"k0": {"choice": choice}}
    for number in range(1, count):
        before = [f"k{i}" for i in range(max(0, number - 2), number)]
        settings[f"k{number}"] = {"choice": choice, "when": {key: [*choice] for key in before}}
    return settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (space(objective={"folds": 10**9}), "objective.folds = 1000000000 should be at most 1000"),
        (space(objective={"repeats": 10**9}), "should be at most 1000; each is a training"),
        (
            space(space={"sequence.length": {"choice": list(range(1, 5000))}}),
            "choice has 4999 alternatives; at most 200",
        ),
        (
            space(space={f"k{i}": {"choice": {"a": {}, "b": {}}} for i in range(2000)}),
            "space has 2000 settings; at most 100",
        ),
        (
            space(space={"model.aggregator.units": {"int": [1, 10**9]}}),
            "model.aggregator.units = 1000000000: should be at most 8192",
        ),
        (space(space={"sequence.length": {"choice": 5}}), "choice is empty"),
    ],
)
def test_a_space_far_too_large_is_one_line(content, message):
    with pytest.raises(InputError) as refused:
        Space.load(content)
    assert message in one_line_of(refused.value)


def test_conditions_on_conditions_take_no_time_that_grows_with_their_combinations():
    assert len(Space.load(space(space=tangled(45))).settings) == 45
