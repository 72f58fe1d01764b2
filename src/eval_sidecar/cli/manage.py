"""``stop``, ``restart``, ``forget``, ``status`` and ``tail`` of named background instances."""

from __future__ import annotations

import contextlib
import time
from typing import Optional

import click

from eval_sidecar.cli.choosing import choose, is_alive, name_of, takes_name
from eval_sidecar.cli.either import say_started
from eval_sidecar.cli.formats import local_time
from eval_sidecar.cli.launching import launcher_of_old_jobs
from eval_sidecar.cli.restarting import remembered_start
from eval_sidecar.cli.running import manager_folder
from eval_sidecar.cli.show import log_lines
from eval_sidecar.cli.status import instance_facts, instance_json, print_instance
from eval_sidecar.cli.terminal import say, say_json
from eval_sidecar.errors import LockedError, SidecarError, UsageError
from eval_sidecar.evaluation.jobs import detach_jobs
from eval_sidecar.ledger.store import load, open_store
from eval_sidecar.system import instances
from eval_sidecar.system.instances import Instance


@click.command()
@takes_name
def restart(name: Optional[str], instance: Optional[str]) -> None:
    """Stop an instance and start it again, in its folder and with its flags.

    Variables that flags fall back to are as they were at its start; secrets, such as the W&B key, are never
    written down: they are those of this shell.
    """
    chosen = choose(name_of(name, instance))
    again = remembered_start(chosen)
    _stop(chosen)
    pid = instances.start(chosen, again.arguments, cwd=again.cwd, environment=again.environment)
    say_started(chosen, pid)


@click.command()
@takes_name
@click.option("--all", "every", is_flag=True, help="Stop every instance that runs on this machine.")
@click.option(
    "--after-current",
    is_flag=True,
    help="Let running evaluations end first; start no others. Returns at once.",
)
def stop(name: Optional[str], instance: Optional[str], every: bool, after_current: bool) -> int:
    """End an instance with its local evaluations, whose checkpoints stay pending; Slurm jobs go on.

    Without NAME, the only one that runs is meant, in whatever folder it was started.
    """
    end = _finish if after_current else _stop
    if not every:
        end(choose(name_of(name, instance)))
        return 0
    if name is not None:
        raise UsageError(f"--all and {name}: give one of them")
    alive = [one for one in instances.find_instances(manager_folder()) if is_alive(one)]
    if not alive:
        say("no instance runs")
    failed = 0
    for one in alive:
        try:
            end(one)
        except SidecarError as error:
            say(f"eval-sidecar: {error}", err=True)
            failed = 1
    return failed


def _finish(chosen: Instance) -> None:
    pid = instances.finish(chosen)
    if pid is None:
        say(_not_running(chosen))
        return
    running = [
        one.entry.name for model in instance_facts(chosen, time.time()).models for one in model.running
    ]
    after = f"after {', '.join(running)}" if running else "now, as nothing is being evaluated"
    say(f"{_called(chosen)} (pid {pid}) ends {after}")


def _called(instance: Instance) -> str:
    return instance.name if instance.folder == manager_folder() else f"{instance.name} of {instance.folder}"


def _not_running(instance: Instance) -> str:
    return f"{_called(instance)} is not running"


def _stop(chosen: Instance) -> None:
    pid = instances.stop(chosen)
    say(_not_running(chosen) if pid is None else f"stopped {_called(chosen)} (pid {pid})")
    launcher = launcher_of_old_jobs()
    for path in instances.state_files(chosen):
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


@click.command()
@takes_name
def forget(name: Optional[str], instance: Optional[str]) -> None:
    """Remove what is remembered of an instance that does not run; its logs and all results stay."""
    wanted = name_of(name, instance)
    if wanted is None:
        raise UsageError("forget: give the name of an instance")
    chosen = choose(wanted)
    if not instances.read_record(chosen) and not chosen.pid_file.exists():
        raise UsageError(f"{chosen.name}: was never started from {chosen.folder}, or is forgotten already")
    instances.forget(chosen)
    say(f"forgot {_called(chosen)}; its log stays: {chosen.log_file}")


@click.command()
@takes_name
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of instances.")
def status(name: Optional[str], instance: Optional[str], as_json: bool) -> int:
    """Say what an instance does. Exit code 0 if one runs, 3 if none does.

    Without NAME, those of this folder, and those that run and were started from other folders.
    """
    folder, now = manager_folder(), time.time()
    wanted = name_of(name, instance)
    if wanted is not None:
        found = [choose(wanted)]
    else:
        found = [one for one in instances.find_instances(folder) if one.folder == folder or is_alive(one)]
    states = [instance_facts(chosen, now) for chosen in found]
    if as_json:
        say_json([instance_json(state) for state in states])
    else:
        for state in states:
            print_instance(state, now)
        if not states:
            say(f"no instance runs, and none has been started from here ({folder})")
    return 0 if any(state.process for state in states) else 3


@click.command()
@takes_name
@click.option(
    "-n", "--lines", default=50, show_default=True, help="How many of the last lines to begin with."
)
def tail(name: Optional[str], instance: Optional[str], lines: int) -> None:
    """Follow an instance's log for as long as it runs.

    Without NAME, the only one that runs is meant, in whatever folder it was started.
    """
    chosen = choose(name_of(name, instance))
    with contextlib.suppress(OSError):
        found = chosen.log_file.stat()
        if not found.st_size:
            say(f"{chosen.log_file}: nothing new since {local_time(found.st_mtime)}")
    for text in instances.follow_log(chosen, lines):
        log_lines(text)
