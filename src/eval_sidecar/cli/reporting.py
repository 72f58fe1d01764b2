"""Chooses the tracker that a command reports to, by its flags and by what is configured."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple, Optional

from eval_sidecar.cli.flags import TrackerFlags
from eval_sidecar.errors import UsageError
from eval_sidecar.installation import install_command
from eval_sidecar.ledger.ledger import ASKING
from eval_sidecar.system.accounts import configured_key
from eval_sidecar.trackers.base import Tracker
from eval_sidecar.trackers.wandb_checks import check_server, folder_mode


class Reporting(NamedTuple):
    """How a command reports.

    Attributes:
        mode: The W&B mode; None for no W&B at all.
        reason: Why, if the user did not choose it here.
        awaits_key: Whether it is offline only until there is a key.
    """

    mode: Optional[str]
    reason: Optional[str] = None
    awaits_key: bool = False

    @property
    def in_words(self) -> str:
        """`ASKING`, or why nothing goes to the server."""
        if self.mode == "online":
            return ASKING
        return self.reason or self.mode or "off (--disable-wandb)"


def choose_mode(given: Optional[str], disabled: bool, default: Optional[str] = None) -> Reporting:
    """Return how to report, and why.

    Args:
        given: The mode, by flag or variable.
        disabled: Whether W&B is not to be used.
        default: The mode if neither that nor W&B's own command has chosen one; None to decide by the key.

    Raises:
        UsageError: if W&B is wanted and not installed, or its server's address is not valid.
    """
    if disabled or given == "disabled":
        return Reporting(None)
    found = folder_mode() if given is None else None
    if found and found.mode == "disabled":
        return Reporting(
            None,
            f"W&B is switched off in this folder ({found.path}, by `wandb disabled`): nothing is delivered;"
            " `wandb enabled` or --wandb-mode online turns it on",
        )
    if not _has_wandb():
        raise UsageError(
            f"wandb is not installed for this Python: run {install_command('wandb')}, or add"
            " --disable-wandb and deliver later"
        )
    check_server()
    if given is not None:
        return Reporting(given)
    if found and found.mode == "offline":
        return Reporting(
            "offline",
            f"W&B is switched to offline in this folder ({found.path}, by `wandb offline`): nothing reaches"
            " the server; `wandb online` or --wandb-mode online turns it on",
        )
    if default or (found and found.mode == "online"):
        return Reporting(default or "online")
    if configured_key():
        return Reporting("online")
    return Reporting(
        "offline",
        "offline: no key (`wandb login`, or WANDB_API_KEY); online as soon as there is one",
        awaits_key=True,
    )


def _has_wandb() -> bool:
    """Return whether the client can be imported. The folder ``./wandb`` of its runs does not count."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


def open_tracker(flags: TrackerFlags, reporting: Reporting, log: Path) -> Optional[Tracker]:
    """Return the tracker to report to, None without W&B; the client's output goes to the log."""
    if reporting.mode is None:
        return None
    from eval_sidecar.trackers.wandb import WandbSettings, WandbTracker
    from eval_sidecar.trackers.wandb_key import KeyAwaitingTracker

    settings = WandbSettings(
        mode=reporting.mode,
        resume=flags.wandb_resume,
        job_type=flags.wandb_job_type,
        directory=Path(os.path.abspath(os.environ.get("WANDB_DIR") or ".")),
        log=log,
    )
    return KeyAwaitingTracker(settings) if reporting.awaits_key else WandbTracker(settings)
