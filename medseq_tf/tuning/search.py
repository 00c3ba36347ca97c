"""The folder of a search that `tune` wrote: its trials, the best of them, and what counted.

search.json     what was asked, by whom, of which data     recipe.yaml   the recipe as it was
space.yaml      what varied                                best.yaml     the best, for train
splits.json     studies set aside, and the folds           trials.csv    the table
trials/NAME/    a trial: point, recipe, result, run folder oracle/       the tuner's state
champion/NAME/  the run of the best recipe, trained anew
nested/FOLD/    with `nested`: a whole search without that fold; nested.json   what they found
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf import files
from medseq_tf import recipe as recipes
from medseq_tf.dataset import selection
from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes
from medseq_tf.recipe import Chosen, Experiment
from medseq_tf.runs.run import Run
from medseq_tf.tuning import optimism, trial
from medseq_tf.tuning.optimism import Corrected
from medseq_tf.tuning.space import Space

BASE = "base"
"""The name of the trial of the recipe as it is."""

FEWEST_FOR_IMPORTANCE = 8
_ORDER = {"finished": 0, "stopped": 1, "running": 2, "failed": 3}


@dataclass(frozen=True)
class Search:
    """A search on disk, finished or not."""

    path: Path

    @classmethod
    def load(cls, path: str | os.PathLike | Search) -> Search:
        """Open a search folder.

        Raises:
            InputError: if the folder holds no search.
        """
        if isinstance(path, Search):
            return path
        if not (Path(path) / "search.json").is_file():
            raise InputError(f"{path}: holds no search (search.json is missing)")
        return cls(Path(path))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def info(self) -> dict[str, Any]:
        """`search.json`: space, data, tuner, seed, MLflow run id, versions."""
        return json.loads((self.path / "search.json").read_text("utf-8"))

    def note(self, **changes: Any) -> None:
        """Change entries of `search.json`."""
        files.write_json(self.path / "search.json", {**self.info, **changes})

    @functools.cached_property
    def space(self) -> Space:
        """What varied."""
        space = Space.load(self.path / "space.yaml")
        if not space.objective.is_decided:  # of a version that knew no other way
            space = replace(space, objective=replace(space.objective, validation=True))
        return space

    @property
    def splits(self) -> dict[str, Any]:
        """Study ids: `set_aside` (no trial sees them) and `splits`, one of a trial's folds each."""
        return json.loads((self.path / "splits.json").read_text("utf-8"))

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial, in the order in which they began, the recipe as it is first.

        Columns: trial, status (`finished`, `failed`, `stopped`, `running`), the metric, `sd` and
        `folds` (its spread and values over the folds), one column a setting (empty where it was not
        active), epochs (trained, over all folds), seconds, peak_mib, reason, run.
        """
        metric, names = self.space.objective.metric, [s.name for s in self.space.settings]
        rows = []
        for file in (self.path / "trials").glob("*/trial.json"):
            about = json.loads(file.read_text("utf-8"))
            result = trial.result(file.parent) or {}
            rows.append(
                {
                    "trial": about["trial"],
                    "status": result.get("status", "running"),
                    metric: _number(result.get("score")),
                    "sd": _number(result.get("sd")),
                    "folds": result.get("folds") or [],
                    **{name: about["values"].get(name) for name in names},
                    "epochs": sum(result.get("epochs") or []),
                    "seconds": _number(result.get("seconds")),
                    "peak_mib": _number(result.get("peak_mib")),
                    "reason": result.get("reason", ""),
                    "run": str(file.parent / "run"),
                }
            )
        columns = ["trial", "status", metric, "sd", "folds", *names, "epochs", "seconds"]
        table = pd.DataFrame(rows, columns=[*columns, "peak_mib", "reason", "run"])
        whole = [setting.name for setting in self.space.settings if setting.kind == "int"]
        return table.astype(dict.fromkeys(whole, "Int64")).sort_values(
            "trial", key=lambda names: names.where(names != BASE, ""), ignore_index=True
        )

    @property
    def ranking(self) -> pd.DataFrame:
        """The trials, the best on top, the stopped below the finished, the failed last."""
        metric, up = self.space.objective.metric, self.space.objective.direction == "min"
        order = self.trials.assign(_order=lambda t: t["status"].map(_ORDER))
        order = order.sort_values(["_order", metric], ascending=[True, up], kind="stable")
        return order.drop(columns="_order").reset_index(drop=True)

    @property
    def best_trial(self) -> pd.Series | None:
        """The row of the best trial; the recipe as it is, if nothing beats it; None without any."""
        ranking = self.ranking
        finished = ranking[ranking["status"] == "finished"]
        return None if finished.empty else finished.iloc[0]

    @property
    def winner(self) -> pd.Series:
        """The row of the best trial.

        Raises:
            InputError: no trial has finished.
        """
        if (best := self.best_trial) is None:
            raise InputError(f"{self.path}: no trial has finished, so none is the best")
        return best

    @property
    def best(self) -> Experiment:
        """The best trial's recipe, as in `best.yaml`.

        Raises:
            InputError: no trial has finished.
        """
        recipe = self.experiment(self.winner["trial"])
        chosen = [*self.space.base.chosen, self.choice]
        return recipe.model_copy(update={"name": f"{self.space.name}_best", "chosen": chosen})

    @property
    def choice(self) -> Chosen:
        """What the best recipe says of its origin: which search, on which patients."""
        info, best = self.info, self.corrected
        count = info.get("scored")
        return Chosen(
            by=f"search {self.space.name}",
            cohort=f"{count} patients" if count else f"the data set {info['data'][:16]}",
            score=best.text(str(self.space.objective)),
            search=self.id,
            fingerprint=info["data"],
            trials=best.trials,
            patients=info.get("patients", ""),
        )

    @property
    def id(self) -> str:
        """What the search is known by: a hash of what it searches, on what data, with what seed."""
        info = self.info
        parts = [self.space.key, info["data"], info["tuner"], str(info["seed"])]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def classes(self) -> Classes | None:
        """The classes of the data set that was searched; None for yes/no labels."""
        stored = self.info.get("classes")
        return stored and Classes(**{**stored, "names": tuple(stored["names"])})

    @property
    def corrected(self) -> Corrected:
        """The best trial's score, and what it is when corrected for being the best of many.

        Raises:
            InputError: no trial has finished.
        """
        best = self.winner
        objective, trials = self.space.objective, self.trials
        finished = trials.loc[trials["status"] == "finished", "trial"]
        tables = {name: _held_out(self.path / "trials" / name) for name in finished}
        value, why = float("nan"), "some trials have kept no predictions"
        if all(table is not None for table in tables.values()):
            value, why = optimism.correct(tables, objective.metric, classes=self.classes)
        return Corrected(float(best[objective.metric]), value, len(finished), why)

    def experiment(self, name: str) -> Experiment:
        """Return a trial's recipe."""
        text = (self.path / "trials" / name / "trial.json").read_text("utf-8")
        return recipes.from_values(json.loads(text)["recipe"], f"trial {name}")

    @property
    def champion(self) -> Run | None:
        """The run of the best recipe, trained anew; None if there is none."""
        best = self.best_trial
        folder = self.path / "champion" / (best["trial"] if best is not None else "-")
        return Run(folder) if (folder / "run.json").is_file() else None

    @property
    def nested(self) -> dict[str, Any] | None:
        """What nested evaluation found, `nested.json`; None without one."""
        file = self.path / "nested.json"
        return json.loads(file.read_text("utf-8")) if file.is_file() else None

    def importance(self, seed: int = 0) -> pd.DataFrame:
        """Return how much each setting mattered, among the points that were tried.

        A random forest learns the score from the settings; a setting's importance is how much of
        the forest's fit is lost when its values are shuffled, as a share of all. It says what
        explains the differences between these trials, not what would help elsewhere.

        Returns:
            One row a setting: `setting` and `importance`, which add up to 1, the most important on
            top; empty with fewer than 8 finished trials.
        """
        from sklearn.ensemble import RandomForestRegressor
        from sklearn.inspection import permutation_importance

        table = self.trials
        table = table[(table["status"] == "finished") & (table["trial"] != BASE)]
        scores = table[self.space.objective.metric].to_numpy(float)
        names = [setting.name for setting in self.space.settings]
        empty = pd.DataFrame({"setting": [], "importance": []})
        if len(table) < FEWEST_FOR_IMPORTANCE or np.ptp(scores) == 0:
            return empty
        points = np.column_stack([self._coded(table, name) for name in names])
        forest = RandomForestRegressor(200, random_state=seed, min_samples_leaf=2)
        forest.fit(points, scores)
        lost = permutation_importance(forest, points, scores, n_repeats=20, random_state=seed)
        shares = np.clip(lost.importances_mean, 0, None)
        if not shares.any():
            return empty
        table = pd.DataFrame({"setting": names, "importance": shares / shares.sum()})
        return table.sort_values("importance", ascending=False, ignore_index=True)

    def _coded(self, table: pd.DataFrame, name: str) -> np.ndarray:
        """Return a setting's values as numbers: of a choice its place, -1 where not active."""
        setting = next(s for s in self.space.settings if s.name == name)
        if setting.kind == "choice":
            place = {label: i for i, label in enumerate(setting.alternatives)}
            return table[name].map(place).fillna(-1).to_numpy(float)
        values = table[name].astype(float).to_numpy()
        if setting.log:
            values = np.log(values)
        below = np.log(setting.low) - 1 if setting.log else setting.low - 1
        return np.where(np.isnan(values), below, values)

    def text(self, most: int = 10) -> str:
        """Return the best trials, what the search gained and what mattered, for a terminal."""
        objective, trials = self.space.objective, self.trials
        done = trials["status"].value_counts()
        counts = f"{done.get('finished', 0)} finished, {done.get('failed', 0)} failed"
        counts += f", {done['stopped']} stopped" if "stopped" in done else ""
        lines = [f"{objective}: {len(trials)} trials, {counts}", header(self.space)]
        lines += [line(self.space, row) for _, row in self.ranking.head(most).iterrows()]
        if self.best_trial is not None:
            lines.append(f"{selection.LABEL}: {self.corrected.text(objective.metric)}")
        if (nested := self.nested) is not None:
            lines.append(nested_text(nested))
        if len(trials) > most:
            lines.append(f"... {len(trials) - most} more in {self.path / 'trials.csv'}")
        importance = self.importance()
        if len(importance):
            shown = importance[importance["importance"] >= 0.01]
            parts = [f"{row.setting} {row.importance:.0%}" for row in shown.itertuples()]
            lines.append("what mattered: " + ", ".join(parts))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = self.ranking.drop(columns=["folds", "run", "peak_mib"])
        if not table["reason"].any():
            table = table.drop(columns="reason")
        shown = table.to_html(index=False, float_format=lambda v: f"{v:.4g}", na_rep="")
        title = f"{html.escape(self.name)}: {html.escape(str(self.space.objective))}"
        correction = ""
        if self.best_trial is not None:
            words = self.corrected.text(self.space.objective.metric)
            correction = f"<p>{html.escape(f'{selection.LABEL}: {words}')}</p>"
        return f"<h4>{title}</h4>{shown}{correction}"


