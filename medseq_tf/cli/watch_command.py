"""`medseq-tf watch`: the command that does not end by itself."""

from __future__ import annotations

import re
import sys
from typing import Any

import click

from medseq_tf.cli.prepare_commands import FOLDER
from medseq_tf.console import DebugCommand, import_tensorflow_quietly, say

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType):
    """Seconds, or with a unit: `30s`, `5m`, `1h`."""

    name = "DURATION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds of what was typed."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value).strip(), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is no duration, such as 30s, 5m or 1h", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


@click.command(cls=DebugCommand)
@click.argument("model")
@click.argument("url")
@click.option(
    "--query",
    metavar="KEY=VALUE,...",
    help="Which studies, as Modality=CT,StudyDate=20260101-; default: all.",
)
@click.option("--store", is_flag=True, help="Store results in the archive; has to be said.")
@click.option(
    "--every", type=Duration(), default=30.0, help="From one look to the next.  [default: 30s]"
)
@click.option(
    "--stable",
    type=Duration(),
    default=60.0,
    help="How long a study has not grown before it is answered.  [default: 60s]",
)
@click.option("--once", is_flag=True, help="Try every study that is there once, and end.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Of /health and /metrics on 127.0.0.1; 0: a free one, which the log tells.",
)
@click.option("--log", type=FOLDER, metavar="FILE", help="Lines of JSON; default: standard error.")
@click.option("--costs", type=FOLDER, help="As of predict.")
@click.option(
    "--insecure-tls", is_flag=True, help="Do not ask whether the archive is what it says it is."
)
def watch(**arguments: Any) -> None:
    """Answer the studies of a DICOM archive as they arrive; results are stored beside them.

    URL is the root of its DICOMweb services, such as https://pacs/dicom-web. A study is answered
    where the archive holds no report of this model on it, so it may be ended, and begun again, at
    any time, and run twice. SIGTERM or Ctrl-C ends it after the study in hand. Exit status 1: with
    --once, a study failed.
    """
    import_tensorflow_quietly()
    from medseq_tf.serving.watch import watch as run

    done = run(**arguments)
    say(done.text())
    if arguments["once"] and done.given_up:
        sys.exit(1)
