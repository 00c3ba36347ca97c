"""The templates of the report and the model card, and what is written into them."""

from __future__ import annotations

import base64
import io
import re
from typing import Any, NamedTuple

import jinja2
import matplotlib
from matplotlib.figure import Figure

_ANY_LIMITS = (
    "A research result, not a medical device. No diagnosis, treatment or triage may rest on it. It "
    "says nothing about patients, scanners or hospitals unlike those below, nothing about findings "
    "other than those it was trained on"
)
LIMITS_OF_USE = f"{_ANY_LIMITS}, and a negative call rules nothing out."
LIMITS_OF_CLASSES = (
    f"{_ANY_LIMITS}, and a call of one class rules no other out, nor that the patient has none."
)

_MARKUP = re.compile(r"[\\|`*~\[\]]|(?<![^\W_])_|_(?![^\W_])")
"""Of Markdown; an underscore within a word is none."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("medseq_tf.reporting"),
    autoescape=jinja2.select_autoescape(("html.j2",)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["anchor"] = lambda title: title.lower().replace(" ", "-")


class Picture(NamedTuple):
    """A figure as a page holds it: a data URI, its size in CSS pixels, and words for it."""

    source: str
    width: int
    height: int
    alternative: str
    caption: str
    title: str


def picture(
    figure: Figure, alternative: str, caption: str, kind: str = "svg", title: str = ""
) -> Picture:
    """Draw a figure for a page; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "medseq_tf", "font.size": 10}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    width, height = (round(side * 100) for side in figure.get_size_inches())
    return Picture(f"data:{mime};base64,{data}", width, height, alternative, caption, title)


def render_html(template: str, **context: Any) -> str:
    """Fill a template of HTML; every value is escaped."""
    return _TEMPLATES.get_template(template).render(context)


def render_markdown(template: str, **context: Any) -> str:
    """Fill a template of Markdown; every value becomes text without markup, fit for a cell."""
    environment = _TEMPLATES.overlay(finalize=plain)
    return environment.get_template(template).render(context)


def plain(value: object) -> str:
    """Return a value as the text of a Markdown cell: no bar, no line break, no markup."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(str(value).split())).replace("<", "&lt;")
