"""The graph of trained models that is served: from encoded slices to probabilities."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from medseq_tf.evaluation.explain.graphs import ModelGraphs
from medseq_tf.input.model_input import pad
from medseq_tf.readers.series import NO_SERIES
from medseq_tf.runs.run import Run, RunOrPath
from medseq_tf.serving.description import MOST_SLICES, Description
from medseq_tf.serving.encoded_slices import require
from medseq_tf.serving.further_inputs import further_names, signature_with
from medseq_tf.serving.member_group import (
    Encoded,
    MemberGroup,
    ServedMember,
    Studies,
    groups_of,
    variables_of,
    weighted_mean,
)


class ServingModel(tf.Module):
    """An exported model's signatures; dimension 0 is the study everywhere.

    Args:
        members: whose probabilities, weighted and added up, it gives.
        description: what the model says of itself, and how prepared slices are stored.

    Attributes:
        serving_default: `image_bytes` string (B, T), `lengths` int32 (B,) to `probability` float32
            (B, labels), `running_probability` float32 (B, T, labels). Those of classes add up to 1.
        serve_tensors: `slices` float32 (B, T, H, W, C), the model's own input, and `lengths` to the
            same; not there where the members have not all the same input.
        probability: as `serving_default`, without the running probability, and quicker.
        further: the names of the inputs that it takes besides these, of `covariates`, float32
            (B, D) as its description lists them, NaN where one is missing (without, all of them
            are), and `series`, int32 (B, T), the number of each slice's series, -1 where it is not
            known (without, it is not of any).
        with_covariates: `serving_default` with all of them, called as `signature_with` says; not
            there where there are none.
        probability_with_covariates: the same of `probability`.
        lesion_map: of segmenters alone, and not of series that follow one another: as `probability`
            to `lesion_map` float32 (B, T, size, size), the probability that a pixel of a slice as
            it is stored is lesion; 0 after a study's length.
        without_each: takes all inputs that there are, to `probability` and `probability_without`
            float32 (B, T, labels), that of the studies without each of their slices, each encoded
            once; not there where a slice is encoded by its place.
        describe: `question` string (B,), whatever it holds, to `description` string (B,): JSON.
    """

    def __init__(self, members: Sequence[ServedMember], description: Description):
        super().__init__(name="medseq_tf")
        groups = groups_of(members, description)
        functions = _Signatures(groups, description)
        lengths = tf.TensorSpec((None,), tf.int32, "lengths")
        image_bytes = tf.TensorSpec((None, None), tf.string, "image_bytes")
        question = tf.TensorSpec((None,), tf.string, "question")
        self.weights = variables_of(groups)
        self.serving_default = _compiled(functions.running_of(()), image_bytes, lengths)
        self.probability = _compiled(functions.whole_of(()), image_bytes, lengths)
        self.describe = _compiled(functions.describe, question)
        self._names = ["serving_default", "probability", "describe"]
        first = groups[0].recipe.input
        if all(group.recipe.input == first for group in groups):
            slice_shape = first.slice_shape(description.channels)
            slices = tf.TensorSpec((None, None, *slice_shape), tf.float32, "slices")
            self.serve_tensors = _compiled(functions.from_tensors, slices, lengths)
            self._names.append("serve_tensors")
        if all(group.segments for group in groups) and not description.series_in_turn:
            self.lesion_map = _compiled(functions.lesion_map, image_bytes, lengths)
            self._names.append("lesion_map")
        self.further = further_names(description)
        inputs: tuple[tf.TensorSpec, ...] = (image_bytes, lengths)
        if self.further:
            known = {
                "covariates": tf.TensorSpec(
                    (None, len(description.covariates or ())), tf.float32, "covariates"
                ),
                "series": tf.TensorSpec((None, None), tf.int32, "series"),
            }
            inputs += tuple(known[name] for name in self.further)
            for running, answer in ((True, functions.running_of), (False, functions.whole_of)):
                ask = _compiled(answer(self.further), *inputs)
                setattr(self, signature_with(self.further, running), ask)
                self._names.append(signature_with(self.further, running))
        if not any(group.by_position for group in groups):
            self.without_each = _compiled(functions.without_each_of(self.further), *inputs)
            self._names.append("without_each")

    @property
    def signatures(self) -> dict[str, Any]:
        """The signatures by name."""
        return {name: getattr(self, name) for name in self._names}


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A finished run in memory.

    Attributes:
        run: its folder.
        members: what it predicts with.
        description: what an export of it says of itself.
    """

    run: Run
    members: list[ServedMember]
    description: Description

    @classmethod
    def open(
        cls,
        run: RunOrPath,
        most_slices: int = MOST_SLICES,
        costs: str | os.PathLike | None = None,
    ) -> LoadedRun:
        """Load the models of a run; an InputError if it is none, has none, or is not finished.

        Classes are called by a table of `costs`, where there is one.
        """
        opened = Run.open(run)
        opened.require_finished()
        members = [
            ServedMember(member.model(), member.experiment, weight)
            for member, weight in opened.require_members()
        ]
        description = Description.of_run(opened, most_slices)
        if costs is not None:
            description = description.with_costs(costs)
        return cls(opened, members, description)

    @functools.cached_property
    def graphs(self) -> list[ModelGraphs]:
        """Each member's model as graphs, whose gradients say what it looks at."""
        return [ModelGraphs(member.model, member.recipe) for member in self.members]

    def serving_model(self) -> ServingModel:
        """Build the graph."""
        return ServingModel(self.members, self.description)


