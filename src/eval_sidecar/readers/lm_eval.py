"""Reads the ``results_<time>.json`` of EleutherAI's lm-evaluation-harness (seen: 0.4.13).

A value under ``results`` is called ``metric,filter``, its standard error ``metric_stderr,filter``. It becomes
``task/metric``, or ``task/metric/filter`` if the task names its filters (gsm8k: ``strict-match``). A group
(mmlu) stands among the tasks, with numbers of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.best import Direction
from eval_sidecar.readers.base import (
    Collector,
    Measurements,
    object_at,
    read_object,
    require_one_model,
    tasks_of,
)

#: With ``--output_path out.json`` the file is called ``out_<time>.json``.
_NAME = re.compile(r"results_.*\.json|.+_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?\.json")
_SAMPLES = re.compile(r"samples_.+\.jsonl")
#: Of a task, not measured.
_ABOUT_A_TASK = frozenset({"alias", "name", "sample_len", "sample_count", " "})
#: The name of the filter that changes nothing.
_NO_FILTER = "none"


class LmEvalReader:
    """Reads what ``lm_eval --output_path`` writes."""

    name = "lm-eval"

    def find(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Return the results files among these; lighteval's have the same name, and other content."""
        return [path for path in files if _NAME.fullmatch(path.name) and _is_ours(path)]

    def read(self, files: Sequence[Path]) -> Measurements:
        """Return the numbers in these files; a task that several have is taken from the newest.

        Raises:
            ResultError: if a file cannot be read, has no finite number, or is of another model.
        """
        collector = Collector()
        models = set()
        for path in files:
            content = read_object(path)
            models.add(str(content.get("model_name")))
            for task, values in tasks_of(path, content):
                _collect(collector, task, values, content)
        require_one_model(files, models)
        beside = [
            path for folder in sorted({path.parent for path in files}) for path in sorted(folder.iterdir())
        ]
        return collector.measurements(files, [path for path in beside if _SAMPLES.fullmatch(path.name)])


def _is_ours(path: Path) -> bool:
    content = path.read_bytes()
    return b'"results"' in content and b'"config_general"' not in content


def _collect(collector: Collector, task: str, values: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if key in _ABOUT_A_TASK or metric.endswith("_stderr"):
            continue
        suffix = f"/{chosen}" if chosen and chosen != _NO_FILTER else ""
        collector.add(
            f"{task}/{metric}{suffix}",
            value,
            direction=_direction(object_at(content, "higher_is_better", task).get(metric)),
            stderr=values.get(f"{metric}_stderr,{chosen}" if chosen else f"{metric}_stderr"),
            samples=_samples(key, task, values, content),
            task_version=object_at(content, "versions").get(task),
        )


def _direction(is_higher_better: object) -> Optional[Direction]:
    if not isinstance(is_higher_better, bool):
        return None
    return "max" if is_higher_better else "min"


def _samples(key: str, task: str, values: Mapping[str, Any], content: Mapping[str, Any]) -> object:
    of_the_group = object_at(values, "sample_count").get(key)
    return of_the_group or object_at(content, "n-samples", task).get("effective") or values.get("sample_len")
