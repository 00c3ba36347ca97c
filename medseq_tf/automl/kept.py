"""What an automatic run keeps of its work, so that it can go on where it was interrupted.

candidates/NAME/repeat_1.npz   a candidate's predictions in a repeat: `outer` and `inner`
run.json                       under `auto`: the plan's SHA-256, seconds that are gone, and what
                               time decided: which rounds of a network there are, or none
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medseq_tf.automl.plan import Plan, load_plan
from medseq_tf.automl.procedure import CandidatePredictions
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import InputError
from medseq_tf.files import atomic, write_text
from medseq_tf.runs.run import OF_CANDIDATES, PLAN, Run
from medseq_tf.training.beginning import BEGINNING, Request, has_begun


class Kept:
    """The folder of an automatic run at work."""

    def __init__(self, folder: Path):
        self.folder, self.run = folder, Run(folder)

    # ------------------------------------------------------------------------------ the beginning

    def has_begun(self, plan: Plan, prepared: Prepared, resume: bool) -> bool:
        """Return whether the same run is there, to go on with.

        Raises:
            InputError: the folder is in use, or holds another run or another plan.
        """
        folder = self.folder
        begun = has_begun(folder, resume, (*BEGINNING, PLAN))
        if (folder / PLAN).is_file():
            here = load_plan(folder / PLAN).digest()
            if here != plan.digest():
                raise InputError(
                    f"{folder}: holds another plan ({here[:12]}) than asked for "
                    f"({plan.digest()[:12]}); give --plan {folder / PLAN}, or choose another --out"
                )
        if not begun:
            return False
        if "auto" not in self.run.info:
            raise InputError(f"{folder}: the run there is none of auto; choose another --out")
        if self.auto["plan"] != plan.digest():
            raise InputError(
                f"{folder}: the run to resume has plan {self.auto['plan'][:12]}, and "
                f"{PLAN} there is another; resume with the same"
            )
        if self.run.info["fingerprint"] != prepared.fingerprint:
            raise InputError(f"{folder}: the run to resume has other data; resume with the same")
        return True

    def begin(self, plan: Plan, prepared: Prepared, fold_of: np.ndarray) -> None:
        """Write what the run begins with, `run.json` last; its folds are (repeats, studies)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / PLAN, plan.to_yaml())
        recipe = next(c for c in plan.candidates if c.role == "baseline").experiment()
        recipe = recipe.model_copy(update={"name": "auto"})
        Request(self.folder, recipe, prepared, repeats=plan.repeats).begin(
            fold_splits(fold_of),
            auto={"plan": plan.digest(), "seconds": 0.0, "rounds": {}},
            members=[],
        )

    # ------------------------------------------------------------------------------------ at work

    @property
    def auto(self) -> dict[str, Any]:
        """What `run.json` says of the work."""
        return self.run.info["auto"]

    def note(self, **changes: Any) -> None:
        """Write changes into what `run.json` says of the work."""
        self.run.update_info(auto={**self.auto, **changes})

    def place(self, candidate: str) -> Path:
        """Return a candidate's folder."""
        return self.folder / OF_CANDIDATES / candidate

    def predictions(self, candidate: str, repeat: int) -> CandidatePredictions | None:
        """Return a candidate's predictions in a repeat (from 0), if they are kept."""
        try:
            with np.load(self._file(candidate, repeat), allow_pickle=False) as arrays:
                return CandidatePredictions(arrays["outer"], arrays["inner"])
        except FileNotFoundError:
            return None

    def keep(self, candidate: str, repeat: int, predictions: CandidatePredictions) -> None:
        """Write a candidate's predictions in a repeat."""
        file = self._file(candidate, repeat)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, outer=predictions.outer, inner=predictions.inner)

    def _file(self, candidate: str, repeat: int) -> Path:
        return self.place(candidate) / f"repeat_{repeat + 1}.npz"


def fold_splits(fold_of: np.ndarray) -> list[Rows]:
    """Return one split a fold, repeat by repeat, of the folds (repeats, studies)."""
    return [
        {
            "train": np.flatnonzero((folds >= 0) & (folds != fold)),
            "validation": np.empty(0, np.int64),
            "test": np.flatnonzero(folds == fold),
        }
        for folds in fold_of
        for fold in range(folds.max() + 1)
    ]
