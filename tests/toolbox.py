"""A user's repository in a folder of its own, and the commands that a user types in it.

Nothing here waits for time to pass: tests wait for conditions, and evaluations that have to last wait
for a file.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
MODEL = "Instruments-grec-sft-qwen4B-4-64-dsz0"

#: How long anything may take that is waited for, in seconds.
DEADLINE = 60.0

#: The variables of the evaluation script, as the first document lists them.
SCRIPT_VARIABLES = (
    *("CATEGORY", "CUDA_LIST", "PYTHON_BIN", "TEST_DATA_PATH", "INDEX_PATH", "BATCH_SIZE", "MAX_NEW_TOKENS"),
    *("NUM_BEAMS", "TEMPERATURE", "DO_SAMPLE", "LENGTH_PENALTY", "SID_LEVELS", "CKPT_LIST"),
)

#: Begins the lines in an evaluation's log that are not the script's.
OUR_MARK = "=== eval-sidecar: "

#: Every process that a test starts, and all that those start, carries this variable.
_MARKER = "EVAL_SIDECAR_TEST"

_EVAL_SCRIPT = """#!/usr/bin/env bash
# Evaluates one checkpoint as somebody's own script would: by CKPT_LIST, into results/.
set -eu
name=$(basename "$CKPT_LIST")
model=$(basename "$(dirname "$CKPT_LIST")")
result=results/$model/$name
echo "$name" >>control/calls
echo "evaluating $name of $1"
env -0 >"control/env-$name"
if [ -e control/hook ]; then . control/hook; fi
if [ -e "control/hook-$name" ]; then . "control/hook-$name"; fi
ls "$CKPT_LIST" >"control/files-$name"
mkdir -p "$result"
printf '{"HR@10": 0.%04d, "NDCG@10": 0.%04d}' "${name#checkpoint-}" "$((${name#checkpoint-} / 2))" \
  >"$result/metrics.json.tmp"
mv "$result/metrics.json.tmp" "$result/metrics.json"
"""

_T = TypeVar("_T")


def printed(log: Path) -> str:
    """Return what the evaluations themselves have printed into their log."""
    return "".join(line for line in log.read_text().splitlines(True) if not line.startswith(OUR_MARK))


def wait_until(look: Callable[[], _T], what: str, seconds: float = DEADLINE) -> _T:
    """Look again and again until there is something to see; return that.

    Raises:
        AssertionError: where there is nothing in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.02)


def write_checkpoint(folder: Path, step: int, *, finished: bool = True) -> Path:
    """Write a checkpoint as Hugging Face Trainer does: the weights whole, ``trainer_state.json`` last."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (path / "optimizer.pt").write_bytes(b"PK")
    if finished:
        finish_checkpoint(path)
    return path


def finish_checkpoint(path: Path) -> None:
    """Write what a trainer writes last."""
    step = int(path.name.rpartition("-")[2])
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))


@dataclass
class Command:
    """A command that runs, or has run, on its own."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """Everything that it has printed so far, on both channels."""
        return (self.folder / "stdout").read_text() + self.errors

    @property
    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait(self) -> int:
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end; it has printed:\n{self.output}") from None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Interrupt as a terminal does: the whole group in the foreground."""
        os.killpg(self.pid, signal.SIGINT)