def _compiled(function: Callable, *specification: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=specification, autograph=False)


def _finite(**probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return probabilities (B, ...) as they are; with one that is no number, an error instead."""
    by_output = [
        tf.reduce_all(tf.math.is_finite(values), axis=tuple(range(1, len(values.shape))))
        for values in probabilities.values()
    ]
    is_finite = tf.reduce_all(tf.stack(by_output), axis=0)
    first = tf.argmin(tf.cast(is_finite, tf.int32), output_type=tf.int32)
    message = ("the model's probability of study ", first, " is no number")
    with tf.control_dependencies([require(tf.reduce_all(is_finite), *message)]):
        return {name: tf.identity(values) for name, values in probabilities.items()}


_Answer: TypeAlias = Callable[[list[Encoded], tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
"""From what each group reads of studies, their lengths (B,) and T to what is answered."""


class _Signatures:
    """The functions behind the signatures."""

    def __init__(self, groups: Sequence[MemberGroup], description: Description):
        self.groups = groups
        self.description = description

    def describe(self, question: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the description, once for each question (B,)."""
        return {"description": tf.fill(tf.shape(question), self.description.to_json())}

    def from_tensors(self, slices: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """Predict from the models' own input (B, T, H, W, C)."""
        checks = self._checks(slices, lengths, "slices")
        with tf.control_dependencies(checks):
            width = tf.shape(slices)[1]
            is_slice = tf.sequence_mask(lengths, width)[:, :, None, None, None]
        slices = tf.where(is_slice, slices, 0.0)
        is_finite = tf.reduce_all(tf.math.is_finite(slices))
        with tf.control_dependencies([require(is_finite, "slices hold values that are no number")]):
            slices = tf.identity(slices)
        encoded = [group.of_tensors(slices, lengths) for group in self.groups]
        return self._running(encoded, lengths, width)

    def lesion_map(self, image_bytes: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return where segmenters see a lesion in files (B, T)."""
        studies = self._checked(Studies(image_bytes, lengths))
        maps = self._mean([group.lesion_map(studies) for group in self.groups])
        return _finite(lesion_map=pad(maps, studies.lengths, tf.shape(image_bytes)[1]))

    def running_of(self, further: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        """Return what predicts from files (B, T), after each slice.

        It takes `further` inputs besides, in this order.
        """
        return self._asked(self._running, further)

    def whole_of(self, further: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        """Return what predicts from files (B, T) and `further` inputs."""
        return self._asked(self._whole, further)

    def without_each_of(self, further: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        """Return what predicts from files (B, T) and `further` inputs, and without each file."""
        return self._asked(self._without_each, further)

    def _asked(
        self, answer: _Answer, further: tuple[str, ...]
    ) -> Callable[..., dict[str, tf.Tensor]]:
        """Return the function of files, lengths and further inputs, whose arguments name them."""

        def ask(*values: tf.Tensor, **further: tf.Tensor) -> dict[str, tf.Tensor]:
            studies = self._checked(Studies(*values, **further))
            encoded = [group.of_files(studies) for group in self.groups]
            return answer(encoded, studies.lengths, tf.shape(studies.image_bytes)[1])

        def plain(image_bytes: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
            return ask(image_bytes, lengths)

        def with_covariates(
            image_bytes: tf.Tensor, lengths: tf.Tensor, covariates: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            return ask(image_bytes, lengths, covariates)

        def with_series(
            image_bytes: tf.Tensor, lengths: tf.Tensor, series: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            return ask(image_bytes, lengths, series=series)

        def with_both(
            image_bytes: tf.Tensor, lengths: tf.Tensor, covariates: tf.Tensor, series: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            return ask(image_bytes, lengths, covariates, series)

        by_inputs: dict[tuple[str, ...], Callable[..., dict[str, tf.Tensor]]] = {
            (): plain,
            ("covariates",): with_covariates,
            ("series",): with_series,
            ("covariates", "series"): with_both,
        }
        return by_inputs[further]

    def _whole(
        self, encoded: list[Encoded], lengths: tf.Tensor, width: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        of_groups = zip(self.groups, encoded, strict=True)
        return _finite(
            probability=self._mean([group.whole(of, lengths) for group, of in of_groups])
        )

    def _without_each(
        self, encoded: list[Encoded], lengths: tf.Tensor, width: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        of_groups = zip(self.groups, encoded, strict=True)
        without = [group.without_each(of, lengths, width) for group, of in of_groups]
        whole = self._whole(encoded, lengths, width)["probability"]
        return _finite(probability=whole, probability_without=self._mean(without))

    def _running(
        self, encoded: list[Encoded], lengths: tf.Tensor, width: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        of_groups = zip(self.groups, encoded, strict=True)
        running = self._mean([group.running(of, lengths, width) for group, of in of_groups])
        whole = tf.gather(running, lengths - 1, axis=1, batch_dims=1)
        return _finite(probability=whole, running_probability=running)

    def _mean(self, of_groups: list[tf.Tensor]) -> tf.Tensor:
        return weighted_mean(of_groups, [group.weight for group in self.groups])

    def _checked(self, studies: Studies) -> Studies:
        """Return studies as they are; stop the graph at a request that cannot be predicted."""
        image_bytes, lengths, covariates, series = studies
        if covariates is not None:
            covariates = self._checked_covariates(covariates, tf.size(lengths))
        with tf.control_dependencies(self._checks(image_bytes, lengths, "image_bytes")):
            lengths = tf.identity(lengths)
        if series is not None:
            series = self._checked_series(series, lengths, tf.shape(image_bytes)[1])
        return Studies(image_bytes, lengths, covariates, series)

    def _checked_series(self, series: tf.Tensor, lengths: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        """Return series (B, T) as they are; stop the graph at one that can be none."""
        shape, wanted = tf.shape(series), tf.stack([tf.size(lengths), width])
        words = ["series holds ", shape[0], " x ", shape[1], " numbers, image_bytes "]
        words += [wanted[0], " x ", wanted[1], " slices"]
        with tf.control_dependencies([require(tf.reduce_all(shape == wanted), *words)]):
            series = tf.identity(series)
        known = self.description.series_in_turn
        count = len(known.names) if known else 0
        is_known = (series >= NO_SERIES) & (series < count)
        wrong = tf.cast(~is_known & tf.sequence_mask(lengths, width), tf.int32)
        study = tf.argmax(tf.reduce_max(wrong, axis=1), output_type=tf.int32)
        place = tf.argmax(wrong[study], output_type=tf.int32)
        may_be = f"no number from 0 to {count - 1}, nor {NO_SERIES}, which says that it is unknown"
        message = ("series[", study, ", ", place, f"] is {may_be}")
        with tf.control_dependencies([require(tf.reduce_sum(wrong) == 0, *message)]):
            return tf.identity(series)

    def _checked_covariates(self, covariates: tf.Tensor, studies: tf.Tensor) -> tf.Tensor:
        """Return covariates (B, D) as they are; stop the graph at one that can be none."""
        rows = tf.shape(covariates)[0]
        words = ("lengths has ", studies, " values, covariates has ", rows, " rows")
        with tf.control_dependencies([require(tf.equal(rows, studies), *words)]):
            covariates = tf.identity(covariates)
        known = self.description.covariates or []
        count = np.array([len(c.get("categories", ())) for c in known], np.float32)
        may_be = [f"a whole number from 0 to {n - 1:.0f}" if n else "a number" for n in count]
        is_place = (covariates == tf.floor(covariates)) & (covariates >= 0) & (covariates < count)
        is_value = tf.where(count > 0, is_place, tf.math.is_finite(covariates))
        is_wrong = tf.cast(~(is_value | tf.math.is_nan(covariates)), tf.int32)
        study = tf.argmax(tf.reduce_max(is_wrong, axis=1), output_type=tf.int32)
        place = tf.argmax(is_wrong[study], output_type=tf.int32)
        wanted = (tf.gather(may_be, place), " nor NaN, which says that it is missing")
        message = ("covariates[", study, ", ", place, "] is neither ", *wanted)
        with tf.control_dependencies([require(tf.reduce_sum(is_wrong) == 0, *message)]):
            return tf.identity(covariates)

    def _checks(self, values: tf.Tensor, lengths: tf.Tensor, name: str) -> list[tf.Operation]:
        """Return what stops the graph, with words, at a request that cannot be predicted."""
        batch, width = tf.shape(values)[0], tf.shape(values)[1]
        count = tf.size(lengths)
        longest = tf.argmax(tf.concat([lengths, [0]], 0), output_type=tf.int32)
        shortest = tf.argmin(tf.concat([lengths, [tf.int32.max]], 0), output_type=tf.int32)
        most = tf.reduce_max(tf.concat([lengths, [0]], 0))
        limit = self.description.most_slices
        longest_is = ("lengths[", longest, "] = ", most)
        words = ("lengths has ", count, f" values, {name} has ", batch, " studies")
        one_each = require(tf.equal(batch, count), *words)
        with tf.control_dependencies([one_each]):
            return [
                require(batch > 0, "the request holds no study"),
                require(
                    tf.reduce_all(lengths > 0),
                    *("lengths[", shortest, "] is below 1; every study has a slice or more"),
                ),
                require(
                    most <= width, *longest_is, f", but {name} holds ", width, " slices a study"
                ),
                require(
                    most <= limit, *longest_is, f"; at most {limit} slices of a study are read"
                ),
            ]
