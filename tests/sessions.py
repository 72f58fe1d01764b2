"""What a person types at a terminal, replayed in a terminal emulator, and what must then be on the screen.

`scripts/sessions --show` prints the screens; `tests/integration/test_sessions.py` checks them.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Callable

import pyte

from eval_sidecar.ledger.codec import to_text
from eval_sidecar.ledger.ledger import Ledger
from toolbox import CHECKOUT, Repository, wait_until

WIDTHS = (80, 120)
#: As long as the names of sweeps get.
LONG = "Industrial_and_Scientific-grec-sft-qwen2.5-7B-4-256-dsz0-lr1e-4-seed42"
#: Rows of the terminal; the emulator keeps more, as a terminal with scrollback does.
_ROWS, _SCROLLBACK = 40, 2000
_CTRL_C = b"\x03"


class _Screen(pyte.Screen):
    """A screen that knows which of its lines the terminal had to break."""

    def __init__(self, columns: int) -> None:
        self.broken: set[int] = set()
        super().__init__(columns, _SCROLLBACK)

    def draw(self, data: str) -> None:
        for char in data:
            if self.cursor.x == self.columns:
                self.broken.add(self.cursor.y)
            super().draw(char)


class Desk:
    """A terminal in which a person types one command after the other.

    Attributes:
        repository: Where the person works.
        columns: Width of the terminal.
        raw: Everything that was written to it.
        keyboard: Descriptor that takes what the person presses.
    """

    def __init__(self, repository: Repository, columns: int) -> None:
        self.repository, self.columns, self.raw = repository, columns, ""
        self._screen = _Screen(columns)
        self._stream = pyte.ByteStream(self._screen)
        self.keyboard = -1
        sources, python = shlex.quote(str(CHECKOUT / "src")), shlex.quote(sys.executable)
        repository.add_python("eval-sidecar", f'PYTHONPATH={sources} exec {python} -m eval_sidecar "$@"')
        data = "data/Instruments_grec"
        self.watch = (
            f"--sft-root saves/{repository.model} --disable-wandb"
            f" --test-data-path {data}/sft/test.json --index-path {data}/id2sid.json"
        )

    @property
    def lines(self) -> list[str]:
        """The lines on the screen, with what was scrolled away."""
        return [self._row(row).rstrip() for row in range(self._screen.cursor.y + 1)]

    @property
    def answer(self) -> str:
        """What is on the screen below the command that was typed last."""
        lines = self.lines
        typed = max(number for number, line in enumerate(lines) if line.startswith("$ "))
        return "\n".join(lines[typed + 1 :])

    def begin(self, line: str, *, folder: str = ".", **env: str) -> subprocess.Popen[bytes]:
        """Type a command and press Enter."""
        self.keyboard, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, self.columns, 0, 0))
        os.set_blocking(self.keyboard, False)
        prompt = line if len(line) <= self.columns - 2 else f"{line[: self.columns - 3]}…"
        self._feed(f"{chr(10) if self._screen.cursor.x else ''}\r$ {prompt}\r\n".encode())
        process = subprocess.Popen(
            ["bash", "-c", line],
            cwd=self.repository.root / folder,
            env=self.repository.environment({"TERM": "xterm-256color", "PYTHONUTF8": "1", **env}),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # So that Ctrl-C and a closed window reach it.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
        )
        os.close(theirs)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a command to end; return its exit code."""
        wait_until(lambda: self._read() or process.poll() is not None, "the end")
        self._read()
        os.close(self.keyboard)
        return process.returncode

    def type(self, line: str, expected: int = 0, *, folder: str = ".", **env: str) -> str:
        """Run a command to its end, which must be this exit code; return what it shows."""
        code = self.end(self.begin(line, folder=folder, **env))
        assert code == expected, f"exit code {code}, not {expected}:\n{self.answer}"
        return self.answer

    def wait_for(self, text: str) -> None:
        """Wait for a text on the screen."""
        wait_until(lambda: self._read() or text in self.answer, text)

    def broken(self) -> list[str]:
        """The lines that the terminal broke, up to there, but for those that end in the middle of a path."""
        shown = map(self._row, sorted(self._screen.broken))
        return [
            line for line in shown if "/" not in (word := line.split(" ")[-1]) and len(word) < self.columns
        ]

    def _row(self, row: int) -> str:
        line = self._screen.buffer[row]
        return "".join(line[column].data for column in range(self.columns))

    def _feed(self, data: bytes) -> None:
        self.raw += data.decode("utf-8", "replace")
        self._stream.feed(data)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # OSError: the command has ended
            while data := os.read(self.keyboard, 65536):
                self._feed(data)


def _shows(text: str, *wanted: str) -> None:
    for pattern in wanted:
        assert re.search(pattern, text, re.MULTILINE), f"{pattern!r} is not in:\n{text}"


