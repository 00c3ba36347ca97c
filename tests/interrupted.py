"""A training that dies in the middle."""

from __future__ import annotations

from medseq_tf.training.loop import Fitter


class Killed(BaseException):
    """What nothing catches, as nothing catches a kill."""


def kill_after(patch, saves):
    """Let training die after so many saves of its state, until `patch` is undone."""
    save, count = Fitter.save, 0

    def save_then_die(self):
        nonlocal count
        save(self)
        count += 1
        if count == saves:
            raise Killed

    patch.setattr(Fitter, "save", save_then_die)
