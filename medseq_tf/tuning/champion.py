"""The best recipe of a search: as a file that `train` takes, trained anew, and registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from medseq_tf.dataset import selection
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import Stopped
from medseq_tf.runs.mlflow_store import crown, first_line
from medseq_tf.runs.run import Run
from medseq_tf.runs.tracking import Tracker
from medseq_tf.serving.export import export
from medseq_tf.training.train import train
from medseq_tf.tuning import trial
from medseq_tf.tuning.search import BASE, Search


def best_yaml(search: Search) -> str:
    """Return the best recipe as YAML that `train` takes, where it comes from in comments."""
    best, info, trials, recipe = search.winner, search.info, search.trials, search.best
    objective, space = search.space.objective, search.space
    metric = objective.metric
    sd = "" if np.isnan(best["sd"]) else f" ± {best['sd']:.3f}"
    folds = ", ".join(f"{score:.3f}" for score in best["folds"])
    changed = space.overrides(_values(search, best["trial"]))
    commit = info.get("medseq_tf_git_commit")
    base = trials[(trials["trial"] == BASE) & (trials["status"] == "finished")]
    lines = [
        f"Found by a search: space {space.name}, trial {best['trial']}, the best of "
        f"{(trials['status'] == 'finished').sum()} finished of {len(trials)} "
        f"({info['tuner']}, seed {info['seed']}).",
        f"{objective}: {best[metric]:.3f}{sd}" + (f" ({folds})" if folds else ""),
        f"{selection.LABEL}: {recipe.chosen[-1].score}.",
    ]
    if len(base) and best["trial"] != BASE:
        lines.append(f"{space.base.name} as it was: {base.iloc[0][metric]:.3f}")
    lines += [
        "Train it on other patients, or on those set aside; whoever trains it on the same is told.",
        "How good searching is, test patients or none: medseq-tf tune --nested 5.",
        f"Data set fingerprint {info['data'][:16]}.",
        ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        f"git commit of medseq_tf {commit}" if commit else "",
        "What differs from the recipe that it began with:",
        *(f"  {text}" for text in changed or ["nothing"]),
    ]
    comments = "\n".join(f"# {text}" for text in lines if text)
    return f"{comments}\n{recipe.to_yaml()}"


def _values(search: Search, name: str) -> dict[str, Any]:
    text = (search.path / "trials" / name / "trial.json").read_text("utf-8")
    return json.loads(text)["values"]


def retrain(
    search: Search,
    prepared: Prepared,
    tracker: Tracker,
    features: str | None,
    say: Callable[[str], None],
    register: bool = True,
) -> None:
    """Train the best recipe on training and validation patients, evaluate it on the test's.

    Its model goes to MLflow's registry. What is done already is not done again; `say` tells of what
    is.
    """
    name = search.winner["trial"]
    folder = search.path / "champion" / name
    known = search.info.get("champions", {}).get(name, {})
    finished = search.champion is not None and search.champion.info["status"] == "finished"
    if finished and (known.get("model") or not tracker.connected or not register):
        return
    folder.parent.mkdir(exist_ok=True)
    champion = Tracker(
        search.path,
        f"{search.space.name} champion ({name})",
        parent=tracker.reference,
        run_id=known.get("run_id"),
        enabled=tracker.enabled,
        system_metrics=True,
    )
    _note_champion(search, name, run_id=champion.run_id)
    status = "FAILED"
    try:
        if not finished:
            say(f"training the best recipe, trial {name}, anew")
        run = train(
            search.best,
            prepared,
            out=folder,
            splits=_rows_of(search, prepared),
            resume=(folder / "run.json").is_file(),
            features=features,
            track=champion,
            verbose=False,
        )
        trial.log_figures(champion, run)
        if champion.connected and register:
            _note_champion(search, name, model=_registered(search, run, say))
        status = "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        champion.end(status)


def _rows_of(search: Search, prepared: Prepared) -> Rows | None:
    """Return the split of the best recipe's training, where it is not the recipe's own."""
    named = search.splits.get("champion")
    if named is None:
        return None
    row = {study: i for i, study in enumerate(prepared.studies["study_id"])}
    return {part: np.sort([row[study] for study in studies]) for part, studies in named.items()}


def _note_champion(search: Search, name: str, **changes: Any) -> None:
    champions = search.info.get("champions", {})
    champions[name] = {**champions.get(name, {}), **changes}
    search.note(champions=champions)


def _registered(search: Search, run: Run, say: Callable[[str], None]) -> str | None:
    """Put a run's model into MLflow's registry, to be served, as `champion`; return its URI."""
    card = run.path / "model_card.md"
    described = card.read_text("utf-8") if card.is_file() else best_yaml(search)
    try:
        exported = export(run, search.path / "champion" / "exported", register=search.space.name)
        crown(str(exported.uri), "champion", described)
    except Exception as error:  # whatever tracking does, the search is done
        say(f"the best model is not registered: {first_line(error)}")
        return None
    say(f"registered: {exported.uri}, models:/{search.space.name}@champion")
    return exported.uri
