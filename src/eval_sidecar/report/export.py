"""Facts as plain JSON and as rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.report.facts import CheckpointFacts, ModelFacts, Problem
from eval_sidecar.types import Completeness

#: Columns of a table as CSV after those of its metrics.
_AFTER_METRICS = ("delivery", "mark", "evaluated_at", "settings", "weights", "problem")


def model_json(facts: ModelFacts) -> dict[str, Any]:
    """Return a model as plain JSON."""
    ledger = facts.ledger
    last = next((one for one in facts.problems if one.kind == "evaluation"), None) or next(
        (one for one in facts.problems if one.kind == "delivery"), None
    )
    return {
        "model": facts.name,
        "run_id": ledger.run_id or None,
        "run_name": ledger.run_name or None,
        "state_file": str(facts.state_file) if facts.state_file else None,
        "where": ledger.where,
        "evaluated": facts.evaluated,
        "total": len(facts.checkpoints),
        "running": [_running_json(one) for one in facts.running],
        "pending": len(facts.running) + len(facts.waiting),
        "waiting": [_waiting_json(one) for one in facts.waiting],
        "busy": ledger.busy,
        "warnings": list(facts.warnings),
        "paused": ledger.shared_failure.reason,
        "failed": facts.failed,
        "gone": facts.lost(Completeness.GONE),
        "abandoned": facts.lost(Completeness.ABANDONED),
        "undelivered": len(ledger.undelivered()),
        "unconfirmed": len(ledger.unconfirmed()),
        "best": {
            metric: {"step": step, "value": facts.best_value(metric)} for metric, step in facts.best.items()
        },
        "superseded": [one.entry.name for one in facts.checkpoints if one.entry.is_superseded],
        "other_settings": [one.entry.step for one in facts.checkpoints if one.mark == "*"],
        "place": str(ledger.places[0]) if ledger.places else None,
        "problem": None,
        "problems": [vars(one) for one in facts.problems],
        "last_error": f"{last}{f'; log: {last.log}' if last.log else ''}" if last else None,
        "updated": ledger.updated,
        "checkpoints": [checkpoint_json(one) for one in facts.checkpoints],
        "settings": dict(ledger.settings),
        "settings_changed": facts.settings_changed,
    }


def unreadable_json(state_file: Path, problem: str) -> dict[str, Any]:
    """Return, in the form of `model_json`, a model whose ledger cannot be read."""
    nothing = Ledger(state_file.stem, "", "")
    facts = ModelFacts(nothing, state_file, (), {}, (Problem("ledger", problem),), None)
    return {**model_json(facts), "problem": problem, "last_error": problem}


def checkpoint_json(one: CheckpointFacts) -> dict[str, Any]:
    """Return a checkpoint as plain JSON."""
    entry = one.entry
    return {
        "step": entry.step,
        "checkpoint": entry.name,
        "stage": one.stage,
        "verdict": entry.verdict,
        "metrics": dict(one.metrics),
        "metrics_path": entry.result.path if entry.result else None,
        "delivery": one.delivery,
        "mark": one.mark,
        "weights": entry.content and entry.content.identity,
        "saved": entry.content and entry.content.since,
        "result_of": entry.origin.identity,
        "evaluated_at": entry.origin.at,
        "settings": entry.origin.settings,
        "attempts": entry.attempts,
        "elapsed": one.elapsed,
        "estimated": one.estimated,
        "problem": one.problem,
        "log": entry.failure.log if entry.failure else entry.running.log if entry.running else None,
    }


def csv_rows(models: Sequence[ModelFacts], metrics: Sequence[str]) -> Iterator[list[str]]:
    """Yield a heading, then a row for each checkpoint, with numbers in full precision."""
    yield ["model", "step", "stage", *metrics, *_AFTER_METRICS]
    for model in models:
        for one in model.checkpoints:
            origin = one.entry.origin
            numbers = (repr(one.metrics[name]) if name in one.metrics else "" for name in metrics)
            after = (one.delivery, one.mark, origin.at, origin.settings, origin.identity, one.problem)
            yield [model.name, str(one.entry.step), one.stage, *numbers, *(text or "" for text in after)]


def _running_json(one: CheckpointFacts) -> dict[str, Any]:
    entry, running = one.entry, one.entry.running
    assert running is not None
    job = ("launcher", "job_id", "name", "pid", "devices")
    return {
        "checkpoint": entry.name,
        "step": entry.step,
        "started_at": running.started_at,
        "elapsed": one.elapsed,
        "estimated": one.estimated,
        "log": running.log,
        "attempt": entry.attempts + 1,
        "evictions": list(entry.evictions),
        "state": running.state,
        "job": {key: running.handle[key] for key in job if key in running.handle},
    }


def _waiting_json(one: CheckpointFacts) -> dict[str, Optional[Any]]:
    entry = one.entry
    return {
        "checkpoint": entry.name,
        "step": entry.step,
        "verdict": entry.verdict,
        "pinned": entry.pinned,
        "evictions": list(entry.evictions),
    }
