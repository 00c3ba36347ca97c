"""What a served model may be told of a study besides its slices: covariates, and their series.

A model that takes some has two signatures more, which take all of them: `with_covariates`,
`with_series` or `with_covariates_and_series`, and the same after `probability_`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medseq_tf.errors import InputError, did_you_mean, printable
from medseq_tf.readers.series import NO_SERIES, Series
from medseq_tf.serving.covariates import Values, covariate_vector
from medseq_tf.serving.description import Description

Told = Sequence[str | int | None]
"""The series of each slice, by its name or number; None: not known."""


def further_names(description: Description) -> tuple[str, ...]:
    """Return the inputs that a model takes besides slices and lengths; none of most models."""
    takes = {"covariates": description.covariates, "series": description.series_in_turn}
    return tuple(name for name, known in takes.items() if known)


def signature_with(names: Sequence[str], running: bool) -> str:
    """Return the name of the signature that takes further inputs, too."""
    return ("" if running else "probability_") + "with_" + "_and_".join(names)


def asked(
    describe: Callable[[], Description],
    slices: int,
    running: bool,
    covariates: Values | None,
    series: Told | None,
) -> tuple[str, dict[str, np.ndarray]]:
    """Return the signature that is asked about a study, and its further inputs, of one row.

    A model is only asked what it is where there is something to tell it besides slices.

    Args:
        describe: gives the model's description.
        slices: of the study.
        running: whether the probability after each slice is wanted, too.
        covariates: those that are known.
        series: of each slice; None: not known.

    Raises:
        InputError: the model takes none of these, or not such values.
    """
    if not covariates and series is None:
        return "serving_default" if running else "probability", {}
    description = describe()
    inputs = further_inputs(description, slices, covariates, series)
    return signature_with(further_names(description), running), inputs


def further_inputs(
    description: Description, slices: int, covariates: Values | None, series: Told | None
) -> dict[str, np.ndarray]:
    """Return a study's further inputs, of one row, as the signature that takes them has them.

    Args:
        description: of the model.
        slices: of the study.
        covariates: those that are known.
        series: of each slice; None: not known.

    Raises:
        InputError: the model takes none of these, or not such values.
    """
    values = {
        "covariates": covariate_vector(description.covariates or [], covariates or {}),
        "series": _numbers(description.series_in_turn, slices, series),
    }
    return {name: values[name][None] for name in further_names(description)}


def _numbers(known: Series | None, slices: int, told: Told | None) -> np.ndarray:
    """Return the number of each slice's series, int32 (slices,)."""
    if told is None:
        return np.full(slices, NO_SERIES, np.int32)
    if known is None:
        raise InputError("the model is told no series of slices; leave series out")
    if len(told) != slices:
        raise InputError(f"series has {len(told)} entries, the study {slices} slices")
    return np.array([_number(known.names, place, one) for place, one in enumerate(told)], np.int32)


def _number(names: Sequence[str], place: int, told: str | int | None) -> int:
    if told is None:
        return NO_SERIES
    if isinstance(told, str) and told in names:
        return names.index(told)
    is_number = isinstance(told, (int, np.integer)) and not isinstance(told, bool)
    if is_number and NO_SERIES <= int(told) < len(names):
        return int(told)
    near = did_you_mean(told, names) if isinstance(told, str) else ""
    raise InputError(
        f"series of slice {place} is none of {', '.join(map(printable, names))}{near}; None where "
        "it is not known"
    )
