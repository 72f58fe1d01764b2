"""Passes over the results of a thousand models: the first, one with nothing new, and one inside the loop.

The straightforward way rewrites a model's whole state with each point, and opens every result again
to see whether it has changed.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from rows import COMMAND, Row, row, seconds_of

MODELS = 1_000
RESULTS = 50
#: The straightforward way is linear in the models, and slow: it is measured on this many, and multiplied.
BASELINE_MODELS = 100
PASSES = 20


def make_results(folder: Path, models: int = MODELS) -> None:
    """Write ``results/`` of that many models."""
    for model in range(models):
        for number in range(1, RESULTS + 1):
            path = (
                folder / "results" / f"Games-grec-sft-qwen4B-4-256-dsz{model}" / f"checkpoint-{number * 100}"
            )
            path.mkdir(parents=True)
            metrics = {
                f"{name}@{k}": round(number / (100 + k), 4) for name in ("HR", "NDCG") for k in (1, 5, 10)
            }
            (path / "metrics.json").write_text(json.dumps(metrics))


def straightforward_pass(results: Path, state: Path) -> None:
    """Take each result that is new into its model's state, and save that at once."""
    state.mkdir(exist_ok=True)
    for model in sorted(path for path in results.iterdir() if path.is_dir()):
        file = state / f"{model.name}.json"
        known = json.loads(file.read_text()) if file.exists() else {"processed_steps": [], "table_rows": {}}
        for checkpoint in sorted(model.iterdir(), key=lambda path: int(path.name.rpartition("-")[2])):
            step = int(checkpoint.name.rpartition("-")[2])
            metrics = json.loads((checkpoint / "metrics.json").read_text())
            if known["table_rows"].get(str(step)) == metrics:
                continue
            known["processed_steps"].append(step)
            known["table_rows"][str(step)] = metrics
            with (state / "new").open("w") as new:
                json.dump(known, new, indent=1)
                new.flush()
                os.fsync(new.fileno())
            (state / "new").replace(file)


def measure() -> list[Row]:
    """Measure all three kinds of pass."""
    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        folder = Path(name)
        # Ours first: the other way deletes a file a point, and ext4 makes new files slowly just after that.
        make_results(folder)
        seconds_of([*COMMAND, "prepare-manifest"], folder)
        upload = [*COMMAND, "upload", "--once", "--disable-wandb"]
        first = statistics.median(
            seconds_of([*upload, "--state-dir", str(folder / f"state-{number}")], folder)[0]
            for number in range(3)
        )
        seconds_of(upload, folder)
        seconds_of(upload, folder)  # folders that have just changed are checked in full once more
        again = min(seconds_of(upload, folder)[0] for _ in range(3))
        inside = _inside_the_loop(folder)

        small = folder / "small"
        make_results(small, BASELINE_MODELS)
        scale = MODELS / BASELINE_MODELS
        began = time.perf_counter()
        straightforward_pass(small / "results", small / "state")
        slow_first = (time.perf_counter() - began) * scale
        began = time.perf_counter()
        straightforward_pass(small / "results", small / "state")
        slow_again = (time.perf_counter() - began) * scale
    what = f"{MODELS:,} models with {RESULTS} results"
    linear = f"baseline: {BASELINE_MODELS} models, times {scale:g}"
    middle = f"{linear}; ours: the middle one of three"
    return [
        row(f"first pass over {what}, no tracker", slow_first, first, at_most=8, note=middle),
        row(f"pass over {what}, nothing new, new process", slow_again, again, at_most=0.7, note=linear),
        row(f"pass over {what}, nothing new, inside the loop", slow_again, inside, at_most=0.05, note=linear),
    ]


def _inside_the_loop(folder: Path) -> float:
    from eval_sidecar.delivery.uploading import Uploader
    from eval_sidecar.manifest.manifest import load_manifest

    models = load_manifest(folder / "results" / ".wandb_eval_manifest.json")
    uploader = Uploader(folder / "results", folder / "state" / "wandb_eval_uploader", None, confirms=False)
    uploader.run_pass(models, threading.Event())
    times = []
    for _ in range(PASSES):
        began = time.perf_counter()
        outcomes = uploader.run_pass(models, threading.Event())
        times.append(time.perf_counter() - began)
        assert not any(outcome.was_opened for outcome in outcomes)
    return statistics.median(times)
