"""The experiment: everything about a training run that is not data.

How slices become an input, which slices of a study make a sequence, how they are varied, the model,
the loss, the optimizer, the patient-level split and the fit. It is plain data: no TensorFlow is
imported here.
"""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveInt, field_validator, model_validator

from medseq_tf.recipe.input import Augment, Input, Sequence
from medseq_tf.recipe.model import (
    ConvFSM,
    Handcrafted,
    Model,
    Pooling,
    Segmenter,
    Statistics,
    network_in,
)
from medseq_tf.recipe.settings import Settings
from medseq_tf.recipe.training import (
    PIXEL_LOSSES,
    PIXEL_MONITORS,
    Features,
    Fit,
    Loss,
    Optimizer,
    Split,
    SyntheticLesions,
)


class Requires(Settings):
    """What a recipe needs of the data set that it is trained on; null asks for nothing.

    A data set that is prepared otherwise is refused before a run begins; what it does not say of
    itself is only noted.
    """

    modality: list[Literal["photograph", "CT", "MR"]] | None = None
    """Any of these."""
    unit: str | None = None
    """Of the intensities: `grey level`, `HU` or `arbitrary`."""
    axis: Literal["axial", "coronal", "sagittal", 0, 1, 2] | None = None
    """How volumes are cut."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Side of the stored slices in pixels."""
    aspect: Literal["pad", "stretch"] | None = None
    masks: bool = False
    """Lesion masks, of some study at least."""
    labels: PositiveInt | None = None
    """How many yes/no labels there are; classes that exclude each other are none."""

    @field_validator("modality", mode="before")
    @classmethod
    def _one_or_several(cls, modality):
        return [modality] if isinstance(modality, str) else modality


class Chosen(Settings):
    """A choice that made the recipe what it is: by a search, or by hand on some cohort.

    It is no setting: it changes nothing of a training, but what may be said of its figures. A
    figure of patients on whom the recipe was chosen is too good.
    """

    by: str
    """Who chose: `search NAME`, or how it was done."""
    cohort: str
    """The patients on whom, in words."""
    score: str = ""
    """What the winner reached there, and among how many."""
    search: str = ""
    """The search's id."""
    fingerprint: str = ""
    """Of the data set that was searched."""
    trials: Annotated[int, Field(ge=0)] = 0
    """Finished ones."""
    patients: Annotated[str, Field(pattern=r"^([0-9a-f]{10}( [0-9a-f]{10})*)?$")] = ""
    """Those on whom candidates were scored, as short hashes of their salted ids and of the content
    of their studies."""


LATER_SETTINGS: dict[tuple[str, str], Any] = {
    ("fit", "threshold"): Fit().threshold,
    ("model", "initial_weights"): None,
    ("model", "ordered"): Model().ordered,
    ("model", "covariates"): [],
    ("split", "by"): Split().by,
    ("model", "series_mark"): False,
    ("fit", "solver"): Fit().solver,
    ("fit", "strength"): Fit().strength,
    ("fit", "seeds"): Fit().seeds,
    ("sequence.evaluation", "mirrored"): False,
}
"""Settings that recipes of version 0.1.0 do not have; at these values they tell none apart."""


