"""Values of a YAML text, or one line that says what is wrong with it.

A text is refused before anything is built from it if it is longer, deeper or, its aliases written
out, larger than any recipe could be; and if a key stands twice in a mapping, where YAML libraries
silently take the last.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from medseq_tf.errors import InputError

LONGEST = 256 * 1024
"""Bytes of a file; the longest recipe of ours has some 4 KiB."""
DEEPEST = 20
"""Levels of nesting; a recipe has four."""
MOST_VALUES = 10_000
"""Keys and values, those of aliases counted wherever they stand."""
LONGEST_NUMBER = 64
"""Characters; YAML reads 1:30:00 as a number too, a long one in the square of its length."""


class _Loader(yaml.SafeLoader):
    """Reads the values that JSON has too, and refuses a key that stands twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _error(f"the key {key.value} stands twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def short_number(self, node: yaml.ScalarNode) -> int | float:
        """Read a number of a length that people write."""
        if len(str(node.value)) > LONGEST_NUMBER:
            problem = f"a number of more than {LONGEST_NUMBER} characters"
            raise _error(problem, node.start_mark)
        is_whole = node.tag.endswith("int")
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.short_number)
for _kind in ("binary", "omap", "pairs", "set"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_undefined)  # type: ignore[type-var]
# A point in time stays as it is written.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)  # type: ignore[type-var]


def yaml_values(text: str, origin: str) -> Any:
    """Return the values of a YAML text.

    Args:
        text: one document.
        origin: what errors call it.

    Raises:
        InputError: one line that says what is wrong and where.
    """
    if len(text) > LONGEST:
        raise InputError(f"{origin}: has more than {LONGEST // 1024} KiB, so it is no recipe")
    try:
        _check_extent(text)
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):
        where, problem = "", "a value is not of the kind that its tag or its form says"
    raise InputError(f"{origin}: not valid YAML{where}: {problem}".replace("\n", " "))


def read_yaml(path: str | os.PathLike, kind: str) -> Any:
    """Return the values of a YAML file.

    Args:
        path: the file, which errors name.
        kind: what is expected in it, such as `recipe`.

    Raises:
        InputError: one line that says what is wrong and where.
        OSError: the file cannot be opened.
    """
    with Path(path).open("rb") as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise InputError(f"{path}: has more than {LONGEST // 1024} KiB, so it is no {kind}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; a YAML {kind} is expected") from None
    return yaml_values(text, os.fspath(path))


def _check_extent(text: str) -> None:
    """Raise for a text that is nested too deep or means too much, having built nothing of it."""
    anchors: dict[str, tuple[int, int]] = {}
    open_nodes: list[list] = [[None, 0, 0]]  # anchor, values in it, levels in it
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor, 1, 0])
            values, levels = 0, 0
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values, levels = open_nodes.pop()
            levels += 1
            anchors |= {anchor: (values, levels)} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            values, levels = 1, 0
            anchors |= {event.anchor: (1, 0)} if event.anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [node[0] for node in open_nodes]:
                raise _error(f"*{event.anchor} lies within itself", event.start_mark)
            values, levels = anchors.get(event.anchor or "", (1, 0))
        else:
            continue
        parent = open_nodes[-1]
        parent[1] += values
        parent[2] = max(parent[2], levels)
        if len(open_nodes) - 1 + levels > DEEPEST:
            raise _error(f"is nested more than {DEEPEST} levels deep", event.start_mark)
        if sum(node[1] for node in open_nodes) > MOST_VALUES:
            raise _error(f"means more than {MOST_VALUES} values", event.start_mark)


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
