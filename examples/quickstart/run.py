"""The quickstart: a small training, and the sidecar that evaluates its checkpoints while it runs.

    scripts/quickstart [folder]        the folder is ./quickstart unless given; everything is written there

The training and the sidecar are two processes that share nothing but the folder of checkpoints, as they
would in real use; what is here starts both, waits for both, and stops both on Ctrl-C. Run again after that,
it continues where it stopped; run again after the end, it only shows the table.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Optional

from make_data import DATASET
from train import MAX_STEPS, MODEL_NAME, SAVE_STEPS, last_complete_checkpoint

REPO = Path(__file__).resolve().parents[2]
INSTANCE = "quickstart"
STEPS = list(range(SAVE_STEPS, MAX_STEPS + 1, SAVE_STEPS))
POLL_SECONDS = 2.0
STOP_SECONDS = 30.0
#: How long the sidecar may have nothing to do before checkpoints that lack a result are given up.
IDLE_SECONDS = 15.0
#: How long nothing may move after the training has ended, before the quickstart gives up waiting.
STALL_SECONDS = 180.0


class QuickstartError(Exception):
    """The quickstart cannot go on; the message says why and where the log is."""


def say(text: str) -> None:
    """Print one line of the quickstart's own."""
    print(f"quickstart: {text}", flush=True)


class Quickstart:
    """The processes of one folder.

    Attributes:
        folder: Absolute path under which everything is written.
        model_dir: Where the training writes its checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model_dir = folder / "saves" / MODEL_NAME
        self.training_log = folder / "log" / "training.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log_position = 0
        self._environment = {
            # One core is the training's.
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1)),
            **os.environ,
            "PYTHON_BIN": sys.executable,
            # Where the sidecar keeps its pid, and where `status` looks for it.
            "MANAGER_DIR": str(folder / "log" / "eval_sidecar"),
        }

    def sidecar_command(self, action: str) -> list[str]:
        """Return the command that a user would type; ``action`` is ``run`` or ``once``."""
        data = self.folder / "data" / DATASET
        return [
            *["bash", str(REPO / "eval_wandb_sidecar.sh"), action],
            *["--instance", INSTANCE],
            *["--repo-root", str(self.folder)],
            *["--state-dir", str(self.folder / "state")],
            *["--sft-root", str(self.model_dir)],
            *["--eval-script", str(REPO / "evaluate_sft_3b.sh")],
            *["--category", DATASET],
            *["--test-data-path", str(data / "sft" / "test.json")],
            *["--index-path", str(data / "id2sid.json")],
            *["--cuda-list", "0"],
            *["--batch-size", "32"],
            *["--poll-interval-seconds", "2"],
        ]

    def start(
        self, command: list[str], output: Optional[IO[bytes]] = None, keep_open: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a process of its own session, so that Ctrl-C reaches it through :meth:`stop` only."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,  # W&B writes its own files into the working directory
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
            pass_fds=keep_open,
        )
        self._processes.append(process)
        return process

    def make_data(self) -> None:
        """Make the data set unless it is there."""
        if not (self.folder / "data" / DATASET / "sft" / "test.json").exists():
            say("making the data set")
            subprocess.run(
                [sys.executable, str(REPO / "examples/quickstart/make_data.py"), str(self.folder)], check=True
            )

    def start_training(self, lock: IO[str]) -> subprocess.Popen[bytes]:
        """Start the training, or continue it; it holds ``lock`` as long as it lives."""
        self.training_log.parent.mkdir(parents=True, exist_ok=True)
        # The sidecar starts at the same time, and takes a folder that is missing for a typing error.
        self.model_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(REPO / "examples/quickstart/train.py"), str(self.folder)]
        with self.training_log.open("wb") as output:
            return self.start(command, output, keep_open=(lock.fileno(),))

    def relay_training(self) -> None:
        """Print what the training has said about its progress since the last call."""
        with self.training_log.open("rb") as log:
            log.seek(self._log_position)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._log_position += len(line)
                if line.startswith(b"training: "):
                    print(line.decode("utf-8", "replace").rstrip(), flush=True)

    def evaluated(self) -> list[int]:
        """Return the steps that have a result."""
        results = self.folder / "results" / MODEL_NAME
        return [step for step in STEPS if (results / f"checkpoint-{step}" / "metrics.json").exists()]

    def status(self) -> Optional[dict[str, Any]]:
        """Return what the sidecar says about the model, or None while it does not know it yet."""
        answer = subprocess.run(
            [*[sys.executable, "-m", "eval_sidecar", "status"], "--instance", INSTANCE, "--json"],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        try:
            (state,) = json.loads(answer.stdout)
            models = state["models"]
        except (ValueError, KeyError):
            return None
        return next((model for model in models if Path(model["model"]).name == MODEL_NAME), None)

    def stop(self) -> None:
        """Ask every process that still runs to stop, and kill what does not."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_training(
    quickstart: Quickstart, training: subprocess.Popen[bytes], sidecar: subprocess.Popen[bytes]
) -> None:
    """Return when the training has ended well.

    Raises:
        QuickstartError: the training or the sidecar ended otherwise.
    """
    while training.poll() is None:
        quickstart.relay_training()
        if sidecar.poll() is not None:
            raise QuickstartError(f"the sidecar ended with code {sidecar.returncode} while the training ran")
        time.sleep(0.5)
    quickstart.relay_training()
    if training.returncode != 0:
        lines = quickstart.training_log.read_text("utf-8", "replace").splitlines()
        raise QuickstartError(
            f"the training ended with code {training.returncode}; {quickstart.training_log} ends with:\n"
            + "\n".join(f"    {line}" for line in lines[-10:])
        )


