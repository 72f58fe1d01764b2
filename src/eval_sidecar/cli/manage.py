"""``start``, ``stop``, ``status`` and ``tail`` of named background instances."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import click

from eval_sidecar.cli import show
from eval_sidecar.cli.launching import launcher_of_old_jobs
from eval_sidecar.cli.running import manager_folder
from eval_sidecar.cli.terminal import say, say_json, say_lines
from eval_sidecar.errors import LockedError, StateError
from eval_sidecar.evaluation.jobs import detach_jobs
from eval_sidecar.ledger.status import describe, list_origins, settings_line
from eval_sidecar.ledger.store import load, open_store
from eval_sidecar.system import instances
from eval_sidecar.system.instances import Instance
from eval_sidecar.system.process import machine_elsewhere

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
    for model in _state(chosen)["models"]:
        if model.get("busy"):
            say(f"not started: {model['busy']}", fg="yellow")
        for warning in model.get("warnings", ()):
            say(f"warning: {warning}", fg="yellow")


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(instance: Optional[str], as_json: bool) -> int:
    """Say what an instance does. Exit code 0 where one runs, 3 where none does."""
    folder = manager_folder()
    found = [Instance(instance, folder)] if instance else instances.list_instances(folder)
    states = [_state(chosen) for chosen in found]
    if as_json:
        shown = (states[0] if states else {}) if instance else states
        say_json(shown)
    else:
        for state in states:
            _print_state(state)
        if not states:
            say(f"no instance has been started from here ({folder})")
    return 0 if any(state["running"] for state in states) else 3


def _state(instance: Instance) -> dict[str, Any]:
    process = instances.find_process(instance)
    record = instances.read_record(instance)
    models: list[dict[str, Any]] = []
    for path in _state_files(instance):
        try:
            ledger = load(path, keep_corrupt=True)
        except StateError as error:
            models.append({"model": path.stem, "problem": str(error)})
            continue
        if ledger is not None:
            models.append(
                {
                    **describe(ledger, path),
                    "checkpoints": list_origins(ledger),
                    "settings": dict(ledger.settings),
                    "settings_changed": settings_line(ledger),
                }
            )
    return {
        "instance": instance.name,
        "running": process is not None,
        "known": bool(record) or instance.log_file.exists(),
        "host": record.get("host"),
        "pid": process.pid if process else None,
        "elsewhere": machine_elsewhere(record) if instance.pid_file.exists() else None,
        "since": process.started if process else None,
        "log": str(instance.log_file),
        "models": models,
    }


def _print_state(state: dict[str, Any]) -> None:
    if state["running"]:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state["since"]))
        say(f"{state['instance']}: running (pid {state['pid']}) since {since}", fg="green")
    elif not state["known"]:
        where = Path(state["log"]).parent
        say(f"{state['instance']}: not running, and was never started from here ({where})", fg="yellow")
        return
    else:
        host = state["elsewhere"]
        there = f" here; it was started on {host}, ask there" if host else ""
        say(f"{state['instance']}: not running{there}", fg="yellow")
    for model in state["models"]:
        if "problem" in model:
            say(f"  {model['problem']}", fg="red")
            continue
        say(f"  {model['model']}: {show.counts_line(model)}")
        for job in model["running"]:
            say(f"    {_job_line(job, alone=not state['running'])}")
        for waiting in model["waiting"]:
            pinned = ", pinned" if waiting["pinned"] else ""
            other = ", its result is of other weights" if waiting["checkpoint"] in model["superseded"] else ""
            say(
                f"    waiting {waiting['checkpoint']} ({waiting['verdict']}{pinned}{other})"
                f"{_interrupted(waiting)}"
            )
        if model["settings_changed"]:
            say(f"    {model['settings_changed']}", fg="yellow")
        if model["busy"] and (state["running"] or model["paused"]):
            say(f"    not started: {model['busy']}", fg="yellow")
        for warning in model["warnings"] if state["running"] else ():
            say(f"    warning: {warning}", fg="yellow")
        if model["last_error"]:
            say(f"    last error: {model['last_error']}", fg="red")
        say(f"    ledger {model['state_file']}")
        say(f"    W&B run {model['run_id']}: {model['where'] or 'no session yet'}")
    say(f"  log {state['log']}")


def _interrupted(waiting: dict[str, Any]) -> str:
    reasons = waiting["evictions"]
    return f": interrupted {len(reasons)} times, last {reasons[-1]}" if reasons else ""


def _job_line(job: dict[str, Any], *, alone: bool) -> str:
    took = f"for {max(0, time.time() - job['started_at']):.0f} s"
    if job["state"] is None:
        left = " (left behind: start goes on with it, stop ends it)" if alone else ""
        return f"evaluating {job['checkpoint']} {took}, log: {job['log']}{left}"
    left = " (as last seen; start collects it)" if alone else ""
    return f"{job['checkpoint']}: {job['state']} {took}, log: {job['log']}{left}"


@click.command(cls=_Lenient, context_settings=_LENIENT)
@_instance_option
@click.option(
    "-n", "--lines", default=50, show_default=True, help="How many of the last lines to begin with."
)
def tail(instance: str, lines: int) -> None:
    """Follow an instance's log for as long as it runs."""
    for text in instances.follow_log(Instance(instance, manager_folder()), lines):
        say_lines(text)
