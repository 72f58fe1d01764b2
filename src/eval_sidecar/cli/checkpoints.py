"""``explain`` and ``retry``: where a checkpoint stands and why, and new attempts for failed ones."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from eval_sidecar.cli.explaining import print_story
from eval_sidecar.cli.flags import PlaceFlags, flag, takes
from eval_sidecar.cli.launching import launcher_of_old_jobs
from eval_sidecar.cli.planning import find_path, state_folder
from eval_sidecar.cli.terminal import say, say_json
from eval_sidecar.errors import LockedError, UsageError
from eval_sidecar.evaluation.jobs import give_up_elsewhere, is_elsewhere
from eval_sidecar.ledger.requests import leave_request
from eval_sidecar.ledger.store import load, open_store
from eval_sidecar.paths import LedgerPaths, name_in_files
from eval_sidecar.report.story import story_json, tell
from eval_sidecar.types import step_of


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("step")
def explain(flags: _ExplainFlags, as_json: bool, step: str) -> int:
    """Say where a checkpoint stands, and how that is known."""
    paths, number = _find_ledgers(flags), _step(step)
    story = tell(
        flags.model_dir,
        flags.model,
        flags.state_folder,
        number,
        [(path, ledger) for path in paths if (ledger := load(path, keep_corrupt=True)) is not None],
        flags.checkpoint_ready_seconds,
        time.time(),
    )
    if not story.folders and not story.known:
        raise UsageError(
            f"checkpoint-{number}: there is no such folder in {flags.model_dir}, and no ledger knows it"
            f" (looked at {', '.join(map(str, paths)) or 'none'})"
        )
    if as_json:
        say_json(story_json(story))
    else:
        print_story(story)
    return 0


@click.command()
@takes(_LedgerFlags)
@click.argument("steps", nargs=-1)
def retry(flags: _LedgerFlags, steps: Sequence[str]) -> int:
    """Clear the failures of these checkpoints, or of all, so that they are evaluated again.

    If the evaluation of a named checkpoint runs, or ran, on another machine, it is abandoned.
    """
    paths = _find_ledgers(flags)
    numbers = [_step(step) for step in steps]
    if not paths:
        raise UsageError(f"{flags.model_dir}: there is no ledger for it in {flags.state_folder}")
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
            say("the running sidecar has been asked and will retry")
        say(f"cleared: {', '.join(cleared) or 'nothing had failed'}")
    return 0


def _ask_holder(request: Path, numbers: list[int]) -> None:
    """Leave a request, merged with one that is still waiting. An empty request means every step."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        waiting = json.loads(request.read_bytes())
        numbers = sorted({*waiting, *numbers}) if waiting and numbers else []
    leave_request(request, numbers)
