"""The contract between the sidecar and what evaluations write: find your output, read its numbers.

A reader neither chooses a metric nor judges whether an evaluation succeeded. What counts as a number is
decided by `eval_sidecar.ledger.metrics`, for every format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

from eval_sidecar.best import Direction, direction_of
from eval_sidecar.errors import ResultError
from eval_sidecar.ledger.metrics import parse_metrics

#: Names of left-out values that are kept; a benchmark may have thousands of tasks.
_MOST_LEFT_OUT = 20


@dataclass(frozen=True)
class Measurement:
    """One number of an evaluation.

    Attributes:
        value: The number; finite.
        direction: Which way it is better.
        stderr: Its standard error, if known.
        samples: Number of samples it was measured on, if known.
        task_version: Version of its task, if known.
    """

    value: float
    direction: Direction = "unknown"
    stderr: Optional[float] = None
    samples: Optional[int] = None
    task_version: Optional[str] = None


@dataclass(frozen=True)
class Measurements:
    """What the output of one evaluation says.

    Attributes:
        by_name: Measurements by metric name (``task/metric``), in the output's order.
        files: The files that the numbers come from, oldest first.
        left_out: What is not a metric, each as ``name (reason)``.
        sample_files: Files beside them with the single samples; not read.
    """

    by_name: Mapping[str, Measurement]
    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    sample_files: tuple[Path, ...] = ()


class Reader(Protocol):
    """Understands what one evaluation program writes."""

    @property
    def name(self) -> str:
        """What users call it: lower-case letters, digits and ``-``."""
        ...

    def find(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Return the files that this reader would read; none if the output is another program's.

        Args:
            folder: Where the evaluation wrote its output.
            files: The files in and below the folder that this evaluation has written, oldest first.
        """
        ...

    def read(self, files: Sequence[Path]) -> Measurements:
        """Return the numbers in these files; if two files have the same name, the newer file counts.

        Args:
            files: What `find` returned: at least one, oldest first.

        Raises:
            ResultError: if a file cannot be read, is not in this reader's format, or no file has a finite
                number.
        """
        ...


class Collector:
    """Values of an output by metric name, each with what is known of it."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._left_out: dict[str, str] = {}

    def add(
        self,
        name: str,
        value: Any,  # noqa: ANN401 - any value of JSON
        *,
        direction: Optional[Direction] = None,
        stderr: Any = None,  # noqa: ANN401 - any value of JSON
        samples: Any = None,  # noqa: ANN401 - any value of JSON
        task_version: Any = None,  # noqa: ANN401 - any value of JSON
    ) -> None:
        """Add a value, number or not; if the name exists already, the new value counts.

        Args:
            name: Of the metric.
            value: Of the metric; an object is looked into, and its names are joined by ``/``.
            direction: None if only the name can tell.
            stderr: Ignored unless it is a finite number.
            samples: Ignored unless it is a whole number.
            task_version: Ignored unless it is text or a number.
        """
        if isinstance(value, dict):
            for key, item in value.items():
                self.add(
                    f"{name}/{key}", item, direction=direction, samples=samples, task_version=task_version
                )
            return
        if name in self._values and self._values[name] != value:
            self._left_out[name] = f"also there as {self._values[name]}; the newer value counts"
        self._values[name] = value
        self._known[name] = {
            "direction": direction or direction_of(name),
            "stderr": float(stderr) if _is_number(stderr) and math.isfinite(stderr) else None,
            "samples": int(samples) if _is_number(samples) and samples == samples // 1 else None,
            "task_version": _version(task_version),
        }

    def leave_out(self, name: str, reason: str) -> None:
        """Record a value that is not a metric."""
        self._left_out[name] = reason

    def measurements(self, files: Sequence[Path], sample_files: Sequence[Path] = ()) -> Measurements:
        """Return what was collected.

        Raises:
            ResultError: if there is no finite number.
        """
        try:
            numbers, not_numbers = parse_metrics(json.dumps(self._values).encode())
        except ResultError as error:
            raise ResultError(f"{files[-1]}: {error}") from error
        by_name = {name: Measurement(value, **self._known[name]) for name, value in numbers.items()}
        named = [f"{name} ({reason})" for name, reason in self._left_out.items()]
        if len(named) > _MOST_LEFT_OUT:
            named[_MOST_LEFT_OUT:] = [f"{len(named) - _MOST_LEFT_OUT} more"]
        return Measurements(by_name, tuple(files), (*not_numbers, *named), tuple(sample_files))


def _version(value: object) -> Optional[str]:
    """Return a version as text: 3 for the number 3.0, which JSON does not tell from 3."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, (int, float)) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ResultError: if it cannot be read, or is not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes(), parse_int=float)
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: is not valid JSON ({error}); was its writer interrupted?") from error
    if not isinstance(value, dict):
        raise ResultError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def object_at(value: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return the object under these keys, one below the other; an empty one if there is none."""
    for key in keys:
        value = value.get(key, {}) if isinstance(value, dict) else {}
    return value if isinstance(value, dict) else {}


def tasks_of(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return each task of a ``results_*.json`` with its values, as lm-eval and lighteval write it.

    Raises:
        ResultError: if the file has no results.
    """
    tasks = object_at(content, "results")
    if not tasks:
        raise ResultError(f'{path}: has no tasks under "results"')
    for task, values in tasks.items():
        if isinstance(values, dict):
            yield task, values


def require_one_model(files: Sequence[Path], models: Collection[str]) -> None:
    """Refuse output of several models: a number must belong to the checkpoint that it is shown for.

    Raises:
        ResultError: if there is more than one model.
    """
    if len(models) > 1:
        raise ResultError(
            f"{files[-1].parent}: has results of several models ({', '.join(sorted(models))});"
            " give each evaluation an output folder of its own"
        )
