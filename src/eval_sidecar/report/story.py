"""One checkpoint's story: the answer first, then each piece of evidence once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

from eval_sidecar.checkpoints.completeness import changed_at, judge, usual_names
from eval_sidecar.checkpoints.identity import read_identity
from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.checkpoints.places import checkpoint_in, places
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.report.export import checkpoint_json
from eval_sidecar.report.facts import CheckpointFacts, ModelFacts, model_facts
from eval_sidecar.types import Checkpoint


class Folder(NamedTuple):
    """A folder that holds the checkpoint, judged as it is now.

    Attributes:
        kind: ``folder`` for the trainer's, ``pinned`` for ours.
        path: Where it is.
        verdict: Whether it is completely written.
        evidence: The facts behind the verdict.
    """

    kind: str
    path: Path
    verdict: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """Everything that is known of one checkpoint.

    Attributes:
        step: Its training step.
        model_dir: The folder that was asked about.
        folders: Those that exist.
        known: What each ledger that lists it says.
        weights: Identity of the weights that the folder holds now; None if they cannot be read.
    """

    step: int
    model_dir: Path
    folders: Sequence[Folder]
    known: Sequence[tuple[ModelFacts, CheckpointFacts]]
    weights: Optional[str]


def tell(
    model_dir: Path,
    model: str,
    state_dir: Path,
    step: int,
    ledgers: Sequence[tuple[Path, Ledger]],
    quiet_seconds: float,
    now: float,
) -> Story:
    """Judge the folder and its pin as they are now, and look up the checkpoint in ledgers."""
    is_provable = any(ledger.provable for _, ledger in ledgers)
    folders = list(_folders(model_dir, model, state_dir, step, quiet_seconds, is_provable, now))
    known = []
    for path, ledger in ledgers:
        facts = model_facts(ledger, path, now)
        known += [(facts, one) for one in facts.checkpoints if one.entry.step == step]
    try:
        weights = read_identity(checkpoint_in(model_dir, step).path) if known else None
    except OSError:
        weights = None  # deleted, or permission denied: the verdict says so
    return Story(step, model_dir, folders, known, weights)


def _folders(
    model_dir: Path,
    model: str,
    state_dir: Path,
    step: int,
    quiet_seconds: float,
    is_provable: bool,
    now: float,
) -> Iterator[Folder]:
    name = f"checkpoint-{step}"
    found = [("folder", model_dir / name, model_dir / name)]
    for place in places(model_dir, model, state_dir):
        if place.why_barred() is None:
            held, used = (checkpoint_in(folder, step).path for folder in (place.held, place.used))
            found.append(("pinned", used if used.is_dir() else held, held if held.is_dir() else used))
    for kind, shown, judged in found:
        if judged.is_dir():
            others = [other.path for other in list_checkpoints(model_dir) if other.step != step]
            verdict = judge(
                Checkpoint(step, judged),
                quiet_seconds=quiet_seconds,
                unchanged_seconds=_unchanged(judged, now),
                trainer_state_expected=is_provable,
                usual=usual_names(others),
            )
            yield Folder(kind, shown, verdict.name, tuple(verdict.evidence))


def _unchanged(folder: Path, now: float) -> float:
    try:
        return now - changed_at(folder)
    except OSError:
        return 0.0  # the verdict says what cannot be read


def story_json(story: Story) -> dict[str, Any]:
    """Return a story as plain JSON."""
    return {
        "checkpoint": f"checkpoint-{story.step}",
        "step": story.step,
        "model_dir": str(story.model_dir),
        "weights": story.weights,
        "folders": [{**one._asdict(), "path": str(one.path)} for one in story.folders],
        "ledgers": [
            {
                "model": facts.name,
                "run_id": facts.ledger.run_id,
                "where": facts.ledger.where,
                "state_file": str(facts.state_file),
                "place": str(facts.ledger.places[0]) if facts.ledger.places else None,
                "is_this_folder": is_this_folder(story, facts),
                "busy": facts.ledger.busy,
                "first_seen": one.entry.first_seen,
                "evidence": list(one.entry.evidence),
                "evictions": list(one.entry.evictions),
                "made_with": dict(one.settings) if one.settings is not None else None,
                "changes": list(one.changes),
                "left_out": list(one.entry.result.left_out) if one.entry.result else [],
                **checkpoint_json(one),
            }
            for facts, one in story.known
        ],
    }


def is_this_folder(story: Story, facts: ModelFacts) -> bool:
    """Return whether a ledger is about the model dir that was asked about, as far as it says."""
    known = facts.ledger.places
    return not known or os.path.realpath(story.model_dir) == known[0].path
