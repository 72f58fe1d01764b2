"""``explain`` and ``retry``: one checkpoint's story, and another chance for those that failed."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import click

from eval_sidecar.checkpoints.completeness import changed_at, judge, usual_names
from eval_sidecar.checkpoints.identity import read_identity
from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.checkpoints.places import checkpoint_in, places
from eval_sidecar.cli.flags import PlaceFlags, flag, takes
from eval_sidecar.cli.launching import launcher_of_old_jobs
from eval_sidecar.cli.planning import find_path, state_folder
from eval_sidecar.cli.terminal import say
from eval_sidecar.errors import LockedError, UsageError
from eval_sidecar.evaluation.jobs import give_up_elsewhere, is_elsewhere
from eval_sidecar.ledger.ledger import Entry, Ledger
from eval_sidecar.ledger.requests import leave_request
from eval_sidecar.ledger.status import delivery_state, origin_lines
from eval_sidecar.ledger.store import load, open_store
from eval_sidecar.paths import LedgerPaths, name_in_files
from eval_sidecar.types import Checkpoint, step_of


@dataclass(frozen=True)
class _LedgerFlags(PlaceFlags):
    sft_root: str = flag("", "Folder that holds the checkpoint-* folders.", required=True)

    @property
    def root(self) -> Path:
        return Path(os.path.abspath(self.repo_root))

    @property
    def model_dir(self) -> Path:
        return find_path(self.sft_root, self.root)

    @property
    def model(self) -> str:
        return self.model_name or self.model_dir.name

    @property
    def state_folder(self) -> Path:
        return state_folder(self.state_dir, self.root)


@dataclass(frozen=True)
class _ExplainFlags(_LedgerFlags):
    checkpoint_ready_seconds: float = flag(120.0)


def _step(text: str) -> int:
    step = step_of(text) if not text.isdecimal() else int(text)
    if step is None:
        raise UsageError(f"{text!r}: give a step, such as 500 or checkpoint-500")
    return step


def _find_ledgers(flags: _LedgerFlags) -> list[Path]:
    pattern = f"{glob.escape(name_in_files(flags.model))}_{'[0-9a-f]' * 12}.json"
    return sorted(flags.state_folder.glob(pattern))


@click.command()
@takes(_ExplainFlags)
@click.argument("step")
def explain(flags: _ExplainFlags, step: str) -> int:
    """Say where a checkpoint stands, and how that is known."""
    model_dir, paths, number = flags.model_dir, _find_ledgers(flags), _step(step)
    ledgers = [(path, ledger) for path in paths if (ledger := load(path, keep_corrupt=True)) is not None]
    provable = any(ledger.provable for _, ledger in ledgers)
    known = _explain_folder(flags, number, provable)
    for path, ledger in ledgers:
        if number in ledger.entries:
            known = True
            _explain_entry(ledger, ledger.entries[number], path, _weights_there(model_dir, number))
            if ledger.places and os.path.realpath(model_dir) != ledger.places[0].path:
                say("             which is not this folder: two models of one name? (--model-name)")
    if not known:
        raise UsageError(
            f"checkpoint-{number}: there is no such folder in {model_dir}, and no ledger knows it"
            f" (looked at {', '.join(map(str, paths)) or 'none'})"
        )
    return 0


def _explain_folder(flags: _ExplainFlags, step: int, provable: bool) -> bool:
    """Judge the folder, and its pin, as they are now; return False if there is neither."""
    model_dir = flags.model_dir
    folders = [("folder", model_dir / f"checkpoint-{step}", model_dir / f"checkpoint-{step}")]
    for place in places(model_dir, flags.model, flags.state_folder):
        if place.why_barred() is not None:
            continue
        held, used = (checkpoint_in(folder, step).path for folder in (place.held, place.used))
        folders.append(("pinned", used if used.is_dir() else held, held if held.is_dir() else used))
    found = False
    for what, shown, judged in folders:
        if not judged.is_dir():
            continue
        found = True
        verdict = judge(
            Checkpoint(step, judged),
            quiet_seconds=flags.checkpoint_ready_seconds,
            unchanged_seconds=_unchanged(judged),
            trainer_state_expected=provable,
            usual=usual_names([other.path for other in list_checkpoints(model_dir) if other.step != step]),
        )
        say(f"{what:<12} {shown}")
        say(f"verdict      {verdict.name}")
        for fact in verdict.evidence:
            say(f"  - {fact}")
    return found


def _unchanged(folder: Path) -> float:
    try:
        return time.time() - changed_at(folder)
    except OSError:
        return 0.0  # the verdict says what cannot be read


def _weights_there(model_dir: Path, step: int) -> Optional[str]:
    try:
        return read_identity(checkpoint_in(model_dir, step).path)
    except OSError:
        return None  # deleted, or not to be read, which the verdict says


def _explain_entry(ledger: Ledger, entry: Entry, path: Path, there: Optional[str]) -> None:
    where = f", of {ledger.places[0]}" if ledger.places else ""
    say(f"ledger       {path}{where}")
    if entry.first_seen:
        say(f"first seen   {entry.first_seen}, last verdict {entry.verdict}")
        for fact in entry.evidence:
            say(f"  - {fact}")
    if entry.running:
        say(f"evaluation   running since {time.ctime(entry.running.started_at)}, log: {entry.running.log}")
        if entry.running.state:
            say(f"             {entry.running.state}")
    for reason in entry.evictions:
        say(f"interrupted  {reason}")
    if ledger.busy and entry.is_pending and not entry.running:
        say(f"not started  {ledger.busy}")
    if entry.failure:
        then = "final until `eval-sidecar retry`" if entry.failure.final else "will retry"
        say(f"failure      {entry.failure.time}: {entry.failure.error} ({entry.attempts} attempts, {then})")
        if entry.failure.log:
            say(f"             log: {entry.failure.log}")
    if entry.content:
        say(f"weights      {entry.content.identity}, saved {entry.content.since}")
        if there not in (None, entry.content.identity):
            say(f"             the folder holds others now: {there}")
    if entry.result:
        say(f"result       {entry.result.path}")
        for line in origin_lines(ledger, entry, there):
            say(f"             {line}")
        say("             " + ", ".join(f"{key} {value:g}" for key, value in entry.result.metrics.items()))
        for name in entry.result.left_out:
            say(f"left out     {name}")
    if entry.delivery:
        status = delivery_state(entry) if entry.result else entry.delivery.status
        row = f", row {entry.delivery.index}" if entry.delivery.index is not None else ""
        how = f" ({entry.delivery.via})" if entry.delivery.via else ""
        say(f"delivery     {status}, revision {entry.delivery.revision}{row}, run {ledger.run_id}{how}")


@click.command()
@takes(_LedgerFlags)
@click.argument("steps", nargs=-1)
def retry(flags: _LedgerFlags, steps: Sequence[str]) -> int:
    """Clear the failures of these checkpoints, or of all, so that they are evaluated again.

    A checkpoint that is named is also given up if its evaluation runs, or did, on another machine.
    """
    paths = _find_ledgers(flags)
    numbers = [_step(step) for step in steps]
    if not paths:
        raise UsageError(f"{flags.model_dir}: there is no ledger of it in {flags.state_folder}")
    ledgers = [(path, ledger) for path in paths if (ledger := load(path, keep_corrupt=True)) is not None]
    unknown = [number for number in numbers if not any(number in ledger.entries for _, ledger in ledgers)]
    if unknown:
        raise UsageError(
            f"step {', '.join(map(str, unknown))}: no ledger knows it"
            f" (looked at {', '.join(map(str, paths))}); nothing was cleared"
        )
    launcher = launcher_of_old_jobs()
    for path, ledger in ledgers:
        given_up = {
            entry.step for entry in ledger.steps() if entry.step in numbers and is_elsewhere(entry, launcher)
        }
        cleared = [
            entry.name
            for entry in ledger.steps()
            if entry.step in given_up or (entry.failure and (not numbers or entry.step in numbers))
        ]
        try:
            with open_store(path, ledger.model_dir, ledger.run_id, ledger.run_name) as store:
                give_up_elsewhere(store, launcher, given_up)
                store.update(lambda now: now.cleared(numbers or None))
        except LockedError:
            _ask_holder(LedgerPaths(path).retry_request, numbers)
            say("the running sidecar takes it from here")
        say(f"cleared: {', '.join(cleared) or 'nothing had failed'}")
    return 0


def _ask_holder(request: Path, numbers: list[int]) -> None:
    """Leave a request, together with one that has not been taken yet. An empty one means every step."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        waiting = json.loads(request.read_bytes())
        numbers = sorted({*waiting, *numbers}) if waiting and numbers else []
    leave_request(request, numbers)