def help_and_typing_errors(desk: Desk) -> None:
    _shows(
        desk.type("eval-sidecar --help"), "^  run +Watch a training", "^  once ", "^  start ", "^  status "
    )
    text = desk.type("eval-sidecar run --help")
    _shows(text, r"^Examples:\n  eval-sidecar run --sft-root", "^What to watch:", "^W&B:", "^Files:")
    for typed, meant in (("statsu", "status"), ("run --sft-rot x", "--sft-root"), ("sho", "show")):
        text = desk.type(f"eval-sidecar {typed}", 2)
        _shows(text, rf"(?is)did you mean.*\b{meant.lstrip('-')}\b")
    _shows(desk.type("eval-sidecar run", 2), "--sft-root", "--results-root")


def watching_until_ctrl_c(desk: Desk) -> None:
    desk.repository.checkpoint(100)
    desk.repository.checkpoint(200)
    desk.repository.block(200)
    running = desk.begin(f"eval-sidecar run {desk.watch}")
    desk.wait_for("1/2 done · 1 running")
    _shows(desk.answer, r"^  checkpoint-200 .*\d s")
    os.write(desk.keyboard, _CTRL_C)
    desk.end(running)
    assert not re.search(r" done ·|^  checkpoint-200 ", desk.answer, re.MULTILINE), "progress is left behind"
    assert "\x1b[?25l" not in desk.raw.rpartition("\x1b[?25h")[2], "the cursor is hidden"
    _shows(desk.answer, "SIGINT: ending evaluations", "^WAITING +checkpoint-200", r"^ *100 +0\.0100")


def once_with_results(desk: Desk) -> None:
    for step in (100, 200, 300):
        desk.repository.checkpoint(step)
    text = desk.type(f"eval-sidecar once {desk.watch}")
    _shows(text, "HR@10 +NDCG@10", r"^ *100 +0\.0100 +0\.0050", r"300 +0\.0300 +0\.0150")
    assert "started" not in desk.type(f"eval-sidecar once {desk.watch}")


def background_instances(desk: Desk) -> None:
    desk.repository.checkpoint(100)
    desk.repository.checkpoint(200)
    desk.repository.block(200)
    _shows(desk.type(f"eval-sidecar start --instance cb64 {desk.watch}"), "^started cb64", "^W&B: off")
    desk.repository.wait_for_call(200)
    _shows(desk.type("eval-sidecar status"), "^cb64: running", "1/2", r"HR@10 0\.0100 at 100", r"200 \d+ s")
    _shows(desk.type("eval-sidecar status nobody", 2), "no instance is called nobody", "cb64: running")
    tail = desk.begin("eval-sidecar tail cb64")
    desk.wait_for("checkpoint-200: evaluation started")
    os.write(desk.keyboard, _CTRL_C)
    desk.end(tail)
    _shows(desk.answer, r"checkpoint-100: HR@10 0\.01, NDCG@10 0\.005 \(evaluated in")
    (desk.repository.root / "elsewhere").mkdir()
    model = desk.repository.model
    (desk.repository.root / "saves" / f"{model}-b").mkdir()
    desk.type(f"eval-sidecar start --instance other {desk.watch.replace(model, model + '-b')}")
    _shows(desk.type("eval-sidecar stop", 2), "cb64", "other")
    _shows(desk.type("eval-sidecar stop nobody", 2), "no instance is called nobody", "other: running")
    _shows(desk.type("eval-sidecar stop other", folder="elsewhere"), "^stopped other ")
    _shows(desk.type("eval-sidecar stop", folder="elsewhere"), "^stopped cb64 ")
    _shows(desk.type("eval-sidecar status", 3), "cb64: not running")


def status_of_three_models(desk: Desk) -> None:
    folder = desk.repository.root / "state"
    folder.mkdir()
    files = []
    for name in (LONG, LONG.replace("256", "128"), "音乐推荐-grec-sft-qwen4B-4-64-dsz0"):
        ledger = Ledger(
            name, f"eval-{name}", name, problem="no key", where=f"https://w.ai/team/proj/runs/{name}"
        )
        files.append(folder / f"{name}.json")
        files[-1].write_text(to_text(ledger))
    desk.repository.manager.mkdir(parents=True)
    (desk.repository.manager / "three.json").write_text(json.dumps({"state_files": list(map(str, files))}))
    text = desk.type("eval-sidecar status three", 3)
    _shows(
        text,
        "^  model +done",
        "problem  all 3 models: delivery: no key",
        r"W&B 3 runs: https://w.ai/team/proj",
    )
    assert text.count("0/0") == 3, text


