"""The command that sends MLflow what it could not be given while the work was done."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.files import write_json
from medseq_tf.runs import mlflow_store, tracking
from medseq_tf.runs.run import Run, RunOrPath, locked
from medseq_tf.runs.unsent import UNSENT

_IDS = {
    "run.json": "mlflow_run_id",
    "search.json": "mlflow_run_id",
    "tracking.json": "run_id",
    "result.json": "mlflow_run_id",
}
"""Files of a run, a search or a trial, and where in them the id of the MLflow run stands."""
_ENDS = {"finished": "FINISHED", "failed": "FAILED"}


@dataclass(frozen=True)
class Tracked:
    """What was sent.

    Attributes:
        path: the run's folder, or the search's.
        records: how many were sent.
        ended: how many MLflow runs were ended that a killed process had left running.
    """

    path: Path
    records: int
    ended: int


def track(run: RunOrPath) -> Tracked:
    """Send to MLflow what waits in a run's or a search's folder, once and in order.

    MLflow runs that a killed process left running are ended. A run that goes on (`--resume`) sends
    what waits by itself.

    Raises:
        InputError: the folder is neither, is being worked in, or MLflow cannot be used.
    """
    folder = run.path if isinstance(run, Run) else Path(run)
    if not (folder / "search.json").is_file():
        Run.open(folder)
    records = 0
    searches = [folder, *sorted(file.parent for file in folder.glob("nested/fold_*/search.json"))]
    with contextlib.ExitStack() as held:
        for search in searches:
            held.enter_context(locked(search))
        for place in sorted(path.parent for path in folder.rglob(UNSENT)):  # parents first
            count, ids = tracking.send_unsent(place, _run_id(place))
            records += count
            _note(place, ids)
        ended = sum(_end_all(search) for search in searches)
    return Tracked(folder, records, ended)


def _end_all(folder: Path) -> int:
    """End the MLflow runs of a run or search that still run; return how many."""
    ended = sum(_end(place) for place in _places(folder))
    for champion in _content(folder / "search.json").get("champions", {}).values():
        ended += bool(champion.get("run_id")) and mlflow_store.terminate(
            champion["run_id"], "KILLED"
        )
    return ended


def _note(place: Path, ids: dict[str, str]) -> None:
    """Write down the MLflow run's id where it was not known."""
    for name, key in _IDS.items():
        file = place / name
        if not file.is_file():
            continue
        is_own = [run for run in ids if name != "search.json" or run.startswith("search ")]
        content = _content(file)
        if is_own and not content.get(key):
            write_json(file, {**content, key: ids[is_own[0]]})


def _run_id(place: Path) -> str | None:
    """Return the id of a folder's MLflow run, where it is known."""
    known = (_content(place / name).get(key) for name, key in _IDS.items())
    return next(filter(None, known), None)


def _places(folder: Path) -> Iterator[Path]:
    """Yield the folder and those of its folds and trials."""
    yield folder
    for inner in ("fold_*/run.json", "trials/*/tracking.json"):
        yield from sorted(file.parent for file in folder.glob(inner))


def _end(place: Path) -> bool:
    """End the MLflow run of a folder, if it still runs; nobody works in the folder."""
    about, run_id = {name: _content(place / name) for name in _IDS}, _run_id(place)
    status = next((c["status"] for c in about.values() if "status" in c), "stopped")
    for name in ("run.json", "search.json"):
        if about[name].get("status") == "running":
            write_json(place / name, {**about[name], "status": "stopped"})
    return run_id is not None and mlflow_store.terminate(run_id, _ENDS.get(status, "KILLED"))


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{file}: is damaged")
    return content
