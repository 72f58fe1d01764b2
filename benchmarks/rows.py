"""What every benchmark here gives: rows of one table, and a folder to work in."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

CHECKOUT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "-m", "eval_sidecar")

Row = dict[str, Any]


def row(
    what: str,
    baseline: Optional[float],
    ours: float,
    unit: str = "s",
    *,
    ratio: Optional[float] = None,
    at_most: Optional[float] = None,
    note: str = "",
) -> Row:
    """One row of the table.

    Args:
        what: What was done.
        baseline: What the straightforward way took; None where there is none.
        ours: What this project took.
        unit: Of both.
        ratio: How many times better ours must be than the baseline.
        at_most: What ours must not exceed.
        note: What else one should know.
    """
    times = None if baseline is None else baseline / ours
    wanted = [f"{ratio:g}x"] if ratio else []
    wanted += [f"{at_most:g} {unit}"] if at_most else []
    return {
        "what": what,
        "baseline": baseline,
        "ours": ours,
        "unit": unit,
        "ratio": times,
        "target": ", ".join(wanted),
        "reached": (ratio is None or (times or 0) >= ratio) and (at_most is None or ours <= at_most),
        "note": note,
    }


def seconds_of(
    command: Sequence[str | Path], folder: Path, env: Optional[Mapping[str, str]] = None
) -> tuple[float, str]:
    """Run a command to its end; return how long that took, and what it printed.

    Raises:
        RuntimeError: where it fails, with the end of what it printed.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment(folder, env),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return seconds, done.stdout


def environment(folder: Path, extra: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """An environment that knows this checkout and nothing of this machine's W&B account."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    paths = [str(CHECKOUT / "src"), str(CHECKOUT / "tests"), kept.get("PYTHONPATH", "")]
    return {**kept, "HOME": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(extra or {})}


def processor_seconds() -> float:
    """Seconds of processor time that ended children have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
