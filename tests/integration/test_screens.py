"""What stands on a terminal of 80 and of 120 columns, and in a pipe."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from typing import Any, Optional

import pytest

from eval_sidecar.cli.formats import text_width
from eval_sidecar.ledger.codec import to_text
from eval_sidecar.ledger.ledger import Ledger
from toolbox import Repository, wait_until

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A command on a terminal of its own, and everything that was written to it."""

    def __init__(
        self, repository: Repository, *arguments: str, columns: int, env: Optional[Mapping[str, str]] = None
    ) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        os.set_blocking(ours, False)
        self.columns, self.raw, self._ours = columns, "", ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eval_sidecar", *arguments],
            cwd=repository.root,
            env=repository.environment(
                {"TERM": "xterm-256color", "PYTHONPATH": "src", "PYTHONUTF8": "1", **(env or {})}
            ),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def read(self) -> str:
        """What was written so far."""
        with contextlib.suppress(BlockingIOError, OSError):  # OSError: the command has ended
            while added := os.read(self._ours, 65536):
                self.raw += added.decode("utf-8", "replace")
        return self.raw

    def finish(self) -> list[str]:
        """Wait for the end; return the lines without their colours."""
        wait_until(lambda: self.read() is None or self.process.poll() is not None, "the end")
        self.read()
        os.close(self._ours)
        return [line.rstrip() for line in re.split(r"[\r\n]+", _CONTROL.sub("", self.raw))]


def on_screen(repository: Repository, *arguments: str, columns: int, **env: str) -> list[str]:
    return Terminal(repository, *arguments, columns=columns, env=env).finish()


def assert_fits(lines: list[str], columns: int) -> None:
    """Check that no line is too long, but for a single word, such as a path, beside its label."""
    for line in lines:
        assert text_width(line) <= columns or len(line.split(maxsplit=2)) <= 2 or "dir " in line, line


