"""The parts of every group of settings: its base, numbers with bounds, the choice by a name."""

from __future__ import annotations

from typing import Annotated, Any, Union, get_args

import pydantic
from pydantic import Discriminator, Field, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

# No recipe needs more than these; what is far above is a slip of the finger, which would otherwise
# end in the loss of all memory, or never.
Units = Annotated[int, Field(gt=0, le=8192)]
"""Of a layer, as filters of a convolution: twice the widest of `keras.applications`."""
Count = Annotated[int, Field(gt=0, le=1000)]
"""Draws, views and layers' parts of which each costs time or memory of its own."""
Slices = Annotated[int, Field(gt=0, le=4096)]
"""Of a study: whole-body scans have some 2000."""
Layers = Annotated[int, Field(gt=0, le=64)]
Kernel = Annotated[int, Field(gt=0, le=64)]
Padding = Annotated[int, Field(ge=0, le=64)]
Batch = Annotated[int, Field(gt=0, le=65_536)]
Epochs = Annotated[int, Field(gt=0, le=100_000)]
Stages = Field(max_length=16)
"""Layers in a row that are listed one by one."""


class Settings(pydantic.BaseModel):
    """A frozen group of settings: unknown keys are errors, defaults are validated too."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


def ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return bounds whose lower one is not above the upper one."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


def distinct(values: list[str]) -> list[str]:
    """Return values of which none is there twice."""
    if len(set(values)) < len(values):
        raise ValueError("names one twice")
    return values


Range = Annotated[tuple[float, float], pydantic.AfterValidator(ordered)]


class PickedByName:
    """Marks a union of settings: their `name` picks one of them; without a name it is the first."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Build the schema of a union that is told apart by names, as pydantic asks for it."""
        groups = settings_in(source)
        tags = {
            name: choices(group, "name")[0] for group in groups for name in choices(group, "name")
        }
        first = next(iter(tags))

        def tag(value: Any) -> str | None:
            has_keys = isinstance(value, dict)
            name = value.get("name", first) if has_keys else getattr(value, "name", first)
            return tags.get(name) if isinstance(name, str) else None

        by_name = Discriminator(
            tag,
            custom_error_type="unknown_kind",
            custom_error_message=f"should be one of {', '.join(tags)}",
        )
        tagged = tuple(Annotated[group, Tag(choices(group, "name")[0])] for group in groups)
        return handler.generate_schema(Annotated[Union[tagged], by_name])  # noqa: UP007


def settings_in(annotation: Any) -> list[type[Settings]]:
    """Return the groups of settings that a field's annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [group for inner in get_args(annotation) for group in settings_in(inner)]


def choices(group: type[Settings], key: str) -> tuple[str, ...]:
    """Return the values that a key may have, where they are listed one by one."""
    return get_args(group.model_fields[key].annotation)