class Experiment(Settings):
    """The whole recipe of a training run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)] = (
        "experiment"
    )
    description: Annotated[str, Field(max_length=20_000)] = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    requires: Requires = Requires()
    input: Input = Input()
    sequence: Sequence = Sequence()
    augment: Augment = Augment()
    model: Model = Model()
    pretraining: SyntheticLesions | None = None
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    split: Split = Split()
    fit: Fit = Fit()
    features: Features = Features()
    chosen: list[Chosen] = []
    """On whom the recipe was chosen, the last choice last."""

    @field_validator("requires", mode="before")
    @classmethod
    def _null_requires_nothing(cls, requires):
        return {} if requires is None else requires

    @property
    def uses_features(self) -> bool:
        """Whether training reads stored features, of what is never trained, instead of slices."""
        network = network_in(self.model.encoder)
        frozen = network is not None and network.frozen == "all"
        is_measured = isinstance(self.model.encoder, Handcrafted)
        return (frozen or is_measured) and self.features.use == "auto"

    @property
    def segments(self) -> bool:
        """Whether the model learns from lesion masks in place of labels."""
        return isinstance(self.model.encoder, Segmenter)

    @model_validator(mode="after")
    def _synthetic_lesions_are_found_on_a_map(self):
        if self.pretraining is None:
            return self
        if getattr(self.model.encoder, "pooling", None) != "lesion_map":
            raise ValueError("pretraining needs model.encoder.pooling=lesion_map (of conv_fsm)")
        if self.input.neighbours:
            raise ValueError("pretraining changes single slices: set input.neighbours=0")
        return self

    @model_validator(mode="after")
    def _segmenters_learn_from_masks(self):
        loss, aggregator, encoder = self.loss, self.model.aggregator.name, self.model.encoder
        if not isinstance(encoder, Segmenter):
            if loss.name in PIXEL_LOSSES or self.fit.monitor in PIXEL_MONITORS:
                what = f"loss.name={loss.name}" if loss.name in PIXEL_LOSSES else self.fit.monitor
                raise ValueError(f"{what} is for model.encoder.name=segmenter")
            return self
        if loss.name not in PIXEL_LOSSES:
            raise ValueError(
                f"a segmenter's loss is over pixels; set loss.name to one of "
                f"{', '.join(PIXEL_LOSSES)}, got {loss.name}"
            )
        if loss.weights != "none" or loss.label_smoothing:
            raise ValueError("a segmenter's loss has no loss.weights and no loss.label_smoothing")
        if aggregator not in ("sum", "max", "mean"):
            raise ValueError(
                f"a segmenter's areas are joined by model.aggregator sum, max or mean, got "
                f"{aggregator}"
            )
        if self.input.size % 16:
            raise ValueError(
                f"a segmenter halves slices four times: input.size has to be a multiple of 16, "
                f"got {self.input.size}"
            )
        if self.fit.seeds > 1:
            raise ValueError("pixels are of one segmenter: set fit.seeds=1")
        if encoder.network == "dunet" and self.input.channels != 5:
            raise ValueError(
                "dunet reads two slices before and one after each slice, of one window: set "
                "input.neighbours=2"
            )
        return self

    @model_validator(mode="after")
    def _input_fits_the_network(self):
        encoder = self.model.encoder
        as_they_are = (self.input.mean, self.input.std) == (0.0, 1.0)
        network = network_in(encoder)
        if (network or isinstance(encoder, Handcrafted)) and not as_they_are:
            raise ValueError(
                f"model.encoder {encoder.name} takes slices in [0, 1] as they are; set "
                f"input.mean=0 and input.std=1, got {self.input.mean} and {self.input.std}"
            )
        if network and self.input.channels not in (1, 3):
            raise ValueError(
                f"model.encoder {encoder.name} takes 1 or 3 channels, input.windows and "
                f"input.neighbours give {self.input.channels}"
            )
        return self

    @model_validator(mode="after")
    def _a_head_alone_is_solved(self):
        if self.fit.solver == "lbfgs":
            for setting, fits in self._needs_of_lbfgs().items():
                if not fits:
                    raise ValueError(f"fit.solver=lbfgs solves the head alone: {setting}")
        elif self.fit.strength != "auto":
            raise ValueError("fit.strength is for fit.solver=lbfgs")
        return self

    def _needs_of_lbfgs(self) -> dict[str, bool]:
        """Return what to set that `fit.solver=lbfgs` needs, and whether it is."""
        model, loss, shown = self.model, self.loss, self.sequence
        fixed = (Pooling, Statistics)
        return {
            "set an encoder in which nothing is trained, handcrafted, joined or keras_application "
            "with frozen=all, dense=[] and dropout=0": not getattr(model.encoder, "learns", True),
            "set model.aggregator.name to one without weights, such as statistics or mean": (
                isinstance(model.aggregator, fixed)
            ),
            "set model.head.units=[]": not model.head.units,
            "set model.head.dropout=0": not model.head.dropout,
            "set model.series_mark=false, whose marks are trained": not model.series_mark,
            "set loss.name=binary_cross_entropy": loss.name == "binary_cross_entropy",
            "set loss.label_smoothing=0": not loss.label_smoothing,
            "set augment to null, as every study is seen once": self.augment == Augment(),
            "set sequence.policy and sequence.evaluation.policy both to all or both to even, as a "
            "study is learned from as it is evaluated": (
                shown.policy == shown.evaluation.policy != "paper"
            ),
        }

    @model_validator(mode="after")
    def _fixed_length_where_weights_are_per_position(self):
        encoder, sequence = self.model.encoder, self.sequence
        if isinstance(encoder, ConvFSM) and encoder.weights == "per_position":
            longest = max(sequence.length, sequence.evaluation.length or 0)
            endless = sequence.evaluation.policy == "all" and not sequence.evaluation.length
            if longest > encoder.positions or endless:
                raise ValueError(
                    f"weights per position read at most model.encoder.positions = "
                    f"{encoder.positions} slices; sequence.length and sequence.evaluation have to "
                    "keep to that"
                )
        return self

    def to_yaml(self, identity: bool = False) -> str:
        """Return the recipe as YAML, every value written out, that `load` reads back equal.

        Args:
            identity: leave out what `LATER_SETTINGS` names, to tell recipes apart by the text.
        """
        values = self.model_dump(mode="json")
        if not self.chosen:
            del values["chosen"]
        for (group, name), default in LATER_SETTINGS.items():
            settings = functools.reduce(operator.getitem, group.split("."), values)
            if identity and settings[name] == default:
                del settings[name]
        return yaml.safe_dump(values, sort_keys=False, width=100)

    def identity(self) -> dict[str, Any]:
        """Return what decides a training, by dotted key, with the same result as in 0.1.0."""
        values = self.flat()
        for (group, name), default in LATER_SETTINGS.items():
            if values[f"{group}.{name}"] == default:
                del values[f"{group}.{name}"]
        return {key: value for key, value in values.items() if key not in ("name", "description")}

    def flat(self) -> dict[str, Any]:
        """Return every setting by its dotted key, such as `model.aggregator.units`.

        Where the recipe comes from (`chosen`) is no setting.
        """
        flat: dict[str, Any] = {}

        def walk(prefix: str, value: Any) -> None:
            if isinstance(value, dict):
                for key, inner in value.items():
                    walk(f"{prefix}.{key}" if prefix else key, inner)
            else:
                flat[prefix] = value

        walk("", self.model_dump(mode="json", exclude={"chosen"}))
        return flat
