"""The client of a served model: from a study's slices to its probabilities, without TensorFlow.

    http://host:8501/v1/models/NAME            REST, with nothing but the standard library
    http://host:8501/v1/models/NAME/versions/2
    grpc://host:8500/NAME                      where the package grpcio is installed

Slices are the bytes of JPEG or PNG files, in scan order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.serving.covariates import Values
from medseq_tf.serving.description import Description
from medseq_tf.serving.further_inputs import Told, asked
from medseq_tf.serving.over_rest import RestModel
from medseq_tf.serving.refusals import RequestRefused, ServingError, TransientError, other_version

SECONDS = 60.0
ATTEMPTS = 4
LARGEST_EXCESS = 1e-3
"""How far the probabilities of classes, written as a server may, add up to more or less than 1."""
FIRST_WAIT_SECONDS = 0.5
"""Before the second attempt; twice as long before each one after it."""

_Ask = Callable[[str, Mapping[str, Any], tuple[str, ...]], Mapping[str, Any]]
"""From a signature, its inputs and the names of the outputs wanted to these; or TransientError."""


@dataclasses.dataclass(frozen=True)
class StudyProbabilities:
    """What a model predicts of a study."""

    probability: np.ndarray
    """float32 (labels,), or (classes,)"""
    running: np.ndarray | None = None
    """float32 (T, labels): after each slice; None where it was not asked for"""

    def checked(self, slices: int, description: Description | None = None) -> StudyProbabilities:
        """Return them as they are, if they are probabilities of this study.

        Args:
            slices: of the study.
            description: of the model; None where that is not known.

        Raises:
            RequestRefused: a value is no number from 0 to 1, the shape is another, or those of
                classes do not add up to 1.
        """
        _check("probability", np.asarray(self.probability), description)
        if self.running is not None:
            _check("running_probability", np.asarray(self.running), description, slices)
            if self.running.shape[-1] != self.probability.shape[-1]:
                raise RequestRefused(
                    "the model's probability and running_probability differ in labels"
                )
        return self


def _check(
    name: str, values: np.ndarray, description: Description | None, slices: int | None = None
) -> None:
    dimensions = 1 if slices is None else 2
    labels = len(description.labels) if description else None
    if values.dtype.kind != "f" or values.ndim != dimensions or not values.size:
        problem = "no table of numbers of one study"
    elif labels is not None and values.shape[-1] != labels:
        problem = f"of {values.shape[-1]} labels, the model has {labels}"
    elif slices is not None and len(values) < slices:
        problem = f"of {len(values)} slices, the study has {slices}"
    else:
        values = values if slices is None else values[:slices]
        wrong = values[~((values >= 0) & (values <= 1))]  # NaN is neither
        sums = np.atleast_1d(values.sum(axis=-1))
        off = sums[abs(sums - 1) > LARGEST_EXCESS]
        if wrong.size:
            problem = f"{wrong.flat[0]:g}, which is no probability: a number from 0 to 1"
        elif off.size and description and description.classes:
            problem = f"{off[0]:g} over all classes, which exclude each other: it should be 1"
        else:
            return
    raise RequestRefused(f"the model's {name} is {problem}")


class ServingClient:
    """The client of one served model; may be shared by threads.

    What is transient (nobody listens yet, a connection that breaks, a time-out, a server that is
    overloaded or starting) is tried again, waiting ever longer; a request that the server refuses
    is not.

    Args:
        address: see the module.
        seconds: the longest that one attempt may take, from the first word to the last byte of the
            response, however slowly it drips; the look-up of the machine's name is the system's.
        attempts: in all.

    Raises:
        InputError: the address is none.
    """

    def __init__(self, address: str, seconds: float = SECONDS, attempts: int = ATTEMPTS):
        if seconds <= 0 or attempts < 1:
            raise InputError(f"seconds={seconds}, attempts={attempts}: more than 0 is needed")
        self.address = address
        self.seconds = seconds
        self.attempts = attempts
        self._description: Description | None = None
        self._ask = _served_model(address, seconds)

    def describe(self) -> Description:
        """Ask what the model is: its labels or classes, thresholds, how its slices are stored.

        Raises:
            ServingError: the server is away, or serves another kind of model.
        """
        outputs = self._call("describe", {"question": [b""]}, ("description",))
        try:
            (text,) = np.ravel(outputs["description"]).tolist()
            self._description = Description.from_json(text)
        except (KeyError, ValueError, TypeError):
            raise other_version(self.address) from None
        return self._description

    def predict(
        self,
        slices: Sequence[bytes],
        running: bool = False,
        covariates: Values | None = None,
        series: Told | None = None,
    ) -> StudyProbabilities:
        """Predict one study.

        Args:
            slices: the bytes of its JPEG or PNG files, in scan order.
            running: also ask for the probability after each slice.
            covariates: of those that the model reads, such as `{"age": 63, "sex": "F"}`; what is
                not among them is missing.
            series: of each slice, by its name or number in the description, of a model of series
                that follow one another, such as `["axial", "axial", "coronal"]`; without, it is
                not known of any slice.

        Raises:
            InputError: a covariate or series is none that the model reads, or may have.
            RequestRefused: the server refuses the study, or gives no probability; the message says
                why.
            ServingError: the server is away, or serves another kind of model.
        """
        slices = list(slices)
        if not slices:
            raise RequestRefused("the study has no slices")
        refuse_cmyk(slices)
        inputs = {"image_bytes": [slices], "lengths": np.array([len(slices)], np.int32)}
        signature, further = asked(
            lambda: self._description or self.describe(), len(slices), running, covariates, series
        )
        inputs |= further
        wanted = ("probability", "running_probability") if running else ("probability",)
        outputs = self._call(signature, inputs, wanted)
        if not all(name in outputs for name in wanted):
            raise other_version(self.address)
        try:
            values = [_of_one_study(outputs[name]) for name in wanted]
        except (ValueError, RecursionError, OverflowError):
            detail = " (the answer is no table of numbers of one study)"
            raise other_version(self.address, detail) from None
        probabilities = StudyProbabilities(values[0], values[1] if running else None)
        return probabilities.checked(len(slices), self._description)

    def _call(
        self, signature: str, inputs: Mapping[str, Any], outputs: tuple[str, ...]
    ) -> Mapping[str, Any]:
        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, self.attempts + 1):
            try:
                return self._ask(signature, inputs, outputs)
            except TransientError as error:
                if attempt == self.attempts:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise ServingError(f"{self.address}: {error} (tried {times})") from None
            time.sleep(wait)
            wait *= 2
        raise AssertionError("the loop returns or raises")


def refuse_cmyk(slices: Sequence[bytes]) -> None:
    """Raise RequestRefused for a JPEG of four colours, which the model would call damaged."""
    from medseq_tf.readers.pictures import UnreadablePicture, read_header

    for number, file in enumerate(slices):
        with contextlib.suppress(UnreadablePicture):  # of which the model says what is wrong
            if file.startswith(b"\xff\xd8") and read_header(file).is_cmyk:
                raise RequestRefused(f"a CMYK JPEG is not read (slice {number})")


def refuse_credentials(address: str) -> None:
    """Raise an InputError for a name or password in an address, without repeating them."""
    without = re.sub(r"(?<=://).*@|^[^/@]+:[^/@]+@", "", address, flags=re.DOTALL)
    if without != address:
        raise InputError(
            f"{without}: was given with a name or password before the @, which no request carries; "
            "leave them out"
        )


def _of_one_study(values: Any) -> np.ndarray:
    """Return the numbers that a server gives of one study; a ValueError for anything else."""
    if not isinstance(values, np.ndarray) and not _are_numbers(values):
        raise ValueError("not numbers alone")
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" or array.ndim < 2 or len(array) != 1:
        raise ValueError("not of one study")
    with np.errstate(over="ignore"):  # infinite, and refused for that
        return array[0].astype(np.float32)


def _are_numbers(values: Any) -> bool:
    """Whether nested lists hold numbers alone; true, false and null are none."""
    if isinstance(values, list):
        return all(map(_are_numbers, values))
    return isinstance(values, (int, float)) and not isinstance(values, bool)


def _served_model(address: str, seconds: float) -> _Ask:
    refuse_credentials(address)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    path = parts.path.strip("/")
    rest = re.fullmatch(r"v1/models/[^/:]+(/(versions/\d+|labels/[^/:]+))?", path)
    if parts.scheme in ("http", "https") and host and rest:
        return RestModel(address, parts.scheme, host, port, f"/{quote(path)}", seconds)
    if parts.scheme == "grpc" and host and port and re.fullmatch(r"[^/:]+", path):
        from medseq_tf.serving.over_grpc import GrpcModel

        return GrpcModel(address, f"{host}:{port}", path, seconds)
    raise InputError(
        f"{address}: is no address of a served model; right would be "
        "http://host:8501/v1/models/NAME or grpc://host:8500/NAME"
    )
