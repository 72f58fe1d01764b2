"""What `restart` needs: how an instance was started, remembered in its record without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from eval_sidecar.errors import DaemonError
from eval_sidecar.system.instances import Instance, read_record
from eval_sidecar.system.redaction import without_secrets

#: Variables that decide where points go, beside those of the flags.
_OF_WANDB = ("WANDB_BASE_URL", "WANDB_DIR")
#: A variable with a secret, as ``--slurm-extra export=NAME=VALUE`` may have it.
_SECRET = re.compile(r"\b[A-Z0-9_]*(KEY|TOKEN|SECRET|PASSWORD)[A-Z0-9_]*=")


@dataclass(frozen=True)
class Start:
    """How an instance was started.

    Attributes:
        arguments: Its command line, from the command on.
        cwd: The folder that it was started in.
        environment: Its variables: those of this process, but for the ones that flags fall back to.
    """

    arguments: tuple[str, ...]
    cwd: Path
    environment: Mapping[str, str]


def start_of(context: click.Context) -> dict[str, Any]:
    """Return how this process was started, as plain JSON; a secret is left out, and its absence noted."""
    words = list(context.find_root().obj or ())
    variables = {name: os.environ[name] for name in _variables(context) if name in os.environ}
    left_out = [name for name, value in variables.items() if _is_secret(value)]
    left_out += ["a flag"] if any(map(_is_secret, words)) else []
    return {
        "arguments": [] if "a flag" in left_out else words,
        "cwd": str(Path.cwd()),
        "environment": {name: value for name, value in variables.items() if name not in left_out},
        "variables": sorted({*_variables(context)}),
        "left_out": left_out,
    }


def remembered_start(instance: Instance) -> Start:
    """Return how an instance was started last.

    Raises:
        DaemonError: if that is not known, or cannot be done again.
    """
    record = read_record(instance)
    name = f"instance {instance.name}"
    if record.get("left_out"):
        raise DaemonError(
            f"{name}: {', '.join(record['left_out'])} held a secret when it was started, which is not written"
            " down; start it again with its flags"
        )
    if not record.get("arguments"):
        raise DaemonError(f"{name}: how it was started is not known; start it again with its flags")
    cwd = Path(record["cwd"])
    if not cwd.is_dir():
        raise DaemonError(f"{name}: {cwd}, where it was started, is not a folder any more")
    kept = {key: value for key, value in os.environ.items() if key not in record["variables"]}
    environment = {**kept, **record["environment"], "MANAGER_DIR": str(instance.folder)}
    return Start(tuple(record["arguments"]), cwd, environment)


def _variables(context: click.Context) -> Iterator[str]:
    """Yield the variables that decide what the command does: this shell's may be others than that one's."""
    for parameter in context.command.params:
        if isinstance(parameter.envvar, str):
            yield parameter.envvar
    yield from _OF_WANDB


def _is_secret(text: str) -> bool:
    return without_secrets(text) != text or _SECRET.search(text) is not None
