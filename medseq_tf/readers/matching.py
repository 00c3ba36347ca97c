"""One stated rule by which the studies of a source belong to the rows of a table.

An identifier is text: `007` is not `7`, `A` is not `a`. Only spaces at its ends and the Unicode
form of its letters say nothing (`normal_id`). A rule is one way to read a study's identifiers from
it, such as the stem of its file's name. One rule holds for the whole table. Where none is given,
all are tried on all studies and all rows: the one that fits is taken, and where two say different
things of one study, or each fits studies that the other does not, both readings are shown and the
table is refused.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from medseq_tf.errors import InputError

_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")

Readings = Mapping[str, Mapping[str, Iterable[str]]]
"""rule -> study -> the identifiers that the rule reads from it."""


def normal_id(text: str) -> str:
    """An identifier, or a path of them, in the one form that is compared.

    >>> normal_id(" 7 /scan ") == "7/scan", normal_id("e\u0301") == "\u00e9", normal_id("007")
    (True, True, '007')
    """
    parts = unicodedata.normalize("NFC", text).strip().split("/")
    return "/".join(part.strip() for part in parts)


def alike(identifier: str) -> str:
    """What different identifiers share that may be one, spelt twice: no capitals, no leading zeros.

    Nothing is matched by it: it only says where to look, or that a match is in doubt.

    >>> alike("Sub-007"), alike("10.0")
    ('sub-7', '10')
    """
    return _LEADING_ZEROS.sub("", identifier.casefold()).removesuffix(".0")


class Matches(NamedTuple):
    """The rule that holds for a table, and the key of the row of every study that has one."""

    rule: str | None
    keys: dict[str, str]


def match_rows(
    readings: Readings,
    lines: Mapping[str, int],
    table: str = "labels",
    remedy: Callable[[Iterable[str]], str] | None = None,
) -> Matches:
    """Match studies to rows by one rule.

    Args:
        readings: rule -> study -> its identifiers. A study's name is shown in errors.
        lines: key (`normal_id`) -> line of its row.
        table: what errors call the table.
        remedy: names of rules -> what to do about it; default: `give --match`.

    Returns:
        The rule, None where no rule fits one study, and the matched keys.

    Raises:
        InputError: two rules, or two rows, fit; the message shows both readings.
    """
    remedy = remedy or (lambda rules: "give " + " or ".join(f"--match {rule}" for rule in rules))
    matched = {
        rule: _matched(studies, lines, table, f"by {rule}") for rule, studies in readings.items()
    }
    keys_of = {rule: keys for rule, keys in matched.items() if keys}
    if not keys_of:
        return Matches(None, {})
    for (one, keys), (other, others) in itertools.combinations(keys_of.items(), 2):
        for study in sorted(keys.keys() & others.keys()):
            if keys[study] != others[study]:
                raise InputError(
                    f"{study} is {table} line {lines[keys[study]]} by {one} and line "
                    f"{lines[others[study]]} by {other}; {remedy((one, other))}"
                )
    rule = max(keys_of, key=lambda name: len(keys_of[name]))
    taken = keys_of[rule]
    for other, keys in keys_of.items():
        for study in sorted(keys.keys() - taken.keys()):
            also = next(iter(taken))
            raise InputError(
                f"{also} is {table} line {lines[taken[also]]} by {rule}, {study} is line "
                f"{lines[keys[study]]} by {other}, and one rule holds for all; "
                f"{remedy((rule, other))}"
            )
    _refuse_doubt(readings, keys_of, rule, lines, table, remedy)
    return Matches(rule, taken)


def _matched(
    studies: Mapping[str, Iterable[str]], lines: Mapping[str, int], table: str, how: str
) -> dict[str, str]:
    """The key of every study that one rule matches."""
    keys: dict[str, str] = {}
    spellings: dict[str, tuple[str, str]] = {}
    for study, identifiers in studies.items():
        for identifier in identifiers:
            key = normal_id(identifier)
            if key not in lines:
                continue
            if keys.setdefault(study, key) != key:
                raise InputError(
                    f"{study} is {table} line {lines[keys[study]]} and line {lines[key]} {how}; "
                    "keep one of the rows"
                )
            first, first_study = spellings.setdefault(key, (identifier, study))
            if first != identifier:
                raise InputError(
                    f"{first_study} and {study} are both {table} line {lines[key]} {how}: they "
                    "differ only in spaces or in the Unicode form of letters; rename one"
                )
    return keys


def _refuse_doubt(
    readings: Readings,
    keys_of: Mapping[str, Mapping[str, str]],
    rule: str,
    lines: Mapping[str, int],
    table: str,
    remedy: Callable[[Iterable[str]], str],
) -> None:
    """Refuse a match that another rule contradicts but for leading zeros or capitals."""
    near = lines_alike(lines)
    for other, studies in readings.items():
        for study, key in keys_of[rule].items():
            if other == rule or study in keys_of.get(other, {}):
                continue
            for identifier in studies.get(study, ()):
                like = alike(normal_id(identifier))
                if like in near and like != alike(key):
                    raise InputError(
                        f"{study} is {table} line {lines[key]} by {rule}, and by {other} line "
                        f"{near[like]} but for leading zeros or capitals; {remedy((rule, other))}"
                    )


def lines_alike(lines: Mapping[str, int]) -> dict[str, int]:
    """The lines of rows by what is `alike` of their keys."""
    near: dict[str, int] = {}
    for key, line in lines.items():
        near.setdefault(alike(key), line)
    return near


def why_unmatched(identifiers: Iterable[str], near: Mapping[str, int], table: str) -> str:
    """Say of a study without a row which row differs from it in spelling only, if one does.

    Args:
        identifiers: of the study.
        near: see `lines_alike`.
        table: what the table is called.
    """
    likes = (alike(normal_id(identifier)) for identifier in identifiers)
    line = next((near[like] for like in likes if like in near), None)
    spelling = f" ({table} line {line} differs in leading zeros or capitals)" if line else ""
    return f"no row in the {table}{spelling}"