def reading_results(desk: Desk) -> None:
    repository = desk.repository
    for step in range(100, 500, 100):
        repository.checkpoint(step)
    repository.fail(200, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB on GPU 0")
    repository.checkpoint(500, finished=False)
    once = desk.type(f"eval-sidecar once {desk.watch}", 1)
    _shows(once, "checkpoint-200", "checkpoint-200.log")
    _shows(desk.type("eval-sidecar show"), "^ *100 +0.0100", "200 +failed", "400 .*best", "500 +waiting")
    _shows(desk.type("eval-sidecar show --plot"), r"^0\.04 ", r"^0\.01 ", " 400$")
    folder = f"--sft-root saves/{repository.model}"
    _shows(desk.type(f"eval-sidecar explain {folder} 200"), "^checkpoint-200: failed", "CUDA out of memory")
    _shows(desk.type(f"eval-sidecar explain {folder} 500"), "^checkpoint-500: waits")
    repository.unhook(200)
    desk.type(f"eval-sidecar retry {folder} 200")
    _shows(desk.type(f"eval-sidecar once {desk.watch}", 75), "200 +0.0200")
    _shows(desk.type("eval-sidecar show nobody", 2), "nobody: no such model")


def a_script_that_fails(desk: Desk) -> None:
    for step in range(100, 600, 100):
        desk.repository.checkpoint(step)
    desk.repository.hook("echo \"ModuleNotFoundError: No module named 'torch'\"; exit 1")
    text = desk.type(f"eval-sidecar once {desk.watch}", 1)
    assert len(set(desk.repository.calls)) == 2, desk.repository.calls
    assert text.count("evaluation is paused: checkpoint-100 and") == 2, text  # in the log, and at the end
    assert text.count("WAITING") == 1, text


def no_key_for_several_models(desk: Desk) -> None:
    for number in range(4):
        folder = desk.repository.root / "results" / f"{LONG}-{number}" / "checkpoint-100"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text('{"HR@10": 0.1, "NDCG@10": 0.05}')
    desk.type("eval-sidecar prepare-manifest --results-root results")
    text = desk.type("eval-sidecar once --results-root results --confirm-seconds 0", 1)
    assert text.count("NOT DONE") == 1 and "all 4 models: 4 points not delivered" in text, text
    assert text.count("wandb login") == 1, text


def a_closed_window(desk: Desk) -> None:
    desk.repository.checkpoint(100)
    desk.repository.block(100)
    running = desk.begin(f"eval-sidecar run {desk.watch}")
    desk.wait_for("1 running")
    os.close(desk.keyboard)  # the window is closed
    wait_until(lambda: running.poll() is not None, "the end")
    wait_until(lambda: not desk.repository.processes(), "the end of the evaluation")
    desk.repository.release()
    _shows(desk.type(f"eval-sidecar once {desk.watch}"), r"100 +0\.0100")


def plain_terminals_and_pipes(desk: Desk) -> None:
    desk.repository.checkpoint(100)
    for step, env in enumerate(({"NO_COLOR": "1"}, {"TERM": "dumb"}), 2):
        desk.repository.checkpoint(step * 100)
        before = len(desk.raw)
        desk.type(f"eval-sidecar once {desk.watch}", **env)
        seen = re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]", desk.raw[before:])
        assert not [code for code in seen if code.endswith("m") and re.search("[349][0-7]", code)], seen
        assert env.get("TERM") != "dumb" or not seen
    desk.repository.checkpoint(400)
    before = len(desk.raw)
    _shows(desk.type(f"eval-sidecar once {desk.watch} 2>&1 | cut -c -79"), r"400 +0\.0400", "checkpoint-400")
    assert "\x1b" not in desk.raw[before:]


SESSIONS: dict[str, Callable[[Desk], None]] = {
    session.__name__: session
    for session in (
        help_and_typing_errors,
        watching_until_ctrl_c,
        once_with_results,
        background_instances,
        status_of_three_models,
        reading_results,
        a_script_that_fails,
        no_key_for_several_models,
        a_closed_window,
        plain_terminals_and_pipes,
    )
}


def replay(name: str, columns: int, folder: Path) -> Desk:
    """Replay one session; return the terminal as the person leaves it.

    Raises:
        AssertionError: if something else is on the screen than there should be.
    """
    repository = Repository(folder / "GenRec", LONG)
    desk = Desk(repository, columns)
    try:
        SESSIONS[name](desk)
        assert not desk.broken(), f"broken by the terminal at {columns} columns: {desk.broken()}"
        assert "Traceback" not in desk.raw
    except AssertionError as error:
        error.args = (f"{error}\n--- the screen:\n" + "\n".join(desk.lines),)
        raise
    finally:
        repository.clean_up()
    return desk


def main() -> int:
    """Replay sessions; 1 if a screen is not as it should be."""
    parser = argparse.ArgumentParser(prog="scripts/sessions", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SESSIONS)}; default: all")
    parser.add_argument("--columns", type=int, action="append", help=f"width; default: {WIDTHS}")
    parser.add_argument("--show", action="store_true", help="print the screens")
    flags = parser.parse_args()
    failed = 0
    for name in flags.names or SESSIONS:
        for columns in flags.columns or WIDTHS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    text, word = "\n".join(replay(name, columns, Path(folder)).lines), "as it should be"
                except AssertionError as error:
                    text, word, failed = str(error), "WRONG", 1
            if flags.show or word == "WRONG":
                print("-" * columns + "\n" + text + "\n" + "-" * columns)
            print(f"{name} at {columns} columns: {word}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
