"""One trial from a seed and a number, and what is left for a person where it fails."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from faults import pins, servers, uploads, watching_faults  # noqa: F401 - they enter their kinds
from faults.judging import Verdict
from faults.registry import KINDS
from faults.world import Skip, World


@dataclass
class Trial:
    """What has come of one trial.

    Attributes:
        replay: Arguments that do this trial alone again.
        skipped: Why it could not be tried, or None.
        broken: What broke in the harness itself, or None.
        story: What was done, and what came of it.
        folder: Where everything of a failed trial is kept.
    """

    kind: str
    number: int
    seed: int
    seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)
    skipped: Optional[str] = None
    broken: Optional[str] = None
    story: list[str] = field(default_factory=list)
    folder: Optional[str] = None

    @property
    def replay(self) -> str:
        return f"--seed {self.seed} --kinds {self.kind} --only {self.number}"

    @property
    def failed(self) -> bool:
        return self.broken is not None or self.verdict.bad


def run_trial(kind: str, number: int, seed: int) -> Trial:
    """Do one trial; its folder is kept where it fails."""
    trial = Trial(kind, number, seed)
    # Short: the client puts a socket below its temporary folder, and those have short names only.
    folder = Path(tempfile.mkdtemp(prefix="esf-"))
    began = time.monotonic()
    world = World(folder, random.Random(f"{seed}/{kind}/{number}"))
    try:
        KINDS[kind](world)
        world.server.heal()
        world.until_done()
        trial.verdict = world.judge()
    except Skip as reason:
        trial.skipped = str(reason)
    except Exception:  # noqa: BLE001 - a trial that breaks is told of, the others go on
        trial.broken = traceback.format_exc()
        trial.verdict = world.verdict
    finally:
        world.tell(f"server: {world.server_rows()}")
        trial.story = world.story
        world.close()
        trial.seconds = time.monotonic() - began
    if trial.failed:
        trial.folder = str(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return trial


def report(trial: Trial) -> str:
    """Everything that is needed to understand a failed trial and to do it again."""
    lines = [
        f"FAILED {trial.kind} number {trial.number}: again with `scripts/faults {trial.replay}`",
        *(f"  {note}" for note in trial.verdict.notes),
        *(f"  {line}" for line in trial.story),
        *(f"  {line}" for line in (trial.broken or "").splitlines()),
        f"  kept: {trial.folder}",
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    """Print at once, whoever reads it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
