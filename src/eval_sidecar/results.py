"""``metrics.json`` -> `Result`, and best and last of many. Knows the layout of ``results/``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from eval_sidecar.errors import MissingResultError, ResultError
from eval_sidecar.types import RESERVED, Result, Stamp, digest


def metrics_path(results_root: Path, model_dir: str, step: int) -> Path:
    """Where an evaluation leaves its numbers: ``<root>/<model dir>/checkpoint-<step>/metrics.json``."""
    return Path(f"{results_root}/{model_dir}/checkpoint-{step}/metrics.json")


def stamp(path: Union[str, Path]) -> Optional[Stamp]:
    """The stamp of a file, or None where it is missing.

    Raises:
        ResultError: where the file system does not say.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path costs more than the look, and there are many
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ResultError(f"{path}: cannot be looked at ({error.strerror})") from error
    return _stamp_of(status)


def _stamp_of(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_result(path: Union[str, Path]) -> Result:
    """Read one ``metrics.json``.

    Text and nested values beside the numbers are left out; true and false are no numbers.

    Raises:
        MissingResultError: where there is no file.
        ResultError: where it is empty, no JSON object, has no number, or has one that
            is not finite.
    """
    try:
        status, content = _read(path)
        text = content.decode("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingResultError(f"{path}: is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
    if not text.strip():
        raise ResultError(f"{path}: is empty ({len(text)} bytes)")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of absurd length
        raise ResultError(f"{path}: is no valid JSON ({error}); was its writer interrupted?") from error
    metrics = _numbers(value, path)
    return Result(metrics, str(path), digest(metrics), _stamp_of(status))


def _read(path: Union[str, Path]) -> tuple[os.stat_result, bytes]:
    """A small file and what it was when it was read; a file object would take twice as long."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        return status, os.read(descriptor, status.st_size + 1)
    finally:
        os.close(descriptor)


def _numbers(value: Any, path: Union[str, Path]) -> dict[str, float]:  # noqa: ANN401 - whatever the file holds
    if not isinstance(value, dict):
        raise ResultError(f"{path}: holds a JSON {type(value).__name__}, not an object of numbers")
    metrics = {}
    for key, number in value.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or key in RESERVED:
            continue
        try:
            metrics[key] = float(number)
        except OverflowError:
            metrics[key] = math.inf
        if not math.isfinite(metrics[key]):
            raise ResultError(
                f"{path}: {key} is {number}, which no curve can show; did the training diverge?"
            )
    if not metrics:
        raise ResultError(f"{path}: has no number in it")
    return metrics


def best_step(metrics_by_step: Mapping[int, Mapping[str, float]], metric: str) -> Optional[int]:
    """The step with the highest value of a metric, the earliest of several; None where none has it."""
    steps = [step for step in sorted(metrics_by_step) if metric in metrics_by_step[step]]
    return max(steps, key=lambda step: metrics_by_step[step][metric], default=None)


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The two numbers that people look at, or the first two that there are."""
    chosen = [name for name in ("HR@10", "NDCG@10") if name in metrics] or list(metrics)[:2]
    return {name: metrics[name] for name in chosen}
