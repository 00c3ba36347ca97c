"""The time that an automatic choice may take, counted over all the processes that it took."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """A number of minutes, of which some are gone.

    What an interrupted process took is counted as far as it was noted in the run's folder: all of
    it after Ctrl-C, after a kill up to the last piece of work that was finished.

    Args:
        minutes: in all.
        used: seconds that earlier processes took.
        clock: seconds of this process.

    Attributes:
        reserve: seconds to be left for what ends the run: the choice, the members, the report.
    """

    def __init__(
        self, minutes: float, used: float = 0.0, clock: Callable[[], float] = time.monotonic
    ):
        self._all, self._clock = 60 * minutes, clock
        self._began = clock() - used
        self.reserve = 0.0

    @property
    def used(self) -> float:
        """Seconds that are gone, in all processes."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left for candidates; below 0 when the time is over."""
        return self._all - self.reserve - self.used

    def admits(self, seconds: float) -> bool:
        """Whether work that takes so long ends in time."""
        return seconds <= self.left
