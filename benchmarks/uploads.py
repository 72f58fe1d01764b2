"""Uploading the results of 16 models to a server that takes 50 ms more for every request.

The straightforward way opens one run after the other, logs a row and the whole table for each result, and
keeps a state file that is written after each.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from rows import CHECKOUT, COMMAND, Row, row, seconds_of

LATENCY_MS = 50
#: Results of each of 16 models, if there are no real ones.
SHAPE = (11, 10, 9, 9, 8, 8, 8, 8, 7, 7, 7, 6, 6, 6, 6, 5)
REAL = CHECKOUT.parent / "shared" / "data" / "results"

STRAIGHTFORWARD = """
import json, pathlib, wandb

state = pathlib.Path("state.json")
known = {}
manifest = json.loads(pathlib.Path("results/.wandb_eval_manifest.json").read_text())
for model in manifest["models"]:
    folder = pathlib.Path("results", model["model_dir"])
    paths = sorted(folder.glob("*/metrics.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    if not paths:
        continue
    run = wandb.init(
        project=model["wandb_project"], id=model["wandb_run_id"], name=model["wandb_run_name"], resume="allow"
    )
    rows = []
    for path in paths:
        step = int(path.parent.name.split("-")[1])
        metrics = json.loads(path.read_text())
        rows.append([step, *metrics.values()])
        values = {f"eval/{name}": value for name, value in metrics.items()}
        table = wandb.Table(columns=["checkpoint_step", *metrics], data=rows)
        run.log({"checkpoint_step": step, **values, "eval/checkpoint_table": table}, step=step)
        known.setdefault(model["model_dir"], []).append(step)
        state.write_text(json.dumps(known))
    run.finish()
"""


def measure() -> list[Row]:
    """Upload everything both ways, each to a server of its own."""
    sys.path.insert(0, str(CHECKOUT / "tests"))
    from wandb_server import WandbServer

    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        folder = Path(name)
        count = _make_results(folder / "results")
        seconds_of([*COMMAND, "prepare-manifest"], folder)
        seconds = []
        for command in (
            [sys.executable, "-c", STRAIGHTFORWARD],
            [*COMMAND, "upload", "--once"],
        ):
            with WandbServer() as server:
                server.set_latency(LATENCY_MS)
                quiet = {"WANDB_SILENT": "true", "WANDB_DIR": str(folder)}
                account = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
                seconds.append(seconds_of(command, folder, {**quiet, **account})[0])
                arrived = sum(len(run.points) for run in server.runs.values())
                assert arrived == count, f"{arrived} of {count} points arrived"
    what = f"upload {count} results of 16 models, {LATENCY_MS} ms a request"
    data = "real results" if REAL.is_dir() else "made-up results"
    return [row(what, *seconds, ratio=6, note=f"{data}; ours reads all of it back, the baseline does not")]


def _make_results(target: Path) -> int:
    if REAL.is_dir():
        shutil.copytree(REAL, target)
    else:
        for model, results in enumerate(SHAPE):
            for number in range(1, results + 1):
                path = target / f"Games-grec-sft-qwen4B-4-256-dsz{model}" / f"checkpoint-{number * 166}"
                path.mkdir(parents=True)
                metrics = {
                    f"{name}@{k}": round(number / (50 + model + k), 4)
                    for name in ("HR", "NDCG")
                    for k in (1, 3, 5, 10, 20, 50)
                }
                (path / "metrics.json").write_text(json.dumps(metrics))
    return len(list(target.glob("*/checkpoint-*/metrics.json")))
