"""Reads a ``metrics.json`` as a `Result`."""

from __future__ import annotations

import errno
import os
import stat as stat_bits
from collections.abc import Mapping
from pathlib import Path
from typing import Optional, Union

from eval_sidecar.best import HEADLINE
from eval_sidecar.errors import MissingResultError, ResultError
from eval_sidecar.ledger.metrics import NOT_FINITE, parse_metrics
from eval_sidecar.ledger.stamps import _stamp_of
from eval_sidecar.types import Result, digest


def read_result(path: Union[str, Path]) -> Result:
    """Read one ``metrics.json``.

    What is not a metric is named in the result; `eval_sidecar.ledger.metrics` says what is one.

    Raises:
        MissingResultError: if there is no file.
        ResultError: if it is empty, is not a JSON object, or has no finite number.
    """
    try:
        status, content = _read(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingResultError(f"{path}: is missing") from error
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        metrics, left_out = parse_metrics(content)
    except ResultError as error:
        raise ResultError(f"{path}: {error}") from error
    return Result(metrics, str(path), digest(metrics), _stamp_of(status), left_out)


def left_out_of(model: str, checkpoint: str, result: Result) -> Optional[str]:
    """Return a warning about what a result's file has beside its metrics; None if there is nothing.

    It names the model, as all of its files usually have the same; for a number that is not finite, the
    checkpoint too.
    """
    if not result.left_out:
        return None
    is_news = any(NOT_FINITE in name for name in result.left_out)
    where = f"{model} {checkpoint}" if is_news else model
    return f"{where}: not taken as metrics: {', '.join(result.left_out)}"


def _read(path: Union[str, Path]) -> tuple[os.stat_result, bytes]:
    """Return status and content of a small file; a file object would take twice as long."""
    # Without O_NONBLOCK, opening a named pipe would block forever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat_bits.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return status, os.read(descriptor, status.st_size + 1)
    finally:
        os.close(descriptor)


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the headline metrics, or the first two if there are none."""
    chosen = [name for name in HEADLINE if name in metrics] or list(metrics)[:2]
    return {name: metrics[name] for name in chosen}