@pytest.fixture
def watched(repository: Repository) -> Repository:
    """A model with results, a failure, and a checkpoint that is not complete."""
    for step in (100, 200, 300):
        repository.checkpoint(step)
    repository.fail(200, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB on GPU 0")
    repository.checkpoint(400, finished=False)
    repository.once("--instance", "cb64")
    return repository


@pytest.mark.parametrize("columns", [80, 120])
def test_every_screen_fits(watched: Repository, columns: int) -> None:
    model_dir = str(watched.model_dir.relative_to(watched.root))
    for command in (["show"], ["show", "--plot"], ["explain", "--sft-root", model_dir, "200"]):
        lines = on_screen(watched, *command, columns=columns)
        assert_fits(lines, columns)
        assert "Traceback" not in "".join(lines) and len(lines) > 5


@pytest.mark.parametrize("columns", [80, 120])
def test_status_is_a_table_that_fits(repository: Repository, columns: int) -> None:
    repository.checkpoint(100)
    repository.checkpoint(200)
    repository.block(200)
    repository.start()
    repository.wait_for_result(100)
    repository.wait_for_call(200)
    lines = on_screen(repository, "status", columns=columns)
    assert_fits(lines, columns)
    heading, row = lines[1:3]
    assert heading.split() == ["model", "done", "running", "undelivered", "best"]
    assert "1/2" in row and row.endswith("HR@10 0.0100 at 100")
    assert ("…" in row) == (columns == 80)


def test_a_problem_of_all_models_is_one_line_and_their_runs_another(repository: Repository) -> None:
    folder = repository.root / "state"
    folder.mkdir()
    files = []
    for name in ("cb64", "cb128"):
        ledger = Ledger(name, f"eval-{name}", name, problem="no key", where=f"https://w/t/p/runs/{name}")
        files.append(folder / f"{name}.json")
        files[-1].write_text(to_text(ledger))
    repository.manager.mkdir(parents=True)
    (repository.manager / "both.json").write_text(json.dumps({"state_files": list(map(str, files))}))
    shown = repository.sidecar("status", "--instance", "both").stdout.splitlines()
    assert [line.split() for line in shown[1:4]] == [["model", "done"], ["cb64", "0/0"], ["cb128", "0/0"]]
    assert "  problem  all 2 models: delivery: no key" in shown
    assert "  W&B 2 runs: https://w/t/p" in shown


def test_show_tells_of_failed_and_of_waiting_checkpoints(watched: Repository) -> None:
    done = watched.sidecar("show")
    assert done.returncode == 0
    name, heading, *rows = done.stdout.splitlines()
    assert name == watched.model
    assert heading.split() == ["step", "HR@10", "NDCG@10", "delivery"]
    assert rows[0].split() == ["100", "0.0100", "0.0050", "pending"]
    assert rows[1].split()[:2] == ["200", "failed:"] and rows[1].endswith("on GPU 0")
    assert rows[2].split() == ["300", "0.0300", "0.0150", "pending", "<-", "best"]
    assert rows[3].split()[:2] == ["400", "waiting:"]


def test_show_works_from_any_folder_and_on_results_alone(watched: Repository) -> None:
    flags = ("--results-root", str(watched.root / "results"), "--state-dir", str(watched.root / "nowhere"))
    elsewhere = [sys.executable, "-m", "eval_sidecar", "show", "--json", *flags]
    done = subprocess.run(
        elsewhere, cwd="/", env=watched.environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    (model,) = json.loads(done.stdout)
    assert (model["model"], model["state_file"]) == (watched.model, None)
    assert [one["step"] for one in model["checkpoints"]] == [100, 300]
    assert model["checkpoints"][0]["metrics"] == {"HR@10": 0.01, "NDCG@10": 0.005}


def test_show_as_csv_has_a_row_a_checkpoint(watched: Repository) -> None:
    rows = list(csv.DictReader(io.StringIO(watched.sidecar("show", "--csv", "--metric", "HR@10").stdout)))
    assert [(row["step"], row["stage"], row["HR@10"]) for row in rows] == [
        ("100", "evaluated", "0.01"),
        ("200", "failed", ""),
        ("300", "evaluated", "0.03"),
        ("400", "waiting", ""),
    ]
    assert "NDCG@10" not in rows[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nobody"], "nobody: no such model"),
        (["--metric", "HR@7"], "no result has it; there are: HR@10, NDCG@10"),
        (["--csv", "--json"], "give one of them"),
        (["--repo-root", "/nowhere"], "no results and no ledgers in"),
    ],
)
def test_show_refuses_what_there_is_not(watched: Repository, flags: list[str], words: str) -> None:
    done = watched.sidecar("show", *flags)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def explained(repository: Repository, step: int, *flags: str) -> str:
    done = repository.sidecar("explain", "--sft-root", str(repository.model_dir), *flags, str(step))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_explain_says_the_answer_first_and_each_fact_once(watched: Repository) -> None:
    text = explained(watched, 200)
    assert text.startswith("checkpoint-200: failed: the evaluation script ended with exit code 7: torch.Out")
    assert text.count("trainer_state.json says step 200") == 1
    assert explained(watched, 100).startswith("checkpoint-100: evaluated: HR@10 0.0100, NDCG@10 0.0050;")
    assert explained(watched, 400).startswith("checkpoint-400: waits to be evaluated: ")


def test_explain_as_json_has_one_form(watched: Repository) -> None:
    watched.checkpoint(500, finished=False)  # no ledger knows it
    stories: list[dict[str, Any]] = [json.loads(explained(watched, step, "--json")) for step in (200, 500)]
    assert stories[0].keys() == stories[1].keys()
    assert stories[0]["ledgers"][0]["stage"] == "failed" and stories[1]["ledgers"] == []
    assert stories[1]["folders"][0]["verdict"] == "partial"


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_turned_off(watched: Repository, variable: dict[str, str]) -> None:
    coloured, plain = (Terminal(watched, "show", columns=80, env=env) for env in ({}, variable))
    for terminal in (coloured, plain):
        terminal.finish()
    assert "\x1b[32m" in coloured.raw and "\x1b" not in plain.raw


def test_log_lines_take_one_line_and_progress_leaves_room_for_an_interrupt(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.hook("printf '%0200d\\n' 1; while [ ! -e control/go ]; do sleep 0.02; done")
    terminal = Terminal(repository, "run", *repository.flags, columns=80)
    wait_until(lambda: "checkpoint-100 " in terminal.read(), "progress")
    terminal.process.send_signal(signal.SIGINT)
    lines = terminal.finish()
    (started,) = (line for line in lines if "evaluation started" in line)
    assert text_width(started) <= 80 and started.endswith("kpoint-100.log")
    drawn = [line for line in lines if line.startswith("  checkpoint-100 ") or " done · 1 running" in line]
    assert drawn and max(map(text_width, drawn)) <= 76
    assert terminal.raw.rstrip().count("\x1b[?25h") == 1, "the cursor is shown again"


def test_tail_of_an_empty_log_says_since_when_nothing_came(repository: Repository) -> None:
    repository.manager.mkdir(parents=True)
    (repository.manager / "cb64.log").touch()
    assert "nothing new since 20" in repository.sidecar("tail", "--instance", "cb64").stdout
