"""Writes the results of one checkpoint; a reader never sees an incomplete file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.errors import EvaluationError, one_line


def write_results(
    output_root: Path,
    checkpoint: Path,
    rows: Sequence[Mapping[str, Any]],
    predictions: Sequence[Sequence[str]],
    metrics: Mapping[str, float],
) -> Path:
    """Write ``final_result.json``, ``metrics.tsv`` and, last, ``metrics.json``; return their folder.

    ``metrics.json`` comes last because its presence says that the evaluation is done.

    Args:
        output_root: Folder of all results, such as ``results``.
        checkpoint: The checkpoint's folder; its name and its parent's name make the folder below
            ``output_root``.
        rows: The rows of the test set.
        predictions: For each row the ranked list of items.
        metrics: Metric names to values, in the order in which they are written.

    Raises:
        EvaluationError: If a file cannot be written.
    """
    model, name = checkpoint.parent.name, checkpoint.name
    folder = output_root / model / name
    results = [{**row, "predict": list(items)} for row, items in zip(rows, predictions)]
    columns = [key for kind in ("HR@", "NDCG@") for key in metrics if key.startswith(kind)]
    lines = [["path", *columns], [f"{model}/{name}", *(str(metrics[key]) for key in columns)]]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "final_result.json", json.dumps(results, indent=0, ensure_ascii=False))
        _write(folder / "metrics.tsv", "".join("\t".join(line) + "\n" for line in lines))
        _write(folder / "metrics.json", json.dumps(dict(metrics), indent=2))
    except OSError as error:
        raise EvaluationError(f"{name}: its results cannot be written: {one_line(error)}") from None
    return folder


def _write(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old or the new content, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # otherwise the new name may be lost
    finally:
        os.close(folder)
