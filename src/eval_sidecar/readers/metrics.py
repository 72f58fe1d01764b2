"""Reads a ``metrics.json``, flat or nested: what every evaluation script may write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval_sidecar.best import direction_of
from eval_sidecar.errors import ResultError
from eval_sidecar.ledger.metrics import parse_metrics
from eval_sidecar.paths import METRICS
from eval_sidecar.readers.base import Measurement, Measurements


class MetricsReader:
    """Reads ``metrics.json`` in the output folder itself."""

    name = "metrics"

    def find(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Return the file called ``metrics.json``, if it is there."""
        return [path for path in files if path == folder / METRICS]

    def read(self, files: Sequence[Path]) -> Measurements:
        """Return the numbers in the file; their names alone tell which way they are better.

        Raises:
            ResultError: if it cannot be read, is not a JSON object, or has no finite number.
        """
        path = files[-1]
        try:
            numbers, left_out = parse_metrics(path.read_bytes())
        except OSError as error:
            raise ResultError(f"{path}: cannot be read ({error.strerror})") from error
        except ResultError as error:
            raise ResultError(f"{path}: {error}") from error
        by_name = {name: Measurement(value, direction_of(name)) for name, value in numbers.items()}
        return Measurements(by_name, (path,), left_out)
