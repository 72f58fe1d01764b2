"""An hour of training in minutes: thousands of checkpoints through one sidecar, and what grows meanwhile.

``scripts/longrun --checkpoints 3000``. The clock is stepped: a wait takes no longer than the evaluation
that it waits for. All else is real: pins, a bash script for each evaluation, the W&B client against the
tests' server, an instance's log. Ends with 1 where something has grown that should not.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

import psutil

from checkpoint_files import write_checkpoint
from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.checkpoints.space import Limits
from eval_sidecar.cli import show
from eval_sidecar.delivery.background import DeliveryThread
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.evaluation.loop import run_loop
from eval_sidecar.evaluation.sidecar import Sidecar
from eval_sidecar.launchers.local import LocalLauncher
from eval_sidecar.ledger.store import open_store
from eval_sidecar.paths import PinPaths
from eval_sidecar.system import logs
from tracking import Server, spec_of, wandb_on

MODEL, RUN = "Instruments-grec-sft-qwen4B-4-256-dsz0", "eval-0123456789abcdef0123"
#: Seconds of training in which all the checkpoints appear.
HOUR = 3600.0
#: Bytes a checkpoint at which logs are full here: about a ninth of what is said of one.
FULL = 50

_SCRIPT = """
mkdir -p "results/$(basename "$1")/$(basename "$CKPT_LIST")"
step=${CKPT_LIST##*-}
printf '{"HR@1": 0.1, "HR@10": 0.%06d, "NDCG@10": 0.%06d}' "$step" "$step" \\
  >"results/$(basename "$1")/$(basename "$CKPT_LIST")/metrics.json"
"""


@dataclass(frozen=True)
class Sample:
    """What there is at one moment; sizes in KiB, of the sidecar's own process where nothing else is said.

    Attributes:
        evaluated: Checkpoints with a result so far.
        confirmed: Those whose point has been read back.
        pass_ms: Milliseconds of processor time that a pass took, the mean since the sample before.
        resident: Memory, with what is shared.
        unique: Memory, without that.
        client: Resident memory of the W&B worker and of all that it has started.
        files: Open file descriptors.
        threads: Threads.
        children: Processes below the sidecar, but for evaluations.
        zombies: Those of them that have ended and were not collected.
        log: All logs of the instance and of the W&B client, also those set aside.
        temporary: What is in the temporary folder.
        cache: What the W&B client keeps in its own folders.
        ledger: The state file.
    """

    evaluated: int
    confirmed: int
    pass_ms: float
    resident: int
    unique: int
    client: int
    files: int
    threads: int
    children: int
    zombies: int
    log: int
    temporary: int
    cache: int
    ledger: int


class Training(threading.Event):
    """The trainer, and the clock: what happens while the loop waits.

    Each wait lets checkpoints appear, until `backlog` of them wait for their evaluation; the trainer keeps
    as many, and deletes older ones.
    """

    def __init__(self, root: Path, checkpoints: int, backlog: int) -> None:
        super().__init__()
        self.now = time.time()
        self.model_dir = root / "saves" / MODEL
        self.steps = list(range(1, checkpoints + 1))
        self.backlog = backlog
        self.results = root / "results" / MODEL
        self.passes, self.seconds = 0, 0.0
        self.on_wait = lambda: None
        self._began = time.thread_time()
        self._written = 0

    def wait(self, timeout: Optional[float] = None) -> bool:
        self.seconds += time.thread_time() - self._began
        self.passes += 1
        self.on_wait()
        room = self.backlog - len(list_checkpoints(PinPaths.beside(self.model_dir).pins(self.model_dir.name)))
        for step in self.steps[self._written : self._written + max(0, room)]:
            self._save(step)
            self._written += 1
            self.now += HOUR / len(self.steps)
        time.sleep(0.01)  # for the evaluations under way, which are real
        self._began = time.thread_time()
        return True

    def _save(self, step: int) -> None:
        write_checkpoint(self.model_dir, step)
        for old in list_checkpoints(self.model_dir)[: -self.backlog]:
            shutil.rmtree(old.path)


class Probe:
    """Measures this process and its folders."""

    def __init__(self, root: Path, ledger: Path, training: Training) -> None:
        self.root, self.ledger, self.training = root, ledger, training
        self._process = psutil.Process()
        self._not_ours = set(self._process.children())  # the server
        self._passes, self._seconds = 0, 0.0

    def take(self, evaluated: int, confirmed: int) -> Sample:
        passes, seconds = self.training.passes, self.training.seconds
        mean = (seconds - self._seconds) / max(1, passes - self._passes)
        self._passes, self._seconds = passes, seconds
        memory = self._process.memory_full_info()
        client, children, zombies = 0, 0, 0
        for child in set(self._process.children(recursive=True)) - self._not_ours:
            try:
                if child.status() == psutil.STATUS_ZOMBIE:
                    zombies += child.ppid() == self._process.pid
                elif "EVAL_SIDECAR_JOB" not in child.environ():
                    client += child.memory_info().rss
                    children += 1
            except psutil.NoSuchProcess:
                continue
        return Sample(
            evaluated=evaluated,
            confirmed=confirmed,
            pass_ms=round(1000 * mean, 2),
            resident=memory.rss // 1024,
            unique=memory.uss // 1024,
            client=client // 1024,
            files=self._process.num_fds(),
            threads=self._process.num_threads(),
            children=children,
            zombies=zombies,
            log=sum(map(_size, self.root.glob("*.log*"))),
            temporary=_size(self.root / "tmp"),
            cache=sum(_size(self.root / name) for name in ("cache", "config", "data")),
            ledger=_size(self.ledger),
        )


def _size(path: Path) -> int:
    """KiB of a file, or of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for found in [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]:
        with suppress(FileNotFoundError):
            total += found.stat().st_size if found.is_file() else 0
    return total // 1024


@contextmanager
def server_process() -> Iterator[Server]:
    """The tests' W&B server in a process of its own, so that its memory is not taken for ours."""
    program = Path(__file__).with_name("wandb_server.py")
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield argparse.Namespace(
                url=process.stdout.readline().strip(), key="0123456789abcdef" * 2 + "01234567"
            )
        finally:
            process.terminate()


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Let this process write where an instance does; what is printed meanwhile goes into the log."""
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        show.set_up_logging()
        yield
    finally:
        logging.getLogger("eval_sidecar").handlers.clear()
        for number, descriptor in zip((1, 2), kept):
            os.dup2(descriptor, number)
            os.close(descriptor)


def train(root: Path, checkpoints: int, slots: int, samples: int) -> list[Sample]:
    """Run everything; the last sample is of the time after all is delivered and the client is closed."""
    temporary = root / "tmp"
    temporary.mkdir(parents=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    logs.FULL = FULL * checkpoints
    training = Training(root, checkpoints, backlog=2 * slots)
    training.model_dir.mkdir(parents=True)
    script = root / "evaluate.sh"
    script.write_text(_SCRIPT)
    config = WatchConfig(training.model_dir, root, script, {}, root / "evaluations", limits=Limits(0))
    spec = spec_of(RUN, model_dir=MODEL)
    taken: list[Sample] = []
    stop = threading.Event()
    path = root / "state.json"
    log = root / "cb64.log"
    with (
        server_process() as server,
        wandb_on(server, root) as tracker,
        open_store(path, MODEL, RUN, "long run") as store,
        output_to(log),
    ):
        probe = Probe(root, path, training)
        launcher = LocalLauncher([str(device) for device in range(slots)])
        clock = {"clock": lambda: training.now, "monotonic": lambda: training.now}
        delivery = DeliveryThread(store, tracker, spec, settle_seconds=60.0, clock=clock["clock"])

        def sample() -> Sample:
            entries = store.ledger.steps()
            confirmed = [entry for entry in entries if entry.delivery and entry.due() is None]
            return probe.take(sum(entry.processed for entry in entries), len(confirmed))

        def look() -> None:
            evaluated = sum(entry.processed for entry in store.ledger.entries.values())
            if evaluated * samples >= (len(taken) + 1) * checkpoints:
                taken.append(sample())
            if evaluated == checkpoints:
                stop.set()

        def after_pass() -> None:
            delivery.notify()
            logs.rotate_output(log)

        training.on_wait = look
        delivery.start()
        run_loop(
            Sidecar(config, store, launcher, **clock),
            after_pass,
            once=False,
            poll_seconds=60.0,
            retry_request=root / "retry",
            wake=training,
            stop=stop,
            monotonic=clock["monotonic"],
        )
        delivery.deliver_rest(threading.Event())
        delivery.close(60.0)
        taken.append(sample())
    return taken


def what_has_grown(taken: Sequence[Sample], checkpoints: int, slots: int) -> list[str]:
    """What is wrong with a run, one line each."""
    early, late, last = taken[:2], taken[2:-1], taken[-1]
    found = []

    def bound(name: str, most: float) -> None:
        seen = max((getattr(sample, name) for sample in late), default=0)
        if seen > most:
            found.append(f"{name}: {seen}, at most {most:g} were expected")

    for name, slack in (("files", 8), ("threads", 6), ("children", 3)):
        bound(name, max(getattr(sample, name) for sample in early) + slack)
    bound("zombies", slots)  # evaluations that the next pass collects
    # What is known of a checkpoint stays in memory: some KiB each.
    bound("unique", max(sample.unique for sample in early) + 8 * 1024 + 8 * checkpoints)
    bound("log", 1 + (logs.KEPT + 1) * FULL * checkpoints * 1.3 / 1024)
    # Up to 200 requests' worth of tables, in three copies.
    bound("temporary", 4 * 1024 + 60 * checkpoints)
    # Every pass looks at every result once, and each change writes the ledger: that much is unavoidable.
    bound("pass_ms", 3 * max(sample.pass_ms for sample in early) + 50 + 0.1 * checkpoints)
    if (last.evaluated, last.confirmed) != (checkpoints, checkpoints):
        found.append(f"{last.evaluated} evaluated and {last.confirmed} confirmed of {checkpoints}")
    if last.children or last.zombies or last.temporary:
        found.append(
            f"left behind: {last.children} processes, {last.zombies} zombies, {last.temporary} KiB of files"
        )
    return found


def main() -> int:
    """Run, print the samples, and judge them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=3000)
    parser.add_argument("--slots", type=int, default=4, help="evaluations at a time")
    parser.add_argument("--samples", type=int, default=10, help="how often to measure")
    parser.add_argument("--json", action="store_true", help="print the samples as JSON")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="longrun-") as folder:
        taken = train(Path(folder) / "GenRec", given.checkpoints, given.slots, given.samples)
    grown = what_has_grown(taken, given.checkpoints, given.slots)
    if given.json:
        print(json.dumps({"samples": [asdict(sample) for sample in taken], "grown": grown}))
    else:
        names = list(asdict(taken[0]))
        print(" ".join(f"{name:>9}" for name in names))
        for sample in taken:
            print(" ".join(f"{value:>9}" for value in asdict(sample).values()))
        print(f"{given.checkpoints} checkpoints in {time.monotonic() - began:.0f} s")
    for line in grown:
        print(f"GROWN  {line}", file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
