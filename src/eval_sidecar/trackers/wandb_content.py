"""What a W&B run shows of a model: config, history rows, summary and table, to the letter.

Pure: no W&B import and no I/O.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, Union

from eval_sidecar.best import HEADLINE, best_step
from eval_sidecar.trackers.base import ServerRow
from eval_sidecar.types import RESERVED, TABLE_COLUMNS, TABLE_METRICS, ModelSpec, Point, digest

STEP = "checkpoint_step"
PREFIX = "eval/"
REVISION = "eval/revision"
TABLE = "eval/checkpoint_table"
#: Where a checkpoint stands in its training; only for models whose number of epochs is known.
POSITION = ("checkpoint_index", "epoch_progress")
#: Summary key that says what was delivered.
DELIVERED = "delivered_points"
#: Summary key that says of which model: where it lives, and what its weights are.
HOME = "delivered_from"

Scalar = Union[int, float, str]


def config_of(spec: ModelSpec) -> dict[str, Scalar]:
    """Return the config keys that runs are filtered by."""
    return {
        "model_name": spec.model_dir,
        "dataset": spec.dataset,
        "cb_setting": spec.cb_setting,
        "seed": spec.seed,
        "num_beams": spec.num_beams,
        "sid_levels": spec.sid_levels,
        "eval_split": spec.eval_split,
    }


def row_of(point: Point) -> dict[str, Scalar]:
    """Return one point as a history row; a result that changed after delivery carries its revision."""
    row: dict[str, Scalar] = {STEP: point.step}
    for name, value in point.metrics.items():
        if name not in RESERVED:
            row[PREFIX + name] = value
    row[PREFIX + "checkpoint_name"] = point.checkpoint_name
    row[PREFIX + "metrics_path"] = point.metrics_path
    if point.checkpoint_index is not None and point.epoch_progress is not None:
        row.update(zip(POSITION, (point.checkpoint_index, point.epoch_progress)))
    if point.revision > 0:
        row[REVISION] = point.revision
    return row


def latest_of(points: Iterable[Point]) -> list[Point]:
    """Return the newest revision of each step, ordered by step."""
    latest: dict[int, Point] = {}
    for point in points:
        known = latest.get(point.step)
        if known is None or point.revision >= known.revision:
            latest[point.step] = point
    return [latest[step] for step in sorted(latest)]


def summary_of(points: Iterable[Point], row_by_step: Optional[Mapping[int, int]] = None) -> dict[str, Scalar]:
    """Return best and last values; the earliest step wins a tie, and what a model lacks has no key.

    Args:
        points: Every point of the model.
        row_by_step: Index of each point's row, if it is known: the summary then says what was delivered.
    """
    ordered = latest_of(points)
    if not ordered:
        return {}
    summary: dict[str, Scalar] = {DELIVERED: _delivered(ordered, row_by_step)} if row_by_step else {}
    last, results = ordered[-1], {point.step: point.metrics for point in ordered}
    for name in HEADLINE:
        best = best_step(results, name)
        if best is not None:
            summary[f"best_{name.lower()}"] = results[best][name]
            summary[f"best_step_for_{name.lower()}"] = best
        if _is_finite(last.metrics.get(name)):
            summary[f"last_{name.lower()}"] = last.metrics[name]
    summary["last_step"] = last.step
    return summary


def _delivered(points: Iterable[Point], row_by_step: Mapping[int, int]) -> str:
    """Return what the run holds, as text, for servers that cannot show a run's history.

    A JSON list of step, revision, index and digest of each point.
    """
    rows = [
        [point.step, point.revision, row_by_step[point.step], digest(point.metrics)]
        for point in points
        if point.step in row_by_step
    ]
    return json.dumps(rows, separators=(",", ":"))


def delivered_rows(text: object) -> Optional[tuple[ServerRow, ...]]:
    """Read what a summary says was delivered, in the order of the indices; None if it says nothing."""
    try:
        rows = [
            ServerRow(int(index), int(step), int(revision), {}, str(mark))
            for step, revision, index, mark in json.loads(text if isinstance(text, str) else "null")
        ]
    except (TypeError, ValueError):
        return None
    return tuple(sorted(rows, key=lambda row: row.index))


def table_columns_of(points: Iterable[Point]) -> tuple[str, ...]:
    """Return the columns of the table."""
    positioned = any(point.checkpoint_index is not None for point in points)
    return TABLE_COLUMNS + (POSITION if positioned else ())


def table_rows_of(points: Sequence[Point]) -> list[list[Optional[Scalar]]]:
    """Return one row for each checkpoint, in the order of `table_columns_of`."""
    width = len(table_columns_of(points))
    rows: list[list[Optional[Scalar]]] = [
        [
            point.step,
            point.checkpoint_name,
            *(point.metrics.get(name) for name in TABLE_METRICS),
            point.metrics_path,
            point.checkpoint_index,
            point.epoch_progress,
        ]
        for point in latest_of(points)
    ]
    return [row[:width] for row in rows]


def server_row_of(row: Mapping[str, Any]) -> Optional[ServerRow]:
    """Read a history row back; None if it is not a point.

    Rows of older scripts have the same keys. Whole numbers may come as floats, and values that are not
    finite as strings.
    """
    index, step = _whole(row.get("_step")), _whole(row.get(STEP))
    if index is None or step is None:
        return None
    metrics = {}
    for key, value in row.items():
        name = key[len(PREFIX) :]
        if key.startswith(PREFIX) and name not in RESERVED and _is_finite(value):
            metrics[name] = float(value)
    if not metrics and PREFIX + "checkpoint_name" not in row:
        return None
    return ServerRow(index=index, step=step, revision=_whole(row.get(REVISION)) or 0, metrics=metrics)


def index_of(row: Mapping[str, Any]) -> int:
    """Return a history row's `_step`; -1 if it has none."""
    index = _whole(row.get("_step"))
    return -1 if index is None else index


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> Optional[int]:
    if isinstance(value, (int, float)) and _is_finite(value) and int(value) == value:
        return int(value)
    return None
