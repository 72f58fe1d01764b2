"""A model dir that is being watched, with a trainer, an evaluation and clocks that the test moves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from checkpoint_files import trainer_files, write_files
from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.checkpoints.space import Limits
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.evaluation.sidecar import Sidecar
from eval_sidecar.ledger.ledger import Entry, Ledger
from eval_sidecar.ledger.store import LedgerStore, load
from eval_sidecar.paths import PinPaths
from fake_launcher import FakeLauncher

MODEL, RUN = "my-model", "eval-0123456789abcdef0123"
READY_SECONDS = 120.0
METRICS = {"HR@10": 0.25, "NDCG@10": 0.125}


class World:
    """What a sidecar sees and does. ``now`` is the time; nothing else makes it pass.

    Args:
        root: An empty folder.
        slots: How many evaluations may run at a time.
        settings: Fields of `WatchConfig`.
    """

    def __init__(self, root: Path, *, slots: int = 1, **settings: Any) -> None:
        self.now = time.time()
        self.model_dir = root / "saves" / MODEL
        self.model_dir.mkdir(parents=True)
        self.launcher = FakeLauncher(slots)
        self.state_file = root / "state.json"
        self.config = WatchConfig(
            model_dir=self.model_dir,
            repo_root=root,
            eval_script=root / "evaluate.sh",
            environment={"CATEGORY": "Toys"},
            log_dir=root / "log",
            **{"ready_seconds": READY_SECONDS, "limits": Limits(0), **settings},
        )
        self.restart()

    def restart(self, **settings: Any) -> None:
        """Begin a new sidecar on what the one before it left, as after `kill -9`."""
        ledger = load(self.state_file) or Ledger(MODEL, RUN, "")
        self.store = LedgerStore(self.state_file, ledger)
        config = replace(self.config, **settings)
        clock = {"clock": lambda: self.now, "monotonic": lambda: self.now}
        self.sidecar = Sidecar(config, self.store, self.launcher, **clock)

    # -- the trainer --------------------------------------------------------------------------------

    def checkpoint(self, step: int) -> Path:
        return self.model_dir / f"checkpoint-{step}"

    def write(self, step: int, files: Optional[Mapping[str, bytes]] = None) -> Path:
        """Write files of a checkpoint now; by default a complete one."""
        folder = self.checkpoint(step)
        files = trainer_files(step) if files is None else files
        write_files(folder, files)
        for path in (*(folder / name for name in files), folder):
            os.utime(path, (self.now, self.now))
        return folder

    # -- the evaluation -----------------------------------------------------------------------------

    def metrics_file(self, step: int) -> Path:
        return self.config.results_root / MODEL / f"checkpoint-{step}" / "metrics.json"

    def report(self, step: int, content: object = METRICS) -> None:
        """Write a metrics.json; text is written as it is."""
        path = self.metrics_file(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    def say(self, step: int, text: str) -> None:
        """Let the evaluation of a step print something."""
        log = self.launcher.newest(step).log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(text)

    def finish(self, step: int, content: object = METRICS) -> None:
        """Let the evaluation of a step succeed."""
        self.report(step, content)
        self.launcher.end(step)

    def fail(self, step: int, exit_code: int = 1) -> None:
        """Let the evaluation of a step fail."""
        self.launcher.end(step, exit_code)

    # -- the sidecar --------------------------------------------------------------------------------

    def tick(self, *, after: float = 0.0, budget: Optional[int] = None) -> int:
        """Let time pass, then a pass."""
        self.now += after
        return self.sidecar.tick(budget)

    def evaluate(self, step: int, content: object = METRICS) -> None:
        """A whole evaluation of a step that is ready, and of no other."""
        self.tick()
        self.finish(step, content)
        self.tick()

    def entry(self, step: int) -> Entry:
        return self.store.ledger.entry(step)

    def pins(self) -> list[int]:
        return [checkpoint.step for checkpoint in list_checkpoints(self.pins_folder)]

    @property
    def pins_folder(self) -> Path:
        return PinPaths.beside(self.model_dir).pins(self.model_dir.name)
