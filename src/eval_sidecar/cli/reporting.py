"""Which tracker a command reports to, by its flags and by what is configured."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.errors import UsageError
from eval_sidecar.installation import install_command
from eval_sidecar.texts import configured_key
from eval_sidecar.trackers.base import Tracker


def choose_mode(given: Optional[str], disabled: bool) -> tuple[Optional[str], Optional[str]]:
    """The W&B mode, None for no W&B at all; and why, where the user did not choose it.

    Raises:
        UsageError: where W&B is wanted and not installed.
    """
    if disabled or given == "disabled":
        return None, None
    if not _has_wandb():
        raise UsageError(
            f"wandb is not installed for this Python: run {install_command('wandb')}, or add"
            " --disable-wandb and deliver later"
        )
    if given is not None:
        return given, None
    if configured_key():
        return "online", None
    return "offline", (
        "no W&B key is configured (WANDB_API_KEY or `wandb login`): reporting offline;"
        " a later pass with a key delivers everything"
    )


def _has_wandb() -> bool:
    """Whether the client can be imported. The folder ``./wandb`` that its runs leave is not it."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


def open_tracker(flags: Mapping[str, Any], mode: Optional[str], log: Path) -> Optional[Tracker]:
    """The tracker for a mode, or None where there is none; the client's output goes to the log."""
    if mode is None:
        return None
    from eval_sidecar.trackers.wandb import WandbSettings, WandbTracker

    settings = WandbSettings(
        mode=mode,
        resume=flags["wandb_resume"],
        job_type=flags["wandb_job_type"],
        directory=Path(os.path.abspath(os.environ.get("WANDB_DIR") or ".")),
        log=log,
    )
    return WandbTracker(settings)
