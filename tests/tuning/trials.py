"""Spaces to search, and trials that need no process of their own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import yaml
from small_run import SMALL

from medseq_tf.tuning import trial

SETTINGS = {
    "optimizer.learning_rate": {"float": [1e-4, 1e-1], "log": True},
    "model.aggregator.name": {"choice": ["lstm", "gru", "mean"]},
    "model.aggregator.units": {
        "choice": [4, 6],
        "when": {"model.aggregator.name": ["lstm", "gru"]},
    },
}
SPACE = {
    "name": "small",
    "recipe": "fsm_bilstm",
    "set": [s for s in SMALL if "fit.epochs" not in s and "noise" not in s] + ["fit.epochs=1"],
    "objective": {"metric": "auroc", "folds": 2},
    "space": SETTINGS,
}
SINGLE = {**SPACE, "objective": {"metric": "auroc", "validation": True}}
UNSAID = {**SPACE, "objective": {"metric": "auroc"}}


def outcome(score, sd=0.05):
    return {
        "status": "finished",
        "reason": "",
        "score": score,
        "sd": sd,
        "folds": [score - sd, score + sd],
        "epochs": [3, 4],
        "seconds": 61.0,
        "peak_mib": 500,
    }


def in_this_process(folder, job, *_):
    """Stand for `trial.run`, without the seconds that a process of its own takes to start."""
    folder.mkdir(parents=True, exist_ok=True)
    if trial.result(folder) is None:
        (folder / "job.json").write_text(json.dumps(job))
        trial.main(folder)
    return trial.result(folder)


def command(space, data, out, *words):
    """Return the words of the real command, its space in a file beside the search."""
    space_file = Path(out).parent / "space.yaml"
    space_file.write_text(yaml.safe_dump(space))
    return [
        *(sys.executable, "-m", "medseq_tf.tune", str(space_file), "--data", str(data)),
        *("--out", str(out), "--tuner", "random", *words),
    ]


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
