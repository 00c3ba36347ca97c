"""A store of features whose worker process is killed once, for workers that import it."""

from __future__ import annotations

import os
import signal

from medseq_tf.training.beginning import features_alone


def dying_store(place, *arguments):
    """The store that workers build; the third study that one of them computes kills it, once."""
    store, seen = features_alone(*arguments), []
    compute = store.computed_here

    def computed_here(views):
        seen.append(views)
        if len(seen) == 3:
            try:
                (place / "died").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return compute(views)

    store.computed_here = computed_here
    return store
