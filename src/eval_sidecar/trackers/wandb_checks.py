"""What of flags, shell and working folder W&B would refuse, or has switched off; said at once.

Imports no wandb: the client words these things its own way, each only after an evaluation or a timeout.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Optional
from urllib.parse import urlsplit

from eval_sidecar.errors import UsageError
from eval_sidecar.system.accounts import CLOUD, folder_settings
from eval_sidecar.types import ModelSpec

#: What the server takes in the name of a run or project, and in a run id, in characters.
_LONGEST = 128
#: Hosts of the cloud that show pages, and answer no client.
_PAGES = ("wandb.ai", "www.wandb.ai", "app.wandb.ai")
_BAD_IN_ID = ":;,#?/'\\"
_BAD_IN_PROJECT = "/\\#?%:"

#: Variables of a training in the same shell, about its own run and its own process. With them, our runs would
#: be its runs, or would not be opened. What is about the account, the server and the network stays.
_NOT_OURS = re.compile(
    r"WANDB_(?:SERVICE|RUN_.*|NAME|NOTES|DESCRIPTION|TAGS|JOB_TYPE|JOB_NAME|RESUME.*|FORK_FROM|REINIT|MODE|DISABLED"
    r"|DISABLE_.*|DIR|ROOT_DIR|SWEEP_.*|AGENT_.*|LAUNCH.*|ARTIFACTS|CONFIG_PATHS|CONSOLE.*|START_METHOD|SILENT|QUIET"
    r"|PROGRAM.*|ARGS|SAVE_CODE|CODE_DIR|GIT_.*|DOCKER|HOST|JUPYTER|NOTEBOOK_NAME|MAGIC|WATCH|LOG_MODEL|INIT_TIMEOUT"
    r"|INIT_POLICY|SHOW_.*|SYNC_.*|STRICT|ANONYMOUS|SETTINGS_.*|INITED|_REQUIRE_.*|_(?!EXTRA_HTTP).*"
    r"|X_(?!EXTRA_HTTP).*)"
)


def is_ours(variable: str) -> bool:
    """Return whether a variable of the shell may reach our client."""
    return _NOT_OURS.fullmatch(variable) is None


def check_server(environment: Mapping[str, str] = os.environ) -> None:
    """Check the server's address.

    Raises:
        UsageError: if it is not one.
    """
    given = environment.get("WANDB_BASE_URL")
    if not given:
        return
    shown = re.sub(r"//[^/@]*@", "//***@", given)
    try:
        parts = urlsplit(given)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        parts, sound = None, False
    if parts is not None and parts.hostname in _PAGES:
        raise UsageError(
            f"WANDB_BASE_URL {shown!r}: is where W&B's pages are, not its server: unset it for {CLOUD}"
        )
    if sound and not re.search(r"\s", given):
        return
    plain = given.strip(" \t\r\n\"'")
    bare = plain.partition("://")[2] or plain.lstrip("/")
    local = re.match(r"(?:localhost|127\.|10\.|192\.168\.|[^/]*:\d+)", bare)
    advice = f"{'http' if local else 'https'}://{re.sub(r'^[^/@]*@', '', bare)}"
    raise UsageError(
        f"WANDB_BASE_URL {shown!r}: is not the address of a server, which begins with https:// or http://:"
        f" set WANDB_BASE_URL={advice}, or unset it for {CLOUD}"
    )


def check_runs(specs: Iterable[ModelSpec]) -> list[str]:
    """Check the names that the server is given.

    Returns:
        What is changed about them, one line each.

    Raises:
        UsageError: naming every one that it would refuse, and what to do.
    """
    wrong: dict[str, None] = {}
    changed: dict[str, None] = {}
    for spec in specs:
        for line in (_wrong_project(spec.project), _wrong_entity(spec.entity), _wrong_id(spec)):
            if line:
                wrong[line] = None
        if display_name(spec.run_name) != spec.run_name:
            changed[
                f"{spec.model_dir}: its run is called {display_name(spec.run_name)!r}, since W&B takes"
                f" names of at most {_LONGEST} characters; --wandb-run-name gives another"
            ] = None
    if wrong:
        raise UsageError("; ".join(wrong))
    return list(changed)


def display_name(name: str) -> str:
    """Return a run's name as the server takes it: a long one is cut and gets a hash of the whole name."""
    if len(name) <= _LONGEST:
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: _LONGEST - 9]}~{mark}"


def _wrong_project(project: str) -> Optional[str]:
    bad = sorted({char for char in project if char in _BAD_IN_PROJECT})
    if bad or not project.strip() or len(project) > _LONGEST:
        why = f"holds {' '.join(bad)}" if bad else f"has {len(project)} characters"
        entity = " (an entity goes to --wandb-entity)" if "/" in bad else ""
        return (
            f"--wandb-project {project!r} (or WANDB_PROJECT, or wandb_project in the manifest): {why};"
            f" W&B takes 1 to {_LONGEST} characters and none of {' '.join(_BAD_IN_PROJECT)}{entity}"
        )
    return None


def _wrong_entity(entity: Optional[str]) -> Optional[str]:
    if entity and (re.search(r"[/\\#?%:\s]", entity) or len(entity) > _LONGEST):
        return (
            f"--wandb-entity {entity!r} (or WANDB_ENTITY, or wandb_entity in the manifest): is not the"
            " name of a W&B user or team; the project goes to --wandb-project"
        )
    return None


def why_bad_id(run_id: str) -> Optional[str]:
    """Return why W&B refuses a run id; None if it takes it."""
    bad = sorted({char for char in run_id if char in _BAD_IN_ID or not char.isprintable()})
    if not bad and run_id.strip() == run_id and 0 < len(run_id) <= _LONGEST:
        return None
    why = f"holds {' '.join(map(ascii, bad))}" if bad else f"has {len(run_id)} characters or blanks at an end"
    return f"{why}; W&B refuses all but 1 to {_LONGEST} characters, and any of {' '.join(_BAD_IN_ID)}"


def _wrong_id(spec: ModelSpec) -> Optional[str]:
    why = why_bad_id(spec.run_id)
    shown = spec.run_id if len(spec.run_id) <= _LONGEST else f"{spec.run_id[:40]}…"
    source = "--wandb-run-id, or wandb_run_id in the manifest"
    return f"{spec.model_dir}: run id {shown!r} ({source}): {why}" if why else None


class FolderMode(NamedTuple):
    """What W&B's own commands have switched in a folder.

    Attributes:
        mode: ``online``, ``offline`` or ``disabled``.
        path: The file that says so.
    """

    mode: str
    path: Path


def folder_mode(environment: Mapping[str, str] = os.environ) -> Optional[FolderMode]:
    """Return what ``wandb offline`` or ``wandb disabled`` have written for this folder; None if nothing.

    The client itself would not see it: its folder is one of our own.
    """
    for path, section in folder_settings(environment):
        mode = section.get("mode", "").strip().lower()
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
        if section.get("disabled", "").strip().lower() in ("true", "1"):  # older clients wrote that
            mode = "disabled"
        if mode in ("online", "offline", "disabled"):
            return FolderMode(mode, path)
    return None
