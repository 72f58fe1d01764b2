"""Writes what a reader read as ``metrics.json``, and what it knows beyond the numbers as ``details.json``."""

from __future__ import annotations

import os
from pathlib import Path

from eval_sidecar.paths import METRICS
from eval_sidecar.readers.registry import Output
from eval_sidecar.system.files import write_json
from eval_sidecar.types import digest

VERSION = 1


def write_output(folder: Path, output: Output) -> None:
    """Write both files into a result's folder; ``metrics.json`` last, as it says that the result is there.

    A ``metrics.json`` that was read from there stays as the evaluation wrote it.

    Args:
        folder: The folder of the result; made if it is missing.
        output: What was read.

    Raises:
        StateError: if a file cannot be written.
    """
    measurements = output.measurements
    numbers = {name: found.value for name, found in measurements.by_name.items()}
    metrics = folder / METRICS
    details = {
        "version": VERSION,
        # Details belong to these numbers: if metrics.json has others, they must not be used.
        "digest": digest(numbers),
        "reader": output.reader,
        "files": [os.path.relpath(path, folder) for path in measurements.files],
        "sample_files": [os.path.relpath(path, folder) for path in measurements.sample_files],
        "left_out": list(measurements.left_out),
        "metrics": {
            name: {
                "direction": found.direction,
                "stderr": found.stderr,
                "samples": found.samples,
                "task_version": found.task_version,
            }
            for name, found in measurements.by_name.items()
        },
    }
    write_json(folder / "details.json", details)
    if metrics not in measurements.files:
        write_json(metrics, numbers)
