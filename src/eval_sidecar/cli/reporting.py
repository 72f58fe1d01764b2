"""Which tracker a command reports to, by its flags and by what is configured."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import click

from eval_sidecar.errors import UsageError
from eval_sidecar.installation import install_command
from eval_sidecar.system.accounts import configured_key
from eval_sidecar.trackers.base import Tracker
from eval_sidecar.trackers.wandb_checks import check_server, folder_mode

#: What ``--wandb-mode`` takes; its variable is W&B's own, which has other words for the same.
MODE_METAVAR = "[online|offline|disabled]"
_MODES = {
    **{mode: mode for mode in ("online", "offline", "disabled")},
    **{"dryrun": "offline", "run": "online", "shared": "online"},
}


def parse_mode(_ctx: click.Context, _param: click.Parameter, value: Optional[str]) -> Optional[str]:
    """The callback of ``--wandb-mode``."""
    if not value:
        return None
    mode = _MODES.get(value.strip().lower())
    if mode is None:
        raise click.BadParameter(f"{value!r} is not one of 'online', 'offline', 'disabled'.")
    return mode


def choose_mode(
    given: Optional[str], disabled: bool, default: Optional[str] = None
) -> tuple[Optional[str], Optional[str]]:
    """The W&B mode, None for no W&B at all; and why, where the user did not choose it here.

    Args:
        given: The mode, by flag or variable.
        disabled: Whether W&B is not to be used.
        default: Where neither that nor W&B's own command has chosen one; None to go by the key.

    Raises:
        UsageError: where W&B is wanted and not installed, or its server's address is none.
    """
    if disabled or given == "disabled":
        return None, None
    found = folder_mode() if given is None else None
    if found and found.mode == "disabled":
        return None, (
            f"W&B is switched off in this folder ({found.path}, by `wandb disabled`): nothing is delivered;"
            " `wandb enabled` or --wandb-mode online turns it on"
        )
    if not _has_wandb():
        raise UsageError(
            f"wandb is not installed for this Python: run {install_command('wandb')}, or add"
            " --disable-wandb and deliver later"
        )
    check_server()
    if given is not None:
        return given, None
    if found and found.mode == "offline":
        return "offline", (
            f"W&B is switched to offline in this folder ({found.path}, by `wandb offline`): nothing reaches"
            " the server; `wandb online` or --wandb-mode online turns it on"
        )
    if default or (found and found.mode == "online"):
        return default or "online", None
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
