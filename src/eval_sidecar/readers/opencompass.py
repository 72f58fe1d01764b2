"""Reads the ``summary_<time>.csv`` of OpenCompass: ``dataset,version,metric,mode``, and a column a model.

A row becomes ``dataset/metric``; its version is the hash of the prompt. Nothing in the file says which way a
metric is better, nor its standard error.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from eval_sidecar.errors import ResultError
from eval_sidecar.readers.base import Collector, Measurements, require_one_model

_NAME = re.compile(r"summary_.*\.csv")
_HEADER = ["dataset", "version", "metric", "mode"]
#: Stands for a missing value.
_NOTHING = "-"


class OpenCompassReader:
    """Reads the summary that ``opencompass --work-dir`` writes."""

    name = "opencompass"

    def find(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Return the summaries among these."""
        mark = ",".join(_HEADER).encode()
        return [path for path in files if _NAME.fullmatch(path.name) and mark in path.read_bytes()[:100]]

    def read(self, files: Sequence[Path]) -> Measurements:
        """Return the numbers in these files; a data set that several have is taken from the newest.

        Raises:
            ResultError: if a file cannot be read, has no finite number, or is of several models.
        """
        collector = Collector()
        models: set[str] = set()
        for path in files:
            header, *rows = _rows(path)
            models.update(header[len(_HEADER) :])
            require_one_model(files, models)
            for row in rows:
                _collect(collector, row)
        return collector.measurements(files)


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise ResultError(f"{path}: is not valid CSV ({error})") from error
    if not rows or rows[0][: len(_HEADER)] != _HEADER:
        raise ResultError(f"{path}: does not begin with {','.join(_HEADER)}")
    if not text.endswith("\n"):  # a truncated number may still be valid
        raise ResultError(f"{path}: ends within a line; was its writer interrupted?")
    return rows


def _collect(collector: Collector, row: Sequence[str]) -> None:
    if len(row) <= len(_HEADER):
        return
    dataset, version, metric, _, value = row[: len(_HEADER) + 1]
    name = dataset if metric == _NOTHING else f"{dataset}/{metric}"
    if value == _NOTHING:
        if not dataset.startswith(("#", "--")):  # a heading
            collector.leave_out(name, "no value")
        return
    collector.add(name, value, task_version=None if version == _NOTHING else version)
