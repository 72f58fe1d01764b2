"""Settings of the W&B client in our sessions: quiet, and never waiting for long. Imports no wandb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def quiet_settings(timeouts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for sessions that collect nothing about the machine and give up in bounded time."""
    settings: dict[str, Any] = {
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "init_timeout": timeouts["init"],
        "silent": True,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_viewer": True,
        "x_graphql_timeout_seconds": timeouts["request"],
        "x_file_stream_timeout_seconds": timeouts["request"],
        "x_file_transfer_timeout_seconds": timeouts["request"],
        "x_save_requirements": False,
    }
    for kind in ("graphql", "file_stream", "file_transfer"):
        settings[f"x_{kind}_retry_max"] = timeouts["retries"]
        settings[f"x_{kind}_retry_wait_min_seconds"] = timeouts["retry_wait"]
        settings[f"x_{kind}_retry_wait_max_seconds"] = 10 * timeouts["retry_wait"]
    return settings
