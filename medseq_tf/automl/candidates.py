"""The candidates for a cohort: which recipes are tried on it, at which settings, and why.

What is decided here is decided by the cohort's fingerprint alone, before any candidate has
predicted anything; the order of the candidates is that from the simplest to the most complex.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from medseq_tf import recipe as recipes
from medseq_tf.automl.fingerprint import Fingerprint
from medseq_tf.recipe import Experiment, Settings

CT_WINDOWS = [[40.0, 80.0], [80.0, 200.0], [40.0, 380.0]]
"""Of CT in HU, (centre, width): brain, blood beside the skull, soft tissue."""
FEW, MANY = 150, 600
"""Patients below and above which networks are trained otherwise."""
NETWORK = "EfficientNetLite0"
DEPTHS = {"middle": "block4c", "last": "average"}
"""Outputs of the frozen network that are candidates of their own."""


class Candidate(Settings):
    """A recipe that is compared with others.

    Attributes:
        name: what it is called in the run.
        kind: `linear`: nothing but a regression is fitted, so it always finishes; `network`: it is
            trained as time allows.
        role: `reference`: competes with nothing, others are only held against it; `baseline`: what
            a network has to be ahead of; `candidate`.
        recipe: a preset's name, or a YAML file.
        overrides: of the recipe, by dotted keys.
        complexity: of two that are as good, the one with less is taken.
        reason: why it is tried, and at these settings.
        repeats: of the folds in which a network is trained.
        minutes: what a network may cost; None: no limit of its own.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=60)]
    kind: Literal["linear", "network"]
    role: Literal["reference", "baseline", "candidate"] = "candidate"
    recipe: str
    overrides: dict[str, Any] = {}
    complexity: Annotated[int, Field(ge=0)]
    reason: str
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    minutes: Annotated[float, Field(gt=0)] | None = None

    def experiment(self) -> Experiment:
        """Return the recipe with its overrides, called by the candidate's name.

        Raises:
            InputError: one line that names the setting that is wrong.
        """
        overrides = [f"{key}={_flow(value)}" for key, value in self.overrides.items()]
        return recipes.load(self.recipe, [*overrides, f"name={self.name}"])


def _flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def candidates_for(
    cohort: Fingerprint, seed: int, minutes: float, has_weights: bool
) -> list[Candidate]:
    """Return the candidates for a cohort, the simplest first.

    Args:
        cohort: its fingerprint.
        seed: of the networks.
        minutes: that all networks may take together.
        has_weights: whether the weights of the frozen network are there.
    """
    made = [*_linear(cohort, has_weights), *_networks(cohort, has_weights)]
    networks = sum(candidate.kind == "network" for candidate in made)
    return [
        candidate.model_copy(
            update={"complexity": number}
            | (
                {
                    "minutes": round(minutes / networks, 1),
                    "overrides": {**candidate.overrides, "seed": seed},
                }
                if candidate.kind == "network"
                else {}
            )
        )
        for number, candidate in enumerate(made)
    ]


def _linear(cohort: Fingerprint, has_weights: bool) -> Iterator[Candidate]:
    shown = _shown(cohort)
    yield Candidate(
        name="acquisition",
        kind="linear",
        role="reference",
        recipe="acquisition",
        overrides=shown,
        complexity=0,
        reason="what a scanner leaves in the pictures: if nothing is ahead of it, confounding is "
        "not excluded",
    )
    yield Candidate(
        name="handcrafted",
        kind="linear",
        role="baseline",
        recipe="handcrafted",
        overrides=shown,
        complexity=0,
        reason="histogram, asymmetry, texture and shape of the slices and a regression",
    )
    if has_weights and _fits_three_channels(cohort):
        for depth, output in DEPTHS.items():
            yield Candidate(
                name=f"frozen_{depth}",
                kind="linear",
                role="baseline",
                recipe="frozen_linear",
                overrides={**shown, "model.encoder.output": output},
                complexity=0,
                reason=f"features of a network trained on photographs, its {depth} layers, and a "
                "regression",
            )


def _networks(cohort: Fingerprint, has_weights: bool) -> Iterator[Candidate]:
    if has_weights and _fits_three_channels(cohort):
        yield _sequence_on_frozen(cohort)
    if cohort.masks and cohort.outputs == "labels" and len(cohort.kinds) == 2:
        yield _segmenter(cohort)
    elif cohort.volumes and cohort.median_slices >= 16:
        yield _cnn_3d(cohort)
    yield _end_to_end(cohort)


def _sequence_on_frozen(cohort: Fingerprint) -> Candidate:
    few = cohort.patients < FEW
    return Candidate(
        name="frozen_attention",
        kind="network",
        recipe="frozen_linear",
        overrides={
            **_shown(cohort),
            "model.encoder.output": DEPTHS["middle"],
            "model.aggregator.name": "attention",
            "model.aggregator.units": 32 if few else 64,
            "model.aggregator.dropout": 0.25,
            "fit.solver": "gradient",
            "fit.epochs": 40 if few else 30,
            "fit.batch_size": 8 if few else 16,
            "fit.monitor": "loss",
            "fit.patience": 8,
            "optimizer.learning_rate": 1e-3,
        },
        complexity=0,
        reason="a learned weighted mean of the slices' frozen features",
    )


def _segmenter(cohort: Fingerprint) -> Candidate:
    return Candidate(
        name="segmenter",
        kind="network",
        recipe="unet",
        overrides={
            **_shown(cohort),
            "input.size": min(96, cohort.size // 16 * 16),
            "model.encoder.width": 8,
            "fit.epochs": 30,
            "fit.patience": 8,
        },
        complexity=0,
        reason="there are lesion masks to learn from",
    )


def _cnn_3d(cohort: Fingerprint) -> Candidate:
    return Candidate(
        name="cnn_3d",
        kind="network",
        recipe="cnn_3d",
        overrides={**_shown(cohort), **_small(cohort)},
        complexity=0,
        reason="the studies are whole volumes",
    )


def _end_to_end(cohort: Fingerprint) -> Candidate:
    length = min(max(cohort.median_slices, 4), 24)
    return Candidate(
        name="fsm_bilstm",
        kind="network",
        recipe="fsm_bilstm",
        overrides={
            **_shown(cohort),
            **_small(cohort),
            "sequence.length": length,
            "sequence.evaluation.length": length,
            "sequence.per_study": _draws(cohort),
        },
        complexity=0,
        reason="convolutions and a Bi-LSTM, trained on the cohort alone",
    )


# ----------------------------------------------------------------------- settings by fingerprint


def _shown(cohort: Fingerprint) -> dict[str, Any]:
    """Return how slices of a unit become an input, and what else a study is."""
    settings: dict[str, Any] = {}
    if cohort.unit == "HU" and cohort.channels == 1:
        settings["input.windows"] = CT_WINDOWS
    return settings


def _small(cohort: Fingerprint) -> dict[str, Any]:
    """Return settings of a network that is trained from nothing, for few patients or many."""
    return {
        "input.size": min(64, cohort.size),
        "fit.epochs": 30 if cohort.patients < MANY else 20,
        "fit.batch_size": 8 if cohort.patients < FEW else 16,
        "fit.monitor": "loss",
        "fit.patience": 8,
    }


def _draws(cohort: Fingerprint) -> int:
    """Return how many sequences of a study are drawn an epoch: some 600 in all."""
    return max(1, min(4, round(600 / cohort.patients)))


def _fits_three_channels(cohort: Fingerprint) -> bool:
    """Whether slices can be shown to a network of three channels."""
    return cohort.channels in (1, 3)
