"""What a trial has come to: the server's rows against the results that are on disk."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from wandb_server import WandbServer

Metrics = dict[str, float]
#: Results by model and step.
Results = dict[tuple[str, int], Metrics]


@dataclass
class Verdict:
    """One trial, counted.

    Attributes:
        points: Results on disk at the end, which the server should hold.
        lost: Results that the server lacks.
        duplicated: Rows beyond the first of a step and revision, or that repeat what was there.
        wrong: Other numbers, steps that are not on disk, rows of one index, summaries that lie.
        old_table: Runs whose newest table does not show all of that.
        missed: Complete checkpoints without a result.
        half_written: Results of a checkpoint that was not whole while it was evaluated.
        dishonest: Commands that ended with 0 although something was left, or with words that hide it.
        unfinished: Commands that never ended by themselves, or never well after the fault had gone.
        harmed: Files of the training that are not as its trainer left them, and trainings that died.
        leaked: Files that hold the key, and processes that outlived a command which ended by itself.
        notes: What was seen, for a person.
    """

    points: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    old_table: int = 0
    missed: int = 0
    half_written: int = 0
    dishonest: int = 0
    unfinished: int = 0
    harmed: int = 0
    leaked: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        """Whether anything was not as promised."""
        return any(getattr(self, name) for name in COUNTS)

    def count(self, what: str, note: str) -> None:
        """Count one thing that should not be, and say what it was."""
        setattr(self, what, getattr(self, what) + 1)
        self.notes.append(f"{what}: {note}")


#: The counts that must all be zero.
COUNTS = tuple(item.name for item in fields(Verdict) if item.name not in ("points", "notes"))


def read_results(results_root: Path, models: Mapping[str, str]) -> Results:
    """Every result on disk that can be read."""
    found: Results = {}
    for model in models:
        for path in (results_root / model).glob("checkpoint-*/metrics.json"):
            try:
                found[model, int(path.parent.name.rpartition("-")[2])] = json.loads(path.read_bytes())
            except (ValueError, OSError):
                continue  # being written at this moment
    return found


def rows_of(server: WandbServer, run_id: str) -> list[dict[str, Any]]:
    """All history rows of a run, in the order of their offsets."""
    with server.store.lock:
        return [row for run in server.runs.values() if run.run_id == run_id for row in run.rows]


def shown(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The row that counts of each step: the newest of its highest revision."""
    newest: dict[int, dict[str, Any]] = {}
    for row in rows:
        step = row.get("checkpoint_step")
        if step is not None and _revision(row) >= _revision(newest.get(step, {})):
            newest[step] = row
    return newest


def _revision(row: Mapping[str, Any]) -> int:
    return int(row.get("eval/revision", 0))


def same(metrics: Metrics, row: Optional[Mapping[str, Any]]) -> bool:
    """Whether a row has all of a result's numbers."""
    return row is not None and all(
        isinstance(seen := row.get(f"eval/{name}"), (int, float)) and math.isclose(seen, value, rel_tol=1e-9)
        for name, value in metrics.items()
    )


def not_there(server: WandbServer, models: Mapping[str, str], results: Results) -> list[str]:
    """The results that the server does not show as they are."""
    newest = {model: shown(rows_of(server, run_id)) for model, run_id in models.items()}
    return [
        f"{model} checkpoint-{step}"
        for (model, step), metrics in sorted(results.items())
        if not same(metrics, newest[model].get(step))
    ]


def compare(verdict: Verdict, server: WandbServer, models: Mapping[str, str], results: Results) -> None:
    """Count what is lost, doubled or wrong."""
    verdict.points = len(results)
    for model, run_id in models.items():
        rows = rows_of(server, run_id)
        newest = shown(rows)
        expected = {step: metrics for (name, step), metrics in results.items() if name == model}
        for step, metrics in sorted(expected.items()):
            if step not in newest:
                verdict.count("lost", f"{model} checkpoint-{step}")
            elif not same(metrics, newest[step]):
                verdict.count("wrong", f"{model} checkpoint-{step}: {metrics} on disk, {newest[step]}")
        for step in newest.keys() - expected.keys():
            verdict.count("wrong", f"{model} checkpoint-{step}: on the server, not on disk")
        _judge_rows(verdict, model, rows)
        _judge_summary(verdict, model, server, run_id, expected)


def _judge_rows(verdict: Verdict, model: str, rows: list[dict[str, Any]]) -> None:
    points = [row for row in rows if "checkpoint_step" in row]
    counts = Counter((row["checkpoint_step"], _revision(row)) for row in points)
    for (step, revision), number in counts.items():
        for _ in range(number - 1):
            verdict.count("duplicated", f"{model} checkpoint-{step} revision {revision}")
    before: dict[int, dict[str, Any]] = {}
    for row in points:
        step, earlier = row["checkpoint_step"], before.get(row["checkpoint_step"])
        if earlier is not None and _revision(row) > _revision(earlier) and _numbers(row) == _numbers(earlier):
            verdict.count("duplicated", f"{model} checkpoint-{step} again as revision {_revision(row)}")
        if row.get("eval/intact") == 0:
            verdict.count("half_written", f"{model} checkpoint-{step} was evaluated while it was not whole")
        before[step] = row
    indices = [row["_step"] for row in rows]
    # Not their order: rows that were overwritten come again with higher indices at lower offsets.
    if len(indices) != len(set(indices)):
        verdict.count("wrong", f"{model}: two rows of one index: {indices}")
    for row in points:
        if row["_step"] < row["checkpoint_step"]:
            verdict.count("wrong", f"{model}: row {row['_step']} holds checkpoint-{row['checkpoint_step']}")


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: value for key, value in row.items() if key.startswith("eval/") and key != "eval/revision"}
    return {key: value for key, value in named.items() if isinstance(value, (int, float))}


def _judge_summary(
    verdict: Verdict, model: str, server: WandbServer, run_id: str, expected: Mapping[int, Metrics]
) -> None:
    if not expected or not any(run.run_id == run_id for run in server.runs.values()):
        return
    summary = server.run(run_id).summary
    last = max(expected)
    best = max(expected, key=lambda step: (expected[step]["HR@10"], -step))
    wanted = {
        "last_step": last,
        "last_hr@10": expected[last]["HR@10"],
        "best_hr@10": expected[best]["HR@10"],
        "best_step_for_hr@10": best,
    }
    seen = {key: summary.get(key) for key in wanted}
    if seen != wanted:
        verdict.count("wrong", f"{model}: the summary says {seen}, it should be {wanted}")
    tables = server.run(run_id).tables
    rows = [dict(zip(tables[-1]["columns"], row)) for row in tables[-1]["data"]] if tables else []
    table = {row["checkpoint_step"]: row["HR@10"] for row in rows}
    if table != {step: metrics["HR@10"] for step, metrics in expected.items()}:
        verdict.count("old_table", f"{model}: the newest of {len(tables)} tables has {table}")
