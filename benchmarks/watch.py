"""Watching: how soon an evaluation starts, how well several GPUs are used, and what it costs to wait."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import psutil

from rows import CHECKOUT, COMMAND, Row, environment, row

MODEL = "Games-grec-sft-qwen4B-4-256-dsz0"
#: What watching by the clock takes: the quiet period, and then up to one poll.
QUIET_SECONDS, POLL_SECONDS = 120.0, 60.0
#: Seconds of sixteen evaluations.
LENGTHS = (4.0, 2.5, 3.5, 3.0) * 4
GPUS = "0 1 2 3"
DEADLINE = 120.0

SCRIPT = """
set -eu
name=$(basename "$CKPT_LIST")
date +%s.%N >"started-$name"
sleep "$(cat "$CKPT_LIST/seconds.json")"
mkdir -p "results/$(basename "$(dirname "$CKPT_LIST")")/$name"
echo '{"HR@10": 0.5}' >"results/$(basename "$(dirname "$CKPT_LIST")")/$name/metrics.json"
"""


def measure() -> list[Row]:
    """Measure all of it, one after the other."""
    return [*_first_evaluation(), *_several_gpus(), *_waiting()]


def write_checkpoint(folder: Path, step: int, seconds: float = 0.0) -> float:
    """Write a checkpoint in the order of a trainer; return when its last byte was there."""
    path = folder / MODEL / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "seconds.json").write_text(str(seconds))
    header = json.dumps({"w": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(1024))
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return time.time()


@contextmanager
def watching(
    folder: Path, *flags: str, account: Optional[Mapping[str, str]] = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Watch the model until the block ends; without an account, deliver nothing."""
    (folder / "evaluate.sh").write_text(SCRIPT)
    (folder / MODEL).mkdir(exist_ok=True)
    for name in ("test.json", "items.json"):
        (folder / name).write_text("[]")
    command = [
        *(*COMMAND, "watch", "--sft-root", MODEL, "--repo-root", ".", "--eval-script", "./evaluate.sh"),
        *("--test-data-path", "test.json", "--index-path", "items.json"),
        *("--poll-interval-seconds", str(POLL_SECONDS), *([] if account else ["--disable-wandb"]), *flags),
    ]
    log = (folder / "output").open("wb")
    process = subprocess.Popen(command, cwd=folder, env=environment(folder, account), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        log.close()


def wait_for(*paths: Path) -> None:
    """Wait until all of these are there."""
    wait_until(lambda: all(path.exists() for path in paths), f"{[str(path) for path in paths]}")


def wait_until(look: Callable[[], bool], what: str) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + DEADLINE
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {DEADLINE:g} s: {what}")
        time.sleep(0.005)


def _first_evaluation() -> list[Row]:
    delays = []
    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        folder = Path(name)
        with watching(folder) as process:
            wait_for_idle(process)
            for step in (100, 200, 300):
                whole = write_checkpoint(folder, step)
                started = folder / f"started-checkpoint-{step}"
                wait_for(folder / "results" / MODEL / f"checkpoint-{step}" / "metrics.json")
                delays.append(float(started.read_text()) - whole)
    what = "from the last byte of a checkpoint to the start of its evaluation"
    note = "the slowest of three; the baseline is not measured: a quiet period and half a poll"
    return [row(what, QUIET_SECONDS + POLL_SECONDS / 2, max(delays), at_most=1, note=note)]


def _several_gpus() -> list[Row]:
    seconds = []
    for flags in ((), ("--gpus-per-eval", "1")):
        with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
            folder = Path(name)
            for number, length in enumerate(LENGTHS, 1):
                write_checkpoint(folder, number * 100, length)
            names = [f"checkpoint-{number * 100}" for number in range(1, len(LENGTHS) + 1)]
            with watching(folder, "--cuda-list", GPUS, *flags):
                wait_for(folder / "started-checkpoint-100")
                began = float((folder / "started-checkpoint-100").read_text())
                wait_for(*(folder / "results" / MODEL / name / "metrics.json" for name in names))
                seconds.append(time.time() - began)
    what = f"{len(LENGTHS)} checkpoints waiting, 4 GPUs, --gpus-per-eval 1"
    return [row(what, *seconds, ratio=3.6, note="evaluations that sleep for 2.5 to 4 s")]


def _waiting() -> list[Row]:
    sys.path.insert(0, str(CHECKOUT / "tests"))
    from wandb_server import WandbServer

    with tempfile.TemporaryDirectory(prefix="es-bench-") as name, WandbServer() as server:
        folder = Path(name)
        account = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
        write_checkpoint(folder, 100)
        with watching(folder, account=account) as process:
            wait_until(lambda: any(run.points for run in server.runs.values()), "a point")
            itself = psutil.Process(process.pid)
            wait_until(lambda: not itself.children(), "the end of the W&B client, which is no longer needed")
            resident = itself.memory_info().rss / 2**20
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True, env=environment(folder))
        bare = time.perf_counter() - began
        shown = min(_command_seconds(folder, "--help") for _ in range(5))
        status = min(_command_seconds(folder, "status") for _ in range(5))
    note = f"python -c pass takes {bare:.2f} s"
    return [
        row("eval-sidecar --help", None, shown, at_most=0.25, note=note),
        row("eval-sidecar status", None, status, at_most=0.25, note=note),
        row(
            "watching idle, a minute after a delivery: resident memory of all its processes",
            None,
            resident,
            "MiB",
            at_most=60,
        ),
    ]


def _command_seconds(folder: Path, argument: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        [*COMMAND, argument], cwd=folder, env=environment(folder), capture_output=True, check=False
    )
    return time.perf_counter() - began


def wait_for_idle(process: subprocess.Popen[bytes]) -> None:
    """Wait until a watcher uses next to no processor time for a second."""
    member, before = psutil.Process(process.pid), -1.0
    while (used := sum(member.cpu_times()[:2])) > before + 0.02:
        before = used
        time.sleep(1.0)
    if process.poll() is not None:
        raise RuntimeError("the watcher has ended: see its log")
