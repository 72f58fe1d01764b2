"""``start``, ``stop``, ``status`` and ``tail`` of named background instances."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import click

from eval_sidecar.cli.destination import say_destination
from eval_sidecar.cli.formats import local_time
from eval_sidecar.cli.launching import launcher_of_old_jobs
from eval_sidecar.cli.running import manager_folder
from eval_sidecar.cli.status import instance_facts, instance_json, print_instance
from eval_sidecar.cli.terminal import say, say_json, say_lines
from eval_sidecar.errors import LockedError
from eval_sidecar.evaluation.jobs import detach_jobs
from eval_sidecar.ledger.store import load, open_store
from eval_sidecar.system import instances
from eval_sidecar.system.instances import Instance

_instance_option = click.option("--instance", envvar="INSTANCE", default="default", show_default=True)
#: Flags that commands of the first scripts were given and that mean nothing to these. Without -h: the value
#: of such a flag may begin with a dash, and any "h" in it would ask for help.
_LENIENT: dict[str, Any] = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": ["--help"],
}


class _Lenient(click.Command):
    """A command that ignores flags it does not know."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--help"] if "-h" in args else args)


@click.command(cls=_Lenient, context_settings=_LENIENT)
@_instance_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def start(instance: str, arguments: Sequence[str]) -> None:
    """Run in the background, with the flags of `run`; returns after the first pass."""
    chosen = Instance(instance, manager_folder())
    pid = instances.start(chosen, ["run", "--instance", instance, *arguments])
    say(f"started {instance} (pid {pid}), log: {chosen.log_file}")
    for model in instance_facts(chosen, time.time()).models:
        if model.ledger.busy:
            say(f"not started: {model.ledger.busy}", fg="yellow")
        for warning in model.warnings:
            say(f"warning: {warning}", fg="yellow")
    say_destination(chosen)


@click.command(cls=_Lenient, context_settings=_LENIENT)
@_instance_option
def stop(instance: str) -> None:
    """End an instance with its local evaluations, whose checkpoints stay pending; Slurm jobs go on."""
    chosen = Instance(instance, manager_folder())
    pid = instances.stop(chosen)
    say(f"{instance} is not running" if pid is None else f"stopped {instance} (pid {pid})")
    launcher = launcher_of_old_jobs()
    for path in _state_files(chosen):
        ledger = load(path, keep_corrupt=True)
        if ledger is None or all(entry.running is None for entry in ledger.steps()):
            continue
        # If another sidecar holds the ledger, they are that one's.
        with (
            contextlib.suppress(LockedError),
            open_store(path, ledger.model_dir, ledger.run_id, ledger.run_name) as store,
        ):
            for _, sentence in detach_jobs(store, launcher):
                say(sentence)


def _state_files(instance: Instance) -> list[Path]:
    return [Path(path) for path in instances.read_record(instance).get("state_files", [])]


@click.command(cls=_Lenient, context_settings=_LENIENT)
@click.option("--instance", envvar="INSTANCE", help="[default: all of them]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of instances.")
def status(instance: Optional[str], as_json: bool) -> int:
    """Say what an instance does. Exit code 0 if one runs, 3 if none does."""
    folder, now = manager_folder(), time.time()
    found = [Instance(instance, folder)] if instance else instances.list_instances(folder)
    states = [instance_facts(chosen, now) for chosen in found]
    if as_json:
        say_json([instance_json(state) for state in states])
    else:
        for state in states:
            print_instance(state, now)
        if not states:
            say(f"no instance has been started from here ({folder})")
    return 0 if any(state.process for state in states) else 3


@click.command(cls=_Lenient, context_settings=_LENIENT)
@_instance_option
@click.option(
    "-n", "--lines", default=50, show_default=True, help="How many of the last lines to begin with."
)
def tail(instance: str, lines: int) -> None:
    """Follow an instance's log for as long as it runs."""
    chosen = Instance(instance, manager_folder())
    with contextlib.suppress(OSError):
        found = chosen.log_file.stat()
        if not found.st_size:
            say(f"{chosen.log_file}: nothing new since {local_time(found.st_mtime)}")
    for text in instances.follow_log(chosen, lines):
        say_lines(text)
