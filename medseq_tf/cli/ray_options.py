"""The options of commands whose work may be spread over a Ray cluster."""

from __future__ import annotations

from typing import Any

import click

RAY = click.option(
    "--ray",
    metavar="ADDRESS",
    help="Spread the work over a Ray cluster: HOST:PORT, auto (RAY_ADDRESS, or the cluster that "
    "runs here) or local (one for this command).",
)


def cpus_per(piece: str) -> Any:
    """Return the option of how many CPUs a `piece` (task, trial) takes on Ray."""
    return click.option(
        f"--cpus-per-{piece}",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        show_default=True,
        help="On Ray.",
    )


def gpus_per(piece: str) -> Any:
    """Return the same of GPUs."""
    return click.option(
        f"--gpus-per-{piece}",
        type=click.FloatRange(0),
        default=0.0,
        show_default=True,
        help="On Ray; a fraction shares one.",
    )
