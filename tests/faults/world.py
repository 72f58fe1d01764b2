"""One trial's world: a user's repository, a server, and commands that are started, killed and judged."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable, Optional

import psutil

from faults.judging import Results, Verdict, compare, not_there, read_results
from toolbox import Command, Repository
from wandb_server import WandbServer

#: Seconds that a command may take to end by itself.
COMMAND_SECONDS = 240.0
#: How often a command is started again after the fault has gone.
STARTS = 12
UPLOADER_STATE = "state/wandb_eval_uploader"
WATCHER_STATE = "state/wandb_eval_sidecar"
RUN_ID = "watched"


class Skip(Exception):
    """This kind cannot be tried on this machine; the text says why."""


@dataclass
class Started:
    """A command under way, and what there was when it began."""

    command: Command
    words: tuple[str, ...]
    results: Results
    complete: frozenset[int]
    traces: int
    values: dict[int, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    @property
    def is_running(self) -> bool:
        return self.command.process.poll() is None


class World:
    """Everything that one trial has.

    Attributes:
        random: All chance of the trial.
        models: Run id of each model.
        complete: Steps of the checkpoints that must be evaluated.
        fleeting: Steps of checkpoints that may be missed: they were deleted before anybody could know them.
        given_up: Models whose run the server will never take again.
        at_judgement: What else is to be looked at, once everything is over.
        at_close: What is to be undone after everything has been ended.
        values: The HR@10 of the weights that were saved last, of steps that may be saved again.
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.random = chance
        self.verdict = Verdict()
        self.models: dict[str, str] = {}
        self.complete: set[int] = set()
        self.fleeting: set[int] = set()
        self.given_up: set[str] = set()
        self.at_judgement: list[Callable[[], None]] = []
        self.at_close: list[Callable[[], None]] = []
        self.values: dict[int, float] = {}
        self.again: Callable[[], Started] = self.upload
        self.story: list[str] = []
        self.began = time.monotonic()
        self.repository = Repository(folder / "GenRec")
        temporary = folder / "tmp"
        temporary.mkdir()
        self.server = WandbServer().start()
        self.repository.extra.update(
            WANDB_BASE_URL=self.server.url, WANDB_API_KEY=self.server.key, TMPDIR=str(temporary)
        )

    def close(self) -> None:
        """End everything that the trial has started."""
        self.server.heal()
        self.kill_rest()
        self.server.stop()
        for undo in self.at_close:
            undo()

    def tell(self, line: str) -> None:
        """Write down what was done, for whoever has to understand a failure."""
        self.story.append(f"{time.monotonic() - self.began:7.2f} s  {line}")

    @property
    def root(self) -> Path:
        return self.repository.root

    def results(self) -> Results:
        """What is on disk, of the models whose run can still be written."""
        return read_results(
            self.root / "results",
            {model: run_id for model, run_id in self.models.items() if model not in self.given_up},
        )

    # -- commands -----------------------------------------------------------------------------------

    def start(self, *words: str, env: Optional[Mapping[str, str]] = None) -> Started:
        """Start the command line with these words."""
        began = Started(
            self.repository.spawn("python3", "eval_wandb_sidecar.py", *words, env=env),
            words,
            self.results(),
            frozenset(self.complete),
            self.traces(),
            dict(self.values),
        )
        self.tell(f"started {began.command.pid}: {' '.join(words)}")
        return began

    def upload(
        self, *more: str, state: str = UPLOADER_STATE, env: Optional[Mapping[str, str]] = None
    ) -> Started:
        """Start ``upload --once``."""
        flags = ("--confirm-seconds", "3", "--state-dir", state)
        return self.start("upload", "--once", "--results-root", "./results", *flags, *more, env=env)

    def watch(self, mode: str = "once", env: Optional[Mapping[str, str]] = None) -> Started:
        """Start ``once`` or ``run`` on the model dir."""
        repository = self.repository
        return self.start(
            *(mode, "--repo-root", ".", "--sft-root", str(repository.model_dir), "--wandb-mode", "online"),
            *("--test-data-path", str(repository.test_data), "--index-path", str(repository.index)),
            *("--confirm-seconds", "3", "--wandb-run-id", RUN_ID, "--poll-interval-seconds", "0.3"),
            *("--checkpoint-ready-seconds", "2"),
            env=env,
        )

    def wait(self, started: Started, seconds: float = COMMAND_SECONDS) -> Optional[int]:
        """Wait until a command ends by itself, and judge how it did; None where it does not end."""
        deadline = time.monotonic() + seconds
        while started.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        if started.is_running:
            self.verdict.count("unfinished", f"{' '.join(started.words)}: does not end in {seconds:.0f} s")
            self.kill(started)
            return None
        code = started.command.wait()
        took = time.monotonic() - started.since
        last = (started.command.errors.splitlines() or [""])[-1]
        self.tell(f"{started.command.pid} ended by itself with {code} after {took:.1f} s: {last}")
        self._judge_ending(started, code)
        return code

    def _judge_ending(self, started: Started, code: int) -> None:
        output = started.command.output
        if "Traceback" in output:
            self.verdict.count("dishonest", f"a traceback instead of words:\n{output}")
        left = self.left_by(started) if code == 0 and started.words[0] in ("upload", "once") else []
        if left:
            self.verdict.count("dishonest", f"exit code 0 with this left: {', '.join(left)}")
        elif code > 0 and not started.command.errors.strip():
            self.verdict.count("dishonest", f"exit code {code} without a word")

    def left_by(self, started: Started) -> list[str]:
        """What a command has not done of what was there when it began, and has not changed since."""
        now = self.results()
        kept = {place: numbers for place, numbers in started.results.items() if now.get(place) == numbers}
        return [
            *not_there(self.server, self.models, kept),
            *(
                f"checkpoint-{step} is not evaluated"
                for step in sorted(started.complete)
                if not any(place[1] == step for place in now)
            ),
            *(f"{model} cannot be delivered" for model in sorted(self.given_up)),
            *self._of_other_weights(now, started.values),
        ]

    def _of_other_weights(self, results: Results, values: Mapping[int, float]) -> list[str]:
        """The steps whose result is not that of the weights that were saved last, and not since."""
        return [
            f"checkpoint-{step}: {numbers.get('HR@10')} is not of its last weights ({values[step]})"
            for (_, step), numbers in sorted(results.items())
            if step in values and values[step] == self.values[step] != numbers.get("HR@10")
        ]

    def until_done(self) -> None:
        """Start the command again and again, as a person would, until it ends with 0."""
        for _ in range(STARTS):
            started = self.again()
            code = self.wait(started)
            if code == 0 or code is None:
                return
            if self._is_all_that_can_be(started):
                return
            self.let_time_pass()
        self.verdict.count("unfinished", f"not done after {STARTS} starts: {started.command.errors.strip()}")

    def _is_all_that_can_be(self, started: Started) -> bool:
        """Whether a command names nothing as left but what the trial took away for good."""
        left = [line for line in started.command.errors.splitlines() if "\x1b" not in line]
        left = [line for line in left if "WARNING" not in line and "ERROR" not in line]
        lost = [f"checkpoint-{step}" for step in self.fleeting]
        excused = [
            any(f"{name}: was deleted before it could be evaluated" in line for name in lost)
            or any(model in line for model in self.given_up)
            for line in left
        ]
        return bool(self.fleeting or self.given_up) and any(excused) and not self.left_over()

    def left_over(self) -> list[str]:
        """What the server lacks of the disk's results."""
        return not_there(self.server, self.models, self.results())

    def let_time_pass(self) -> None:
        """Two minutes later, as the server sees it: heartbeats of clients that were killed have aged."""
        earlier = (datetime.now(timezone.utc) - timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
        for run in list(self.server.runs.values()):
            if run.state == "running":
                run.heartbeat_at = earlier

    # -- moments ------------------------------------------------------------------------------------

    def wait_for(self, look: Callable[[], object], started: Started, seconds: float = 60.0) -> bool:
        """Wait for something to be seen while a command runs; False where it did not come."""
        deadline = time.monotonic() + seconds
        while started.is_running and time.monotonic() < deadline:
            if look():
                return True
            time.sleep(0.002)
        return False

    def traces(self) -> int:
        """What commands have done so far that can be seen from outside: requests and evaluations."""
        return sum(self.server.requests.values()) + len(self.repository.calls)

    def random_moment(self, started: Started, moments: Sequence[str]) -> None:
        """Wait for a moment of a command's life that chance chooses."""
        moment = self.random.choice(moments)
        late = self.random.uniform(0, 0.3) * self.random.random()
        if moment == "time":
            late = self.random.uniform(0, 6.0)
            self.wait_for(lambda: False, started, late)
        elif moment == "request":
            number = sum(self.server.requests.values()) + self.random.randint(1, 40)
            self.wait_for(lambda: sum(self.server.requests.values()) >= number, started)
        elif moment in ("stream", "file"):
            request = "file_stream" if moment == "stream" else "upload"
            wanted = self.server.requests[request] + self.random.randint(1, 4)
            self.wait_for(lambda: self.server.requests[request] >= wanted, started)
        elif moment == "state":
            seen, wanted = set(self._state_stamps()), self.random.randint(1, 8)
            self.wait_for(lambda: seen.update(self._state_stamps()) or len(seen) >= wanted, started)
        elif moment == "temporary":
            self.wait_for(lambda: any((self.root / "state").rglob(".*.tmp")), started, 15)
            late = 0.0
        elif moment == "evaluator":
            calls = len(self.repository.calls) + self.random.randint(1, 3)
            self.wait_for(lambda: len(self.repository.calls) >= calls, started, 20)
        elif moment == "evaluated":
            found = len(self.results()) + self.random.randint(1, 2)
            self.wait_for(lambda: len(self.results()) >= found, started, 20)
        if moment != "time":
            time.sleep(late)
        self.tell(f"moment: {moment}, {late:.3f} s later")

    def _state_stamps(self) -> list[tuple[str, int]]:
        found = []
        for path in (self.root / "state").rglob("*.json"):
            try:
                found.append((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        return found

    def kill_sometime(self, started: Started, moments: Sequence[str]) -> None:
        """SIGKILL a command at a moment that chance chooses, if it does not end before."""
        self.random_moment(started, moments)
        if started.is_running:
            self.kill(started, everything=self.random.random() < 0.65)
        else:
            self.wait(started)

    def kill(self, started: Started, *, everything: bool = True) -> None:
        """SIGKILL the whole process group and, with `everything`, what has left it (the client's process)."""
        self.check_arguments()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.command.pid, signal.SIGKILL)
        started.command.process.wait()
        for _ in range(200):
            left = self.repository.processes() if everything else []
            if not left:
                break
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.005)
        self.tell(f"killed {started.command.pid}{' and all of its' if everything else ', its group only'}")

    def kill_rest(self) -> None:
        """Kill whatever an earlier kill of a group has left."""
        for _ in range(50):
            if not self.repository.processes():
                return
            self.repository.clean_up()
            time.sleep(0.02)

    def check_arguments(self) -> None:
        """Nobody may see the key in the arguments of a process."""
        for process in self.repository.processes():
            try:
                if self.server.key in " ".join(process.cmdline()):
                    self.verdict.count("leaked", f"the key is an argument: {process.cmdline()}")
            except psutil.Error:
                continue

    def in_background(self, work: Callable[[threading.Event], None]) -> Callable[[], None]:
        """Do something beside the commands; returns what ends it."""
        stop = threading.Event()
        thread = threading.Thread(target=work, args=(stop,), daemon=True)
        thread.start()

        def end() -> None:
            stop.set()
            thread.join()

        return end

    def heal_after(self, seconds: float) -> None:
        """Let the server recover while commands go on."""
        timer = threading.Timer(seconds, self.server.heal)
        timer.daemon = True
        timer.start()

    # -- the end ------------------------------------------------------------------------------------

    def judge(self) -> Verdict:
        """Compare the server with the disk, once everything is over."""
        for look in self.at_judgement:
            look()
        models = {model: run_id for model, run_id in self.models.items() if model not in self.given_up}
        results = self.results()
        compare(self.verdict, self.server, models, results)
        for step in sorted(self.complete):
            if not any(place[1] == step for place in results):
                self.verdict.count("missed", f"checkpoint-{step} has no result")
        for line in self._of_other_weights(results, self.values):
            self.verdict.count("wrong", line)
        # The worker ends itself where its parent was killed: a moment later.
        deadline = time.monotonic() + 5
        while (alive := self.repository.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in alive:
            self.verdict.count("leaked", f"still running: {process}")
        key = self.server.key.encode()
        for path in self.folder.rglob("*"):
            if path.is_file() and _holds(path, key):
                self.verdict.count("leaked", f"the key is in {path.relative_to(self.folder)}")
        return self.verdict

    def server_rows(self) -> str:
        """What the server holds, for a person."""
        runs = [
            {"run": run.run_id, "state": run.state, "sessions": run.sessions, "points": run.points}
            for run in self.server.runs.values()
        ]
        return json.dumps(runs)


def _holds(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False
