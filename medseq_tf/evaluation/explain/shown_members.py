"""One study before several models, whose probabilities are weighted and added up.

Importance is linear in the prediction, so that the importance of a slice for the mean is the mean
of its importance for each model; to one that it is not shown to it adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medseq_tf.evaluation.explain import slice_values
from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.evaluation.inference import weighted_mean


class ShownMembers:
    """One study as each of several models sees it.

    Args:
        members: the study before each of the models.
        weights: of each; they add up to 1.
        heaviest: number of the model that maps are of.

    Attributes:
        length: number of the study's slices.
        distinct: positions of the slices that any model is shown.
        heaviest: the study before the model that maps are of.
    """

    def __init__(self, members: Sequence[ShownStudy], weights: Sequence[float], heaviest: int):
        self.members, self.weights = members, np.asarray(weights, float)
        self.heaviest = members[heaviest]
        self.length = self.heaviest.length
        self.distinct = np.unique(np.concatenate([member.distinct for member in members]))

    def images(self) -> np.ndarray:
        """Return the slices in [0, 1] as the model sees them that maps are of."""
        return self.heaviest.images()

    def probabilities(self) -> np.ndarray:
        """Return the study's probabilities (labels,)."""
        return self._mean([member.probabilities() for member in self.members])

    @property
    def mirrored(self) -> bool:
        """Whether any model is shown the slices mirrored too."""
        return any(member.mirrored for member in self.members)

    @property
    def covariates(self) -> dict[str, str]:
        """What a model is told of each covariate that one reads, in words, by name."""
        return {name: words for one in self.members for name, words in one.covariates.items()}

    def probabilities_without(self, covariate: str) -> np.ndarray:
        """Return the study's probabilities (labels,) where a covariate is missing."""
        return self._mean(
            [
                one.probabilities_without(covariate)
                if covariate in one.covariates
                else one.probabilities()
                for one in self.members
            ]
        )

    def importance(
        self,
        base_values: np.ndarray,
        labels: Sequence[int],
        seed: int = 0,
        decisive: int | None = None,
    ) -> slice_values.SliceValues:
        """Return the slices' Banzhaf values for the mean, as `ShownStudy.importance` does.

        Each model is shown subsets of its own, so that the errors of sampling are independent.
        """
        seeds = [
            seed
            if number == 0
            else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            for number in range(len(self.members))
        ]
        each = [
            member.importance(base_values, labels, own, decisive)
            for member, own in zip(self.members, seeds, strict=True)
        ]
        values = self._mean([np.nan_to_num(one.values) for one in each])
        values[np.setdiff1d(np.arange(self.length), self.distinct)] = np.nan
        covariance = np.tensordot(
            self.weights**2, [np.nan_to_num(one.covariance) for one in each], axes=1
        )
        return slice_values.SliceValues(values, covariance, sum(one.subsets for one in each))

    def slice_table(self) -> pd.DataFrame:
        """Return one row a label (by its number) and slice, with columns of `Explanation.slices`.

        `shown` is that of the model that is shown the slice most often. `alone` and `attention` are
        means over the models that are shown the slice, and `running` is known after the slices of
        each model, of which the last one counts.
        """
        tables = [member.slice_table() for member in self.members]
        table = tables[0][["label", "slice"]].copy()
        shown = np.stack([own["shown"].to_numpy() for own in tables])
        table["shown"] = shown.max(axis=0)
        occlusion = [own["occlusion"].where(own["shown"] > 0, 0.0) for own in tables]
        running = [own.groupby("label")["running"].transform(_carried) for own in tables]
        table["occlusion"] = self._mean(occlusion)
        table["alone"] = self._mean_of_shown("alone", tables)
        table["running"] = self._mean(running)
        if all("attention" in own for own in tables):
            table["attention"] = self._mean_of_shown("attention", tables)
        columns = table.columns[3:]
        table[columns] = table[columns].where(table["shown"] > 0)
        return table

    def _mean(self, values: Sequence[np.ndarray | pd.Series]) -> np.ndarray:
        return weighted_mean(values, self.weights.tolist())

    def _mean_of_shown(self, column: str, tables: Sequence[pd.DataFrame]) -> np.ndarray:
        """Return the mean of a column over the models that are shown a slice."""
        values = np.stack([own[column].to_numpy(float) for own in tables])
        weights = self.weights[:, None] * ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return np.nansum(weights * values, axis=0) / weights.sum(axis=0)


def _carried(running: pd.Series) -> pd.Series:
    """Return what is known after each slice: from a slice that was shown on, and before the first.

    Nothing is known where no slice has a value.
    """
    return running.ffill().bfill()