def nested_text(nested: dict[str, Any]) -> str:
    """Return what nested evaluation found, for a terminal."""
    metric, folds = nested["metric"], nested["folds"]
    rows = [row for row in nested["table"] if row["metric"] == metric]
    row = next((row for row in rows if row["label"] == "macro"), rows[0] if rows else None)
    inside, outside = (np.mean([fold[side] for fold in folds]) for side in ("inside", "outside"))
    words = f"nested evaluation over {len(folds)} folds: {metric} "
    if row is None or pd.isna(row["value"]):
        words += f"{outside:.3f}, mean of the folds"
    else:
        words += f"{row['value']:.3f}"
        if not pd.isna(row["low"]):
            words += f" (95% interval {row['low']:.3f} to {row['high']:.3f})"
    return (
        f"{words}, on patients who chose nothing; the searches' best trials promised {inside:.3f}"
    )


def header(space: Space) -> str:
    """Return the heads of the columns that `line` fills."""
    return f"{'trial':<7}{space.objective.metric:<17}{'time':>8}  settings"


def line(space: Space, row: pd.Series) -> str:
    """Return a trial of `Search.trials` as one line."""
    values = [
        f"{s.name.removeprefix('model.')}={row[s.name]}"
        for s in space.settings
        if not pd.isna(row[s.name])
    ]
    if row["status"] == "finished":
        sd = "" if pd.isna(row["sd"]) else f" ± {row['sd']:.3f}"
        score, about = f"{row[space.objective.metric]:.3f}{sd}", " ".join(values)
    else:
        score, about = row["status"], f"{row['reason']}  [{' '.join(values)}]"
    if row["trial"] == BASE and row["status"] == "finished":
        about = f"{space.base.name} as it is"
    return f"{row['trial']:<7}{score:<17}{_duration(row['seconds']):>8}  {about}"


def _duration(seconds: float) -> str:
    if pd.isna(seconds):
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _held_out(folder: Path) -> pd.DataFrame | None:
    """Return a trial's held-out predictions, from its result or its run; None if none are kept."""
    if (kept := (trial.result(folder) or {}).get("held_out")) is not None:
        numbers = dict.fromkeys(("truth", "probability", "threshold"), float)
        return pd.DataFrame(kept).astype(numbers)
    stored = folder / "run" / "predictions.parquet"
    return optimism.held_out(files.read_parquet(stored)) if stored.is_file() else None


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
