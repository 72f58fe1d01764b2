"""A W&B tracker that is offline until there is a key. Imports no wandb."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Optional

from eval_sidecar.system.accounts import configured_key
from eval_sidecar.trackers.base import Sent, ServerView, Session, Tracker
from eval_sidecar.trackers.wandb import WandbSettings, WandbTracker
from eval_sidecar.types import ModelSpec

log = logging.getLogger(__name__)


class KeyAwaitingTracker:
    """Writes offline sessions, and goes online with the first look-up after a key was configured.

    What was written offline is then like anything that was sent and not seen: it is looked up, and what the
    server lacks is sent.

    Args:
        settings: Those of the tracker, in whatever mode.
        find_key: Returns the key, if there is one by now.
        open_tracker: Makes the tracker of a mode.

    Attributes:
        on_online: Called when it goes online.
    """

    def __init__(
        self,
        settings: WandbSettings,
        find_key: Callable[[], Optional[str]] = configured_key,
        open_tracker: Callable[[WandbSettings], Tracker] = WandbTracker,
    ) -> None:
        self._settings = settings
        self._find_key = find_key
        self._open_tracker = open_tracker
        self._tracker = open_tracker(replace(settings, mode="offline"))
        self.is_online = False
        self.on_online: Callable[[], object] = lambda: None

    def read(self, spec: ModelSpec) -> ServerView:
        """See `Tracker.read`. A session is in the mode of the look-up before it."""
        self._go_online_with_key()
        return self._tracker.read(spec)

    def _go_online_with_key(self) -> None:
        if not self.is_online and self._find_key():
            log.info(
                "a W&B key was found: online from now on. Points that were written offline are looked up, and"
                " sent if the server lacks them: do not `wandb sync` them too"
            )
            self._tracker.close()
            self._tracker = self._open_tracker(replace(self._settings, mode="online"))
            self.is_online = True
            self.on_online()

    def send(self, session: Session) -> Sent:
        """See `Tracker.send`."""
        return self._tracker.send(session)

    def address(self, spec: ModelSpec) -> Optional[str]:
        """See `Tracker.address`."""
        self._go_online_with_key()
        return self._tracker.address(spec)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._tracker.close()
