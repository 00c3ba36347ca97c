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
CT_RANGE = 100.0
"""HU; where intensities span less, it is no usual CT, and they are shown whole."""
WHITE = 255.0
"""The brightest of 8-bit slices; darker shapes, such as masks of 0 and 1, are brought up to it."""
FEW, MANY = 150, 600
"""Patients below and above which networks are trained otherwise."""
NETWORK = "EfficientNetLite0"
DEPTHS = ["stage_4", "stage_5"]
"""Of the frozen network: its middle layers, which tell more of such pictures than its last."""
SILHOUETTES = ["silhouette"]
"""Of the hand-made features, those of binary slices: intensities and texture tell nothing there."""
MEASURED, FROZEN, SMALL_FROZEN, TRAINED = 128, 160, 96, 64
"""Sides in pixels of what is measured by formulas, shown to the frozen network (the second where
slices are stored smaller than the first), and learned from nothing."""
LEAST_HEALTHY = 10
"""Studies without any finding, into which synthetic lesions are put."""
MOST_SLICES = 64
"""Of a study, for what reads them all; more are thinned evenly."""
SLICES_A_SECOND = 20
"""That the frozen network reads, about, on a small machine: what plans are made for."""
ENCODING_SHARE, NETWORKS_SHARE = 0.2, 0.7
"""Of the minutes, for the frozen network's features, and for networks that are trained."""


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
        repeats: of the folds in which a network is trained, at most, as time allows.
        minutes: that a network may take, more where others before it took less; None: all that
            is left.
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
        minutes: of the whole command.
        has_weights: whether the weights of the frozen network are there.
    """
    frozen = _frozen(cohort, minutes) if has_weights else None
    made = [*_linear(cohort, frozen), *_networks(cohort, frozen)]
    share = round(minutes * NETWORKS_SHARE / max(1, sum(c.kind == "network" for c in made)), 1)
    return [
        candidate.model_copy(update={"complexity": number, **_of_network(candidate, seed, share)})
        for number, candidate in enumerate(made)
    ]


def _of_network(candidate: Candidate, seed: int, share: float) -> dict[str, Any]:
    """Return what a network has besides: its share of the minutes, and the seed."""
    if candidate.kind != "network":
        return {}
    return {"minutes": max(share, 0.1), "overrides": {**candidate.overrides, "seed": seed}}


def _linear(cohort: Fingerprint, frozen: dict[str, Any] | None) -> Iterator[Candidate]:
    """Yield what is fitted by a regression alone; `frozen`: settings of a frozen network."""
    ordered = {"model.ordered": "softmax"} if cohort.outputs == "ordered" else {}
    measured = {
        **_shown(cohort),
        **_all_slices(cohort, MOST_SLICES),
        "input.size": min(MEASURED, max(16, cohort.size)),
        **ordered,
    }
    linear: dict[str, Any] = {"kind": "linear", "complexity": 0}
    yield Candidate(
        name="acquisition",
        role="reference",
        recipe="acquisition",
        overrides=measured,
        reason="corners, borders, brightness and number of slices: if nothing is ahead of what a "
        "scanner leaves, confounding is not excluded",
        **linear,
    )
    yield Candidate(
        name="histogram",
        role="baseline",
        recipe="handcrafted",
        overrides={
            **measured,
            "model.encoder.features": ["histogram"],
            "model.aggregator.of": ["mean", "std"],
        },
        reason="how bright is what is inside the outline: few numbers, for few patients",
        **linear,
    )
    groups = {"model.encoder.features": SILHOUETTES} if cohort.binary else {}
    yield Candidate(
        name="handcrafted",
        role="baseline",
        recipe="handcrafted",
        overrides={**measured, **groups},
        reason="area, place, outline and thickness of every slice's silhouette"
        if cohort.binary
        else "histogram, asymmetry, texture and shape of every slice",
        **linear,
    )
    if frozen is None:
        return
    shown = {**frozen, **ordered}
    yield Candidate(
        name="frozen_linear",
        role="baseline",
        recipe="frozen_linear",
        overrides={**shown, "model.encoder.output": DEPTHS},
        reason=f"the middle layers of {NETWORK}, trained on photographs",
        **linear,
    )
    joined: dict[str, Any] = {"model.encoder.keras_application.output": DEPTHS}
    if cohort.binary:
        joined["model.encoder.handcrafted.features"] = SILHOUETTES
    yield Candidate(
        name="joined_linear",
        role="baseline",
        recipe="joined_linear",
        overrides={**shown, **joined},
        reason="both in one vector: formulas tell what the network has never seen",
        **linear,
    )


def _networks(cohort: Fingerprint, frozen: dict[str, Any] | None) -> Iterator[Candidate]:
    """Yield what is trained, epoch by epoch; `frozen`: settings of a frozen network."""
    if frozen is not None:
        yield _attention(cohort, frozen)
    if cohort.masks and cohort.outputs == "labels" and len(cohort.kinds) == 2:
        yield _segmenter(cohort)
    elif cohort.volumes and cohort.median_slices >= 8:
        yield _cnn_3d(cohort)
    yield _pretrained(cohort) if _can_be_pretrained(cohort) else _end_to_end(cohort)


def _attention(cohort: Fingerprint, frozen: dict[str, Any]) -> Candidate:
    few = cohort.patients < FEW
    return Candidate(
        name="frozen_attention",
        kind="network",
        recipe="frozen_linear",
        overrides={
            **frozen,
            "model.encoder.output": DEPTHS,
            "model.aggregator.name": "attention",
            "model.aggregator.units": 32 if few else 64,
            "model.aggregator.dropout": 0.25,
            "fit.solver": "gradient",
            "fit.epochs": 40,
            "fit.batch_size": 8 if few else 16,
            "fit.monitor": "loss",
            "fit.patience": 8,
            "optimizer.learning_rate": 1e-3,
        },
        complexity=0,
        reason="a learned weighted mean of the same frozen features of the slices",
    )


def _segmenter(cohort: Fingerprint) -> Candidate:
    return Candidate(
        name="segmenter",
        kind="network",
        recipe="unet",
        overrides={
            **_shown(cohort),
            "input.size": max(16, min(96, cohort.size // 16 * 16)),
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
        overrides={**_shown(cohort), **_trained(cohort)},
        complexity=0,
        reason="the studies are whole volumes",
    )


def _can_be_pretrained(cohort: Fingerprint) -> bool:
    """Whether synthetic lesions can teach a network: in the heads of a few healthy patients."""
    is_head = cohort.inside is not None and cohort.unit == "grey level" and cohort.channels == 1
    is_few = cohort.patients < FEW and cohort.healthy >= LEAST_HEALTHY
    return is_head and is_few and not cohort.series and cohort.size >= TRAINED


def _pretrained(cohort: Fingerprint) -> Candidate:
    centre, spread = (255 * value for value in cohort.inside or (0.5, 0.3))
    return Candidate(
        name="fsm_bilstm_ct",
        kind="network",
        recipe="fsm_bilstm_ct",
        overrides={"input.grey_window": [round(centre), round(max(2 * spread, 60.0))]},
        complexity=0,
        reason="an encoder that has learned to find synthetic lesions in the healthy heads, and a "
        "small Bi-LSTM: few patients",
    )


def _end_to_end(cohort: Fingerprint) -> Candidate:
    length = min(max(cohort.median_slices, 8), 24)
    small = cohort.size < TRAINED or cohort.binary
    return Candidate(
        name="fsm_bilstm",
        kind="network",
        recipe="fsm_bilstm",
        overrides={
            **_shown(cohort),
            **_trained(cohort),
            **({"model.series_mark": True} if cohort.series else {}),
            "sequence.length": length,
            "sequence.evaluation.length": length,
            "sequence.per_study": _draws(cohort),
            **(FINE if small else {}),
            **({"input.size": min(32, cohort.size)} if cohort.binary else {}),
        },
        complexity=0,
        reason="convolutions and a Bi-LSTM, trained on these patients alone"
        + (", at full resolution first" if small else ""),
    )


# ----------------------------------------------------------------------- settings by fingerprint

FINE = {
    "model.encoder.filters": [8, 16, 32],
    "model.encoder.kernels": [3, 3, 3],
    "model.encoder.strides": [1, 2, 2],
    "model.encoder.paddings": [1, 1, 1],
    "model.encoder.fsm": None,
    "model.encoder.pooling": "average",
    "model.aggregator.layers": 1,
}
"""Convolutions for slices that the preset's would leave nothing of."""


