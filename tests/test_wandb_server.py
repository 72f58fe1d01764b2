"""The test server as a process of its own: what harnesses that drive it from outside rely on."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import wandb_server

KEY = "k" * 40


@contextmanager
def served(store: Path) -> Iterator[str]:
    command = [
        sys.executable,
        str(Path(wandb_server.__file__)),
        "--port",
        "0",
        "--store",
        str(store),
        "--key",
        KEY,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def ask(address: str, body: Any = None) -> Any:
    given = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, given)
    word = base64.b64encode(f"api:{KEY}".encode()).decode()
    request.add_header("Authorization", f"Basic {word}")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def write(url: str, offset: int, *steps: int) -> None:
    query = "mutation UpsertBucket { x }"
    ask(f"{url}/graphql", {"query": query, "variables": {"project": "p", "name": "r"}})
    lines = [json.dumps({"_step": step, "checkpoint_step": step}) for step in steps]
    files = {"wandb-history.jsonl": {"offset": offset, "content": lines}}
    ask(f"{url}/files/team/p/r/file_stream", {"files": files})


def steps(url: str) -> list[int]:
    (run,) = ask(f"{url}/state")["runs"]
    return [row["_step"] for row in run["rows"]]


def test_lines_stand_at_their_offsets_and_survive_a_restart(tmp_path: Path) -> None:
    with served(tmp_path / "store") as url:
        write(url, 0, 1, 2, 3)
        write(url, 1, 20)
    with served(tmp_path / "store") as url:
        assert steps(url) == [1, 20, 3]


def test_faults_can_be_set_and_healed_from_another_process(tmp_path: Path) -> None:
    with served(tmp_path / "store") as url:
        write(url, 0, 1)
        ask(f"{url}/control", {"do": "fault", "with": {"kind": "file_stream", "status": 503, "times": 1}})
        with pytest.raises(urllib.error.HTTPError, match="503"):
            write(url, 1, 2)
        write(url, 1, 2)
        ask(f"{url}/control", {"do": "fault", "with": {"kind": "*", "status": 500}})
        ask(f"{url}/control", {"do": "heal"})
        write(url, 2, 3)
        assert steps(url) == [1, 2, 3]
