"""A training that dies in the middle."""

from __future__ import annotations

import contextlib

import pytest

from medseq_tf.training.loop import Fitter


class Killed(BaseException):
    """What nothing catches, as nothing catches a kill."""


@contextlib.contextmanager
def killed_after(monkeypatch, saves):
    """Let the training inside die after so many saves of its state; it has to."""
    save, count = Fitter.save, 0

    def save_then_die(self):
        nonlocal count
        save(self)
        count += 1
        if count == saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Fitter, "save", save_then_die)
        with pytest.raises(Killed):
            yield