@dataclass
class Repository:
    """What a user has: the root scripts, data, a model dir, and an evaluation script.

    Attributes:
        root: The repository root, in which commands run.
        model: Name of the model dir.
        extra: Variables for every command.
    """

    root: Path
    model: str = MODEL
    extra: dict[str, str] = field(default_factory=dict)
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        for name in ("eval_wandb_sidecar.py", "eval_wandb_sidecar.sh"):
            shutil.copy(CHECKOUT / name, self.root / name)
        (self.root / "src").symlink_to(CHECKOUT / "src")
        self.script.write_text(_EVAL_SCRIPT)
        self.control.mkdir()
        (self.root / "data/Instruments_grec/sft").mkdir(parents=True)
        self.test_data.write_text("[]")
        self.index.write_text("{}")
        self.model_dir.mkdir(parents=True)
        self.home.mkdir()
        self.add_python("python3", f'exec {shlex.quote(sys.executable)} "$@"')
        self.add_python("python", f'exec {shlex.quote(sys.executable)} "$@"')

    # -- places -------------------------------------------------------------------------------------

    @property
    def script(self) -> Path:
        return self.root / "evaluate_sft_3b.sh"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def test_data(self) -> Path:
        return self.root / "data/Instruments_grec/sft/test.json"

    @property
    def index(self) -> Path:
        return self.root / "data/Instruments_grec/id2sid.json"

    @property
    def model_dir(self) -> Path:
        return self.root / "saves" / self.model

    @property
    def pins_folder(self) -> Path:
        return self.root / "saves" / ".eval-sidecar" / self.model

    @property
    def results(self) -> Path:
        return self.root / "results" / self.model

    @property
    def manager(self) -> Path:
        return self.root / "log/eval_sidecar"

    def metrics(self, step: int) -> Path:
        return self.results / f"checkpoint-{step}/metrics.json"

    def checkpoint(self, step: int, *, finished: bool = True) -> Path:
        return write_checkpoint(self.model_dir, step, finished=finished)

    # -- commands -----------------------------------------------------------------------------------

    @property
    def flags(self) -> list[str]:
        """What every watching command needs, without W&B."""
        return [
            *("--repo-root", ".", "--sft-root", str(self.model_dir)),
            *("--test-data-path", str(self.test_data), "--index-path", str(self.index)),
            "--disable-wandb",
        ]

    def environment(self, extra: Optional[Mapping[str, str]] = None) -> dict[str, str]:
        """A user's environment, without anything that the person who runs the tests has set."""
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "PATH": f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            _MARKER: self.marker,
            **self.extra,
            **(extra or {}),
        }

    def add_python(self, name: str, body: str) -> None:
        """Put a Python under this name on the path."""
        path = self.home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def spawn(self, *argv: str, env: Optional[Mapping[str, str]] = None) -> Command:
        """Start a command in the repository root."""
        folder = self.root / "commands" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                argv,
                cwd=self.root,
                env=self.environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return Command(process, folder)

    def execute(
        self, *argv: str, env: Optional[Mapping[str, str]] = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = self.spawn(*argv, env=env)
        code = command.wait()
        out = (command.folder / "stdout").read_text()
        return subprocess.CompletedProcess(argv, code, out, command.errors)

    def type(self, line: str, env: Optional[Mapping[str, str]] = None) -> subprocess.CompletedProcess[str]:
        """Run a line as typed into a shell."""
        return self.execute("bash", "-c", line, env=env)

    def sidecar(
        self, *arguments: str, env: Optional[Mapping[str, str]] = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the management script to its end."""
        return self.execute("bash", "eval_wandb_sidecar.sh", *arguments, env=env)

    def once(
        self, *arguments: str, env: Optional[Mapping[str, str]] = None
    ) -> subprocess.CompletedProcess[str]:
        return self.sidecar("once", *self.flags, *arguments, env=env)

    def run(self, *arguments: str, env: Optional[Mapping[str, str]] = None) -> Command:
        """Watch in the foreground, in a process of its own."""
        return self.spawn("bash", "eval_wandb_sidecar.sh", "run", *self.flags, *arguments, env=env)

    def start(self, *arguments: str, instance: str = "cb64") -> int:
        """Start an instance, which must succeed; return its pid."""
        done = self.sidecar("start", "--instance", instance, *self.flags, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return int(self.status(instance)["pid"])

    def status(self, instance: str = "cb64") -> dict[str, Any]:
        (state,) = json.loads(self.sidecar("status", "--instance", instance, "--json").stdout)
        return state

    # -- what has come of it ------------------------------------------------------------------------

    @property
    def calls(self) -> list[str]:
        """The checkpoints that the evaluation script was called for, in order."""
        path = self.control / "calls"
        return path.read_text().split() if path.exists() else []

    def seen_by_script(self, step: int) -> dict[str, str]:
        """The environment in which a checkpoint was evaluated."""
        pairs = (self.control / f"env-checkpoint-{step}").read_bytes().split(b"\0")
        return dict(pair.decode().split("=", 1) for pair in pairs if pair)

    def hook(self, body: str, step: Optional[int] = None) -> None:
        """Let the evaluation of one checkpoint, or each, do this first."""
        name = "hook" if step is None else f"hook-checkpoint-{step}"
        (self.control / name).write_text(body + "\n")

    def block(self, step: Optional[int] = None) -> None:
        """Let an evaluation wait until `release`."""
        self.hook("while [ ! -e control/go ]; do sleep 0.02; done", step)

    def release(self) -> None:
        (self.control / "go").touch()

    def fail(self, step: int, *lines: str) -> None:
        """Let the evaluation of a checkpoint print these lines and end with exit code 7."""
        self.hook("\n".join([*(f"echo {shlex.quote(line)}" for line in lines), "exit 7"]), step)

    def unhook(self, step: Optional[int] = None) -> None:
        (self.control / ("hook" if step is None else f"hook-checkpoint-{step}")).unlink()

    @property
    def state_file(self) -> Path:
        (path,) = (self.root / "state/wandb_eval_sidecar").glob("*.json")
        return path

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(self.state_file.read_text())

    @property
    def processed(self) -> list[int]:
        """The steps that the ledger says are evaluated; none where there is no ledger."""
        files = list((self.root / "state/wandb_eval_sidecar").glob("*.json"))
        return json.loads(files[0].read_text())["processed_steps"] if files else []

    def wait_for_call(self, step: int, times: int = 1) -> None:
        wait_until(
            lambda: self.calls.count(f"checkpoint-{step}") >= times, f"checkpoint-{step} being evaluated"
        )

    def wait_for_result(self, *steps: int) -> None:
        wait_until(lambda: set(steps) <= set(self.processed), f"results of {steps}")

    # -- processes ----------------------------------------------------------------------------------

    def processes(self, **variables: str) -> list[psutil.Process]:
        """Everything alive that was started from here and has these variables."""
        wanted = {_MARKER: self.marker, **variables}.items()
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and wanted <= process.environ().items():
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def clean_up(self) -> None:
        """End whatever a test has left running, and nothing else."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that a command has ended with a non-zero code and one clear line that holds these words."""
    assert done.returncode not in (0, None), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, f"not one line:\n{done.stderr}"
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
