"""One diagnosis from the slices of one study.

The commands are functions here, with the same names, arguments and defaults:
`medseq_tf.prepare(...)`, `medseq_tf.train("fsm_bilstm", data="prepared/ct")`,
`medseq_tf.evaluate("runs/first", data=...)`. Each is loaded at its first use, so that
`import medseq_tf` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

COMMANDS = {
    "prepare": "dataset.prepare",
    "train": "training.train",
    "auto": "automl.auto",
    "tune": "tuning.tune",
    "evaluate": "evaluation.evaluate",
    "explain": "evaluation.explain.explain",
    "report": "reporting.report",
    "export": "serving.export",
    "predict": "serving.predict",
    "watch": "serving.watch",
    "track": "runs.track",
    "cache": "evaluation.feature_cache",
    "doctor": "reporting.doctor",
}
"""Command -> the module that holds its function, of the same name."""

__all__ = ["COMMANDS", "__version__", *COMMANDS]


def __getattr__(name: str) -> Any:
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{COMMANDS[name]}")
    command = globals()[name] = getattr(module, name)
    return command


def __dir__() -> list[str]:
    return sorted(__all__)
