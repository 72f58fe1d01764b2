"""Models, points and sessions for the tests of trackers, and a W&B tracker wired to a test server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Protocol
from unittest import mock

import psutil

from eval_sidecar.trackers.base import ServerView, Session, Tracker, plan_rows
from eval_sidecar.trackers.wandb import WandbSettings, WandbTracker
from eval_sidecar.types import ModelSpec, Point

METRICS = ("HR@1", "HR@3", "HR@5", "HR@10", "NDCG@1", "NDCG@3", "NDCG@5", "NDCG@10")


class Server(Protocol):
    """Where a client goes, and what it says there."""

    url: str
    key: str


def spec_of(run_id: str, **changes: Any) -> ModelSpec:
    given = {
        "model_dir": "Instruments-grec-sft-qwen4B-4-256-dsz0",
        "dataset": "Instruments_grec",
        "cb_setting": "cb256",
        "eval_split": "test",
        "seed": 42,
        "num_beams": 50,
        "sid_levels": -1,
        "project": "MIMIGenRec-Eval",
        "entity": None,
        "run_id": run_id,
        "run_name": f"name of {run_id}",
        "group": "grec",
    }
    return ModelSpec(**{**given, **changes})


def point_of(step: int, *, hr: Optional[float] = None, revision: int = 0) -> Point:
    value = step / 10_000 if hr is None else hr
    metrics = {name: round(value / (place + 1), 6) for place, name in enumerate(METRICS)}
    metrics["HR@10"] = value
    return Point(step, f"checkpoint-{step}", metrics, f"/results/m/checkpoint-{step}/metrics.json", revision)


def points_of(*steps: int) -> list[Point]:
    return [point_of(step) for step in steps]


def session_of(
    spec: ModelSpec, view: Optional[ServerView], new: Sequence[Point], older: Iterable[Point] = ()
) -> Session:
    """The session that appends the new points to what a look-up showed; offline where there was none."""
    table = tuple(sorted([*older, *new], key=lambda point: (point.step, point.revision)))
    last = view.last_index if view else -1
    return Session(
        spec=spec,
        start=last + 1 if view else None,
        rows=plan_rows(new, last),
        table=table,
    )


def deliver(tracker: Tracker, spec: ModelSpec, new: Sequence[Point], older: Iterable[Point] = ()) -> None:
    """Look up and append, with no care for what goes wrong."""
    tracker.send(session_of(spec, tracker.read(spec), new, older))


@contextmanager
def wandb_on(
    server: Server, folder: Path, *, key: Optional[str] = None, **changes: Any
) -> Iterator[WandbTracker]:
    """A tracker whose client talks to the server and knows nothing of this machine's W&B account."""
    quick = {
        "request_timeout": 10.0,
        "retries": 1,
        "retry_wait": 1,
        "send_deadline": 30.0,
        "read_deadline": 30.0,
    }
    settings = WandbSettings(log=folder / "wandb.log", directory=folder / "offline", **{**quick, **changes})
    environment = {
        "WANDB_API_KEY": key or server.key,
        "WANDB_BASE_URL": server.url,
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_ERROR_REPORTING": "false",
    }
    tracker = WandbTracker(settings)
    with mock.patch.dict("os.environ", environment):
        try:
            yield tracker
        finally:
            tracker.close()


def still_running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that do not end in a moment; zombies do not count."""
    alive = psutil.wait_procs(list(processes), timeout=10)[1]
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def descendants() -> list[psutil.Process]:
    """Processes started from here that still run."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
