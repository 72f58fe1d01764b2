"""What exists of each step, and what to do with it: `decide` decides, `find_ready` acts."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Callable, Optional

from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.checkpoints.pinning import Pins
from eval_sidecar.checkpoints.readiness import Readiness
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.evaluation.origins import Origins
from eval_sidecar.ledger.ledger import Entry
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.types import Checkpoint, Origin, Result


class Action(enum.Enum):
    """What a pass does with a step."""

    NOTHING = "nothing"
    """It is being evaluated, or is done."""

    TAKE = "take a result"
    """Take a result that is on disk; evaluate nothing."""

    TAKE_OR_EVALUATE = "take a result, or evaluate"
    """Take a result that is on disk; evaluate the checkpoint only if there is none."""

    EVALUATE = "evaluate"
    """Evaluate the checkpoint, whatever result is on disk."""


@dataclass(frozen=True)
class Found:
    """What exists of a step.

    Attributes:
        entry: What the ledger knows of it.
        present: The trainer's folder.
        held: Its pin.
        is_wanted_again: Whether --force-eval asks for it, and it has not been evaluated since.
    """

    entry: Entry
    present: Optional[Checkpoint] = None
    held: Optional[Checkpoint] = None
    is_wanted_again: bool = False


def decide(found: Found, *, look_closely: bool) -> Action:
    """Return what to do with a step; nothing is read or changed for it.

    Args:
        found: What exists of it.
        look_closely: Whether results of finished steps are due to be compared with the ledger.
    """
    entry = found.entry
    if entry.running is not None:
        return Action.NOTHING
    if found.is_wanted_again and (found.present or found.held):
        return Action.EVALUATE
    if entry.processed:
        return Action.TAKE if look_closely or entry.failure or found.held else Action.NOTHING
    return Action.TAKE if entry.has_failed else Action.TAKE_OR_EVALUATE


def find_ready(
    config: WatchConfig,
    store: LedgerStore,
    pins: Pins,
    readiness: Readiness,
    origins: Origins,
    accept: Callable[[Entry, Result, Origin], None],
    *,
    look_closely: bool,
) -> dict[int, Checkpoint]:
    """Bring ledger and pins up to date with the folders.

    Args:
        config: What to evaluate and how.
        store: The model's ledger.
        pins: Keep checkpoints alive.
        readiness: Says which checkpoints are completely written.
        origins: Says which weights a result is of.
        accept: Gets results on disk that are new.
        look_closely: As for `decide`.

    Returns:
        The checkpoints that may be evaluated now.
    """
    present = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(origins.folder)}
    origins.begin_round(lambda: {*present, *pins.held()})
    for step, checkpoint in present.items():
        entry = store.ledger.entry(step)
        if entry.running is None and (entry.result or entry.listed or entry.failure):
            origins.look(step, checkpoint)
    pins.look()  # only after `origins.look`: what was saved again with other weights is pinned like new
    held = pins.held()
    reported = {checkpoint.step for checkpoint in list_checkpoints(config.results_root / config.model)}
    readiness.begin_pass(present.values())
    ready = {}
    for step in sorted({*present, *held, *reported, *store.ledger.entries}):
        entry = store.ledger.entry(step)
        found = Found(entry, present.get(step), held.get(step), origins.is_wanted_again(entry))
        action = decide(found, look_closely=look_closely)
        if action in (Action.TAKE, Action.TAKE_OR_EVALUATE) and origins.take(
            entry, config.metrics_path(step), found.present, found.held, accept
        ):
            if found.held:
                readiness.unpin(step)
        elif action in (Action.EVALUATE, Action.TAKE_OR_EVALUATE):
            checked = readiness.prepare(entry, found.present, found.held)
            if checked is not None:
                ready[step] = checked
    return ready
