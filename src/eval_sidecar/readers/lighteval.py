"""Reads the ``results_<time>.json`` of Hugging Face's lighteval (seen: 0.13.0).

Task ``gsm8k|5`` with the value ``em`` becomes ``gsm8k:5/em``: the number of few-shot examples stays in the
name, as other examples are another curve, and ``|`` would have to be quoted in a shell. ``all`` and
``<task>:_average`` are lighteval's own means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_sidecar.best import Direction
from eval_sidecar.readers.base import (
    Collector,
    Measurements,
    object_at,
    read_object,
    require_one_model,
    tasks_of,
)

_NAME = re.compile(r"results_.*\.json")
#: Only lighteval writes it, at the top of its file.
_MARK = b'"config_general"'
_STDERR = "_stderr"


class LightevalReader:
    """Reads what ``lighteval … --output-dir`` writes."""

    name = "lighteval"

    def find(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Return the results files among these; lm-eval's have the same name, and other content."""
        return [path for path in files if _NAME.fullmatch(path.name) and _MARK in path.read_bytes()]

    def read(self, files: Sequence[Path]) -> Measurements:
        """Return the numbers in these files; a task that several have is taken from the newest.

        Raises:
            ResultError: if a file cannot be read, has no finite number, or is of another model.
        """
        collector = Collector()
        models = set()
        for path in files:
            content = read_object(path)
            models.add(str(object_at(content, "config_general").get("model_name")))
            for task, values in tasks_of(path, content):
                _collect(collector, task, values, content)
        require_one_model(files, models)
        return collector.measurements(files)


def _collect(collector: Collector, task: str, values: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    config = _config(task, content)
    directions = dict(_directions(config)) if config else _common_directions(content)
    count = config.get("effective_num_docs")  # -1: unknown
    for metric, value in values.items():
        if metric.endswith(_STDERR) and metric[: -len(_STDERR)] in values:
            continue
        collector.add(
            f"{task.replace('|', ':')}/{metric}",
            value,
            direction=directions.get(metric),
            stderr=values.get(metric + _STDERR),
            samples=count if isinstance(count, float) and count > 0 else None,
            task_version=config.get("version"),
        )


def _config(task: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a task's configuration; older releases list it without the number of examples."""
    return object_at(content, "config_tasks", task) or object_at(
        content, "config_tasks", task.rpartition("|")[0]
    )


def _directions(config: Mapping[str, Any]) -> Iterator[tuple[str, Direction]]:
    metrics = config.get("metrics")
    for metric in metrics if isinstance(metrics, list) else ():
        if not isinstance(metric, dict):
            continue
        names, is_higher = metric.get("metric_name"), metric.get("higher_is_better")
        for name in names if isinstance(names, list) else [names]:
            is_better = is_higher.get(name) if isinstance(is_higher, dict) else is_higher
            if isinstance(name, str) and isinstance(is_better, bool):
                yield name, "max" if is_better else "min"


def _common_directions(content: Mapping[str, Any]) -> dict[str, Direction]:
    """Return what all tasks agree on, for means over tasks."""
    found: dict[str, Direction] = {}
    for config in object_at(content, "config_tasks").values():
        for name, direction in _directions(config if isinstance(config, dict) else {}):
            found[name] = direction if found.get(name, direction) == direction else "unknown"
    return found
