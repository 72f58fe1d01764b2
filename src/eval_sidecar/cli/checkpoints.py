"""``explain`` and ``retry``: one checkpoint's story, and another chance for those that failed."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import click

from eval_sidecar.cli.explaining import print_story
from eval_sidecar.cli.launching import launcher_of_old_jobs
from eval_sidecar.cli.options import find_path, state_folder
from eval_sidecar.cli.terminal import say, say_json
from eval_sidecar.errors import LockedError, UsageError
from eval_sidecar.evaluation.attempt import give_up_elsewhere, is_elsewhere
from eval_sidecar.ledger.requests import leave_request
from eval_sidecar.ledger.store import load, name_in_files, open_store
from eval_sidecar.report.story import story_json, tell
from eval_sidecar.types import step_of

_common = (
    click.option("--sft-root", required=True, help="Folder that holds the checkpoint-* folders."),
    click.option("--repo-root", default=".", show_default=True),
    click.option("--state-dir", help="[default: state/wandb_eval_sidecar in REPO_ROOT]"),
    click.option("--model-name", help="[default: the name of SFT_ROOT's last part]"),
)


def _step(text: str) -> int:
    step = step_of(text) if not text.isdecimal() else int(text)
    if step is None:
        raise UsageError(f"{text!r}: give a step, such as 500 or checkpoint-500")
    return step


def _find_ledgers(
    sft_root: str, repo_root: str, state_dir: Optional[str], model_name: Optional[str]
) -> tuple[Path, list[Path]]:
    root = Path(os.path.abspath(repo_root))
    model_dir = find_path(sft_root, root)
    folder = state_folder(state_dir, root)
    pattern = f"{glob.escape(name_in_files(model_name or model_dir.name))}_{'[0-9a-f]' * 12}.json"
    return model_dir, sorted(folder.glob(pattern))


@click.command()
@_common[0]
@_common[1]
@_common[2]
@_common[3]
@click.option("--checkpoint-ready-seconds", type=float, default=120.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("step")
def explain(
    sft_root: str,
    repo_root: str,
    state_dir: Optional[str],
    model_name: Optional[str],
    checkpoint_ready_seconds: float,
    as_json: bool,
    step: str,
) -> int:
    """Say where a checkpoint stands, and how that is known."""
    model_dir, paths = _find_ledgers(sft_root, repo_root, state_dir, model_name)
    number = _step(step)
    story = tell(
        model_dir,
        model_name or model_dir.name,
        state_folder(state_dir, Path(os.path.abspath(repo_root))),
        number,
        [(path, ledger) for path in paths if (ledger := load(path, keep_corrupt=True)) is not None],
        checkpoint_ready_seconds,
        time.time(),
    )
    if not story.folders and not story.known:
        raise UsageError(
            f"checkpoint-{number}: there is no such folder in {model_dir}, and no ledger knows it"
            f" (looked at {', '.join(map(str, paths)) or 'none'})"
        )
    if as_json:
        say_json(story_json(story))
    else:
        print_story(story)
    return 0


@click.command()
@_common[0]
@_common[1]
@_common[2]
@_common[3]
@click.argument("steps", nargs=-1)
def retry(
    sft_root: str,
    repo_root: str,
    state_dir: Optional[str],
    model_name: Optional[str],
    steps: Sequence[str],
) -> int:
    """Clear the failures of these checkpoints, or of all, so that they are evaluated again.

    A checkpoint that is named is also given up where its evaluation runs, or did, on another machine.
    """
    model_dir, paths = _find_ledgers(sft_root, repo_root, state_dir, model_name)
    numbers = [_step(step) for step in steps]
    if not paths:
        raise UsageError(
            f"{model_dir}: there is no ledger of it in {state_folder(state_dir, Path(repo_root))}"
        )
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
            _ask_holder(path.with_suffix(".retry"), numbers)
            say("the running sidecar takes it from here")
        say(f"cleared: {', '.join(cleared) or 'nothing had failed'}")
    return 0


def _ask_holder(request: Path, numbers: list[int]) -> None:
    """Leave a request, together with one that has not been taken yet. An empty one means every step."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        waiting = json.loads(request.read_bytes())
        numbers = sorted({*waiting, *numbers}) if waiting and numbers else []
    leave_request(request, numbers)
