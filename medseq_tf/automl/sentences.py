"""What an automatic run says of its choice, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseq_tf.automl.choice import Shares
from medseq_tf.automl.plan import CONCLUDE_FROM, Plan
from medseq_tf.automl.predicted import Candidates
from medseq_tf.automl.procedure import Outcome, repeated
from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.evaluation.metrics.interval_text import with_interval


def deployed_because(plan: Plan, outcome: Outcome, shares: Shares) -> str:
    """Say what is deployed and why, or why nothing is."""
    named = " and ".join(
        name if share == 1 else f"{name} ({share:.0%})"
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    )
    named += " are" if len(shares) > 1 else " is"
    if not plan.conclude:
        rarest = plan.cohort.rarest
        why = (
            f"nothing is concluded, since the rarest kind of patients has {rarest}, fewer than "
            f"{CONCLUDE_FROM}"
        )
    elif outcome.final.weights:
        return f"{named} deployed: {outcome.final.reason}"
    else:
        why = outcome.final.reason
    if shares:
        return f"{why}; {named} deployed because that was asked for"
    return f"{why}; no model is deployed"


def against_reference(
    candidates: Candidates, outcome: Outcome, repeats: Sequence[int]
) -> list[str]:
    """Say of each reference that the procedure is not ahead of it, if it is not."""
    prepared, part = candidates.prepared, candidates.part
    observed = repeated(
        prepared.labels[part],
        prepared.outputs,
        prepared.studies["patient_id"].to_numpy()[part],
        candidates.fold_of[list(repeats)][:, part],
    )
    procedure = np.concatenate(outcome.outer[list(repeats)][:, part])
    sentences = []
    for candidate in candidates.plan.candidates:
        if candidate.role != "reference":
            continue
        alone = np.concatenate(
            [candidates.predictions[repeat][candidate.name].outer[part] for repeat in repeats]
        )
        lead = observed.lead(procedure, alone)
        is_ahead = lead.value > 0 if np.isnan(lead.low) else lead.low > 0
        if not is_ahead:
            sentences.append(
                f"confounding is not excluded: {candidate.name} alone reaches an AUROC of "
                f"{_estimate(observed.auroc(alone))}, the procedure "
                f"{_estimate(outcome.auroc)}"
            )
    return sentences


def _estimate(estimate: Estimate) -> str:
    return with_interval(estimate.value, estimate.low, estimate.high)
