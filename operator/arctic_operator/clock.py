"""The cluster's clock: the API server's, by which it and its controllers write times. No I/O."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

GRAIN = timedelta(seconds=2)
"""An answer names whole seconds, and was under way for a while."""


class ClusterClock:
    """What time it is in the cluster: this machine's clock may be wrong, and may be moved while a world runs."""

    def __init__(
        self,
        steady: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`wall` is believed until the API server has answered; `steady` counts seconds from anywhere."""
        self._steady, self._wall = steady, wall
        self._start: datetime | None = None

    def now(self) -> datetime:
        """Return the time."""
        return self._wall() if self._start is None else self._start + timedelta(seconds=self._steady())

    def hear(self, date: str | None) -> None:
        """Take the header `Date` of an answer; one that agrees with what is known changes nothing: time is steady."""
        try:
            told = parsedate_to_datetime(date or "")
        except ValueError:
            return  # what only a proxy before the API server can have written
        told = told.replace(tzinfo=told.tzinfo or UTC)  # "-0000" is a time without a zone
        if self._start is None or not told - GRAIN <= self.now() <= told + GRAIN:
            self._start = told - timedelta(seconds=self._steady())
