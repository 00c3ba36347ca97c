"""Figures and their intervals in words, for terminals, reports and notes."""

from __future__ import annotations

import numpy as np
import pandas as pd


def number(value: float | None, sign: str = "", decimals: int = 3, missing: str = "-") -> str:
    """Write a figure, such as `0.912`.

    Args:
        value: None or nan where there is none.
        sign: `+` to write the sign of a positive figure too.
        decimals: digits after the point.
        missing: what is written where there is no figure.
    """
    return missing if pd.isna(value) else f"{value:{sign}.{decimals}f}"


def interval(
    low: float | None,
    high: float | None,
    sign: str = "",
    decimals: int = 3,
    missing: str = "-",
) -> str:
    """Write an interval, such as `0.853 to 0.951`; an infinite bound is `no bound`.

    The other arguments are those of `number`; without an interval, None or nan, it is `missing`.
    """
    if low is None or high is None or np.isnan(low):
        return missing
    bounds = (
        number(bound, sign, decimals) if np.isfinite(bound) else "no bound" for bound in (low, high)
    )
    return " to ".join(bounds)


def with_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    sign: str = "",
    decimals: int = 3,
    missing: str = "-",
) -> str:
    """Write a figure and, if it has one, its interval: `0.912 (0.853 to 0.951)`."""
    words = number(value, sign, decimals, missing)
    return words if pd.isna(low) else f"{words} ({interval(low, high, sign, decimals)})"