def wait_for_evaluations(quickstart: Quickstart, sidecar: subprocess.Popen[bytes]) -> None:
    """Return when every checkpoint is evaluated and delivered, or no more can be expected.

    Raises:
        QuickstartError: an evaluation failed, the sidecar ended, or nothing moved for a long time.
    """
    seen, moved_at = None, time.monotonic()
    while True:
        if sidecar.poll() is not None:
            raise QuickstartError(f"the sidecar ended with code {sidecar.returncode} before it was done")
        status = quickstart.status() or {}
        counts = {key: status.get(key) for key in ("evaluated", "pending", "failed", "undelivered")}
        if counts != seen:
            seen, moved_at = counts, time.monotonic()
        still_for = time.monotonic() - moved_at
        idle = bool(status) and not (status["pending"] or status["running"])
        if idle and status["evaluated"] >= len(STEPS) and not status["undelivered"]:
            return
        # Idle for a while, not once: a checkpoint may be found between two looks.
        if idle and status["evaluated"] < len(STEPS) and still_for > IDLE_SECONDS:
            raise QuickstartError(
                f"{status['evaluated']} of {len(STEPS)} checkpoints are evaluated, {status['failed']} "
                f"failed, and nothing is left to do; the sidecar's logs are under {quickstart.folder / 'log'}"
            )
        if still_for > STALL_SECONDS:
            raise QuickstartError(f"nothing has moved for {STALL_SECONDS:.0f} s; last status: {status}")
        time.sleep(POLL_SECONDS)


def run(quickstart: Quickstart, lock: IO[str]) -> None:
    """Train and evaluate; both processes are stopped at the end, and the sidecar then prints its table."""
    try:
        say(f"training {MODEL_NAME} for {MAX_STEPS} steps, a checkpoint every {SAVE_STEPS}, two of them kept")
        training = quickstart.start_training(lock)
        say("sidecar: " + shlex.join(quickstart.sidecar_command("run")))
        sidecar = quickstart.start(quickstart.sidecar_command("run"))
        wait_for_training(quickstart, training, sidecar)
        wait_for_evaluations(quickstart, sidecar)
    finally:
        quickstart.stop()


def main() -> int:
    """Run the quickstart; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=REPO / "quickstart")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)

    # A closed terminal and `kill` stop the children as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    quickstart = Quickstart(folder)
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            started = time.monotonic()
            last = last_complete_checkpoint(quickstart.model_dir)
            trained = last is not None and last.name == f"checkpoint-{MAX_STEPS}"
            if trained and quickstart.evaluated() == STEPS:
                say(f"all {len(STEPS)} checkpoints are trained and evaluated already")
                return quickstart.start(quickstart.sidecar_command("once")).wait()
            quickstart.make_data()
            run(quickstart, lock)
            say(f"{len(STEPS)} checkpoints trained and evaluated in {time.monotonic() - started:.0f} s")
            return 0
        except BlockingIOError:
            say(f"another quickstart, or a training that it left behind, still works in {folder}")
        except QuickstartError as error:
            say(str(error))
            say("run it again to continue where it stopped")
        except KeyboardInterrupt:
            quickstart.stop()
            say("stopped; run it again to continue where it stopped")
            return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
