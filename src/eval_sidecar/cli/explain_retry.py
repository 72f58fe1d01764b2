"""``explain`` and ``retry``: one checkpoint's story, and another chance for those that failed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import click

from eval_sidecar.cli.choosing import choose, name_of
from eval_sidecar.cli.explaining import print_story
from eval_sidecar.cli.flags import PlaceFlags, flag, takes
from eval_sidecar.cli.launching import launcher_of_old_jobs
from eval_sidecar.cli.planning import find_path, state_folder
from eval_sidecar.cli.terminal import say, say_json
from eval_sidecar.errors import LockedError, UsageError
from eval_sidecar.evaluation.jobs import give_up_elsewhere, is_elsewhere
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.requests import leave_request
from eval_sidecar.ledger.store import find_ledgers, load, open_store
from eval_sidecar.paths import LedgerPaths
from eval_sidecar.report.story import story_json, tell
from eval_sidecar.system.instances import state_files
from eval_sidecar.types import step_of


@dataclass(frozen=True)
class _LedgerFlags(PlaceFlags):
    sft_root: Optional[str] = flag(help="Folder that holds the checkpoint-* folders; instead of NAME.")


@dataclass(frozen=True)
class _ExplainFlags(_LedgerFlags):
    checkpoint_ready_seconds: float = flag(
        120.0, "Quiet period of a checkpoint that cannot be proved complete."
    )


@dataclass(frozen=True)
class _Model:
    """A model that is asked about: its folder, its name, where its ledgers are, and those that are there."""

    folder: Path
    name: str
    state_dir: Path
    ledgers: tuple[tuple[Path, Ledger], ...]


_instance_option = click.option("--instance", envvar="INSTANCE", help="The same as NAME.")


def _step(text: str) -> int:
    step = step_of(text) if not text.isdecimal() else int(text)
    if step is None:
        raise UsageError(f"{text!r}: give a step, such as 500 or checkpoint-500")
    return step


def _split(words: Sequence[str], flags: _LedgerFlags) -> tuple[Optional[str], list[int]]:
    """Return an instance's name and steps: the first word is a name if it cannot be a step."""
    if flags.sft_root is None and words and not (words[0].isdecimal() or step_of(words[0]) is not None):
        return words[0], list(map(_step, words[1:]))
    return None, list(map(_step, words))


def _find_models(flags: _LedgerFlags, name: Optional[str], instance: Optional[str]) -> list[_Model]:
    """Return the models of a folder, or of an instance."""
    if flags.sft_root is not None:
        root = Path(os.path.abspath(flags.repo_root))
        folder, state_dir = find_path(flags.sft_root, root), state_folder(flags.state_dir, root)
        model = flags.model_name or folder.name
        return [_Model(folder, model, state_dir, _load(find_ledgers(state_dir, model)))]
    chosen = choose(name_of(name, instance))
    found = _load(state_files(chosen))
    models = [
        _Model(
            Path(ledger.places[0].path if ledger.places else ledger.model_dir),
            ledger.model_dir,
            path.parent,
            ((path, ledger),),
        )
        for path, ledger in found
        if flags.model_name in (None, ledger.model_dir)
    ]
    if not models:
        of_name = f" of the model {flags.model_name}" if found and flags.model_name else ""
        raise UsageError(
            f"instance {chosen.name}: has no ledger{of_name}; name another, or give the training's folder as"
            " --sft-root"
        )
    return models


def _load(paths: Iterable[Path]) -> tuple[tuple[Path, Ledger], ...]:
    return tuple((path, ledger) for path in paths if (ledger := load(path, keep_corrupt=True)) is not None)


@click.command()
@takes(_ExplainFlags)
@_instance_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("words", nargs=-1, required=True, metavar="[NAME] STEP")
def explain(flags: _ExplainFlags, instance: Optional[str], as_json: bool, words: Sequence[str]) -> int:
    """Say where a checkpoint stands, and how that is known.

    Which training: that of the instance NAME, or of --sft-root; else of the only instance that runs.
    """
    name, steps = _split(words, flags)
    if len(steps) != 1:
        raise UsageError(f"{' '.join(words)}: give one step, such as 500 or checkpoint-500")
    (step,) = steps
    models = _find_models(flags, name, instance)
    quiet, now = flags.checkpoint_ready_seconds, time.time()
    stories = [tell(one.folder, one.name, one.state_dir, step, one.ledgers, quiet, now) for one in models]
    known = [(one, story) for one, story in zip(models, stories) if story.folders or story.known]
    if not known:
        looked = [str(path) for one in models for path, _ in one.ledgers]
        raise UsageError(
            f"checkpoint-{step}: there is no such folder in {models[0].folder}, and no ledger knows it"
            f" (looked at {', '.join(looked) or 'none'})"
        )
    if len(known) > 1:
        names = ", ".join(one.name for one, _ in known)
        raise UsageError(f"checkpoint-{step}: {len(known)} models have it; give --model-name ({names})")
    if as_json:
        say_json(story_json(known[0][1]))
    else:
        print_story(known[0][1])
    return 0


@click.command()
@takes(_LedgerFlags)
@_instance_option
@click.argument("words", nargs=-1, metavar="[NAME] [STEP]...")
def retry(flags: _LedgerFlags, instance: Optional[str], words: Sequence[str]) -> int:
    """Clear the failures of these checkpoints, or of all, so that they are evaluated again.

    Which training: that of the instance NAME, or of --sft-root; else of the only instance that runs. A
    checkpoint that is named is also given up if its evaluation runs, or did, on another machine.
    """
    name, numbers = _split(words, flags)
    models = _find_models(flags, name, instance)
    ledgers = [known for one in models for known in one.ledgers]
    if not ledgers:
        raise UsageError(f"{models[0].folder}: there is no ledger for it in {models[0].state_dir}")
    unknown = [number for number in numbers if not any(number in ledger.entries for _, ledger in ledgers)]
    if unknown:
        raise UsageError(
            f"step {', '.join(map(str, unknown))}: no ledger knows it"
            f" (looked at {', '.join(str(path) for path, _ in ledgers)}); nothing was cleared"
        )
    for path, ledger in ledgers:
        cleared = ", ".join(_clear(path, ledger, numbers))
        say(f"{ledger.model_dir}: cleared: {cleared or 'nothing had failed'}", indent=2)
        if ledger.shared_failure.pauses:
            say(f"{ledger.model_dir}: the pause ends, for all of its checkpoints", indent=2)
    return 0


def _clear(path: Path, ledger: Ledger, numbers: Sequence[int]) -> list[str]:
    """Clear failures of a ledger, or ask the sidecar that holds it to; return the checkpoints' names."""
    launcher = launcher_of_old_jobs()
    given_up = {
        entry.step for entry in ledger.steps() if entry.step in numbers and is_elsewhere(entry, launcher)
    }
    try:
        with open_store(path, ledger.model_dir, ledger.run_id, ledger.run_name) as store:
            give_up_elsewhere(store, launcher, given_up)
            store.update(lambda now: now.cleared(numbers or None))
    except LockedError:
        _ask_holder(LedgerPaths(path).retry_request, list(numbers))
        say("the running sidecar has been asked and will retry")
    return [
        entry.name
        for entry in ledger.steps()
        if entry.step in given_up or (entry.failure and (not numbers or entry.step in numbers))
    ]


def _ask_holder(request: Path, numbers: list[int]) -> None:
    """Leave a request, together with one that has not been taken yet. An empty one means every step."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        waiting = json.loads(request.read_bytes())
        numbers = sorted({*waiting, *numbers}) if waiting and numbers else []
    leave_request(request, numbers)
