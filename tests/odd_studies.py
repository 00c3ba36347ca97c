"""Studies that end the process that reads them, for worker processes that import this."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from medseq_tf.readers.study import Slices, StudySource


class Deadly(StudySource):
    """A study that ends its process every time, or once, where there is a file to note that."""

    def __init__(self, source, once=None):
        super().__init__(source, "nobody", {}, None)
        object.__setattr__(self, "once", once)

    def read(self):
        try:
            if self.once:
                Path(self.once).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        return Slices([np.full((20, 20), value, np.uint8) for value in (9, 99, 200)])
