"""Recipes from presets and files, and one clear line for what is none."""

from __future__ import annotations

import pytest

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "not valid YAML at line"),
        (b"- a\n- b\n", "holds no recipe"),
        (b"", "holds no recipe"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"model: {encoder: {kernel: 3}}", "unknown key model.encoder.kernel"),
        (b"fit: 3", "fit = 3"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"recipe\.yaml") as caught:
        recipes.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(InputError, match=r"did you mean fsm_bilstm\?.*presets: .*fsm_bilstm_paper"):
        recipes.load("fsm_bilstn")


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        recipes.load("nowhere.yaml")
