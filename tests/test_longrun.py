"""The long run of ``scripts/longrun``, shortened: memory, files, processes and logs stay flat."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("wandb")
pytestmark = pytest.mark.wandb

CHECKPOINTS = 60


def test_nothing_grows_with_the_checkpoints_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).with_name("longrun.py"))),
            *("--checkpoints", str(CHECKPOINTS), "--samples", "5", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    last = said["samples"][-1]
    assert said["grown"] == []
    assert last["evaluated"] == last["confirmed"] == CHECKPOINTS
    assert (last["children"], last["zombies"], last["temporary"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": 40}, "files: 40"),
        ({"threads": 30}, "threads: 30"),
        ({"children": 9}, "children: 9"),
        ({"zombies": 5}, "zombies: 5"),
        ({"unique": 90_000}, "unique: 90000"),
        ({"log": 5_000}, "log: 5000"),
        ({"temporary": 900_000}, "temporary: 900000"),
        ({"pass_ms": 5_000.0}, "pass_ms: 5000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_grows_is_named(changes: dict[str, float], said: str) -> None:
    from longrun import Sample, what_has_grown

    fields = [field.name for field in dataclasses.fields(Sample)]
    usual = Sample(**dict.fromkeys(fields, 0))
    last = dataclasses.replace(usual, evaluated=100, confirmed=100)
    assert what_has_grown([usual] * 5 + [last], 100, 4) == []
    grown = dataclasses.replace(usual, **changes)
    (line,) = what_has_grown([usual] * 4 + [grown, last], 100, 4)
    assert line.startswith(said)


def test_a_point_that_is_missing_in_the_end_is_named() -> None:
    from longrun import Sample, what_has_grown

    fields = [field.name for field in dataclasses.fields(Sample)]
    usual = Sample(**dict.fromkeys(fields, 0))
    last = dataclasses.replace(usual, evaluated=100, confirmed=99, children=1)
    assert what_has_grown([usual] * 5 + [last], 100, 4) == [
        "100 evaluated and 99 confirmed of 100",
        "left behind: 1 processes, 0 zombies, 0 KiB of files",
    ]