def _shown(cohort: Fingerprint) -> dict[str, Any]:
    """Return how slices become an input: of HU by windows that show something, of shapes whole."""
    low, _, high = cohort.intensities
    width = max(high - low, 1.0)
    of_all = [round(low + width / 2, 1), round(width, 1)]
    if cohort.unit == "HU":
        is_ct = low < 0 and width > CT_RANGE and not cohort.binary
        return {"input.windows": CT_WINDOWS if is_ct and cohort.channels == 1 else [of_all]}
    if cohort.unit == "grey level" and cohort.binary and cohort.channels == 1:
        return {"input.grey_window": of_all} if 0 < high - low < WHITE else {}
    return {}


def _all_slices(cohort: Fingerprint, most: int) -> dict[str, Any]:
    """Return settings that show all slices of a study up to `most`, and of more as many."""
    if cohort.slices[4] <= most:
        return {}
    return {"sequence.length": most, "sequence.evaluation.length": most}


def _frozen(cohort: Fingerprint, minutes: float) -> dict[str, Any] | None:
    """Return settings of the frozen network; None if slices cannot be shown to three channels."""
    if cohort.channels not in (1, 3):
        return None
    side = FROZEN if cohort.size >= MEASURED else SMALL_FROZEN
    slices = 60 * minutes * ENCODING_SHARE * SLICES_A_SECOND * (FROZEN / side) ** 2
    most = max(8, min(MOST_SLICES, int(slices / cohort.studies)))
    return {
        **_shown(cohort),
        **_all_slices(cohort, most),
        "input.size": side,
    }


def _trained(cohort: Fingerprint) -> dict[str, Any]:
    """Return settings of a network that is trained from nothing, for few patients or many."""
    return {
        "input.size": min(TRAINED, cohort.size),
        "fit.epochs": 30 if cohort.patients < MANY else 20,
        "fit.batch_size": 8 if cohort.patients < FEW else 16,
    }


def _draws(cohort: Fingerprint) -> int:
    """Return how many sequences of a study are drawn an epoch: some 600 in all."""
    return max(1, min(4, round(600 / cohort.patients)))
