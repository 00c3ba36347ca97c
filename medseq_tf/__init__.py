"""One diagnosis from the slices of one study.

The commands are functions here, with the same arguments: `medseq_tf.prepare(...)`,
`medseq_tf.train("fsm_bilstm", data="prepared/ct")`, `medseq_tf.evaluate("runs/first", data=...)`.
Each is also a module with what belongs to it (`medseq_tf.evaluate.fold_table`), loaded at first
use, so that `import medseq_tf` is quick.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

COMMANDS = (
    "prepare",
    "train",
    "tune",
    "evaluate",
    "explain",
    "report",
    "export",
    "predict",
    "track",
    "cache",
)

__all__ = ["COMMANDS", "__version__", *COMMANDS]


class _CommandModule(types.ModuleType):
    """A module that can be called: it passes the call on to its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


class _Package(types.ModuleType):
    """Makes each command's module callable in the moment the import system attaches it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in COMMANDS and isinstance(value, types.ModuleType):
            value.__class__ = _CommandModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
