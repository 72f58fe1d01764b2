"""A tracker for one pass over many models: if nobody answers one of them, the others need not ask."""

from __future__ import annotations

from typing import Optional

from eval_sidecar.errors import TrackerError
from eval_sidecar.trackers.base import Sent, ServerView, Session, Tracker
from eval_sidecar.types import ModelSpec


class PassTracker:
    """Looks up and sends through a tracker until that is out of reach; then each look-up fails at once."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._unreachable: Optional[TrackerError] = None

    def read(self, spec: ModelSpec) -> ServerView:
        """See `Tracker.read`."""
        if self._unreachable is not None:
            raise self._unreachable
        try:
            return self._tracker.read(spec)
        except TrackerError as error:
            if error.unreachable:
                self._unreachable = error
            raise

    def send(self, session: Session) -> Sent:
        """See `Tracker.send`."""
        return self._tracker.send(session)

    def address(self, spec: ModelSpec) -> Optional[str]:
        """See `Tracker.address`."""
        return self._tracker.address(spec)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._tracker.close()
