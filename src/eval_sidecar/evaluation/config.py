"""What to evaluate and how, as the flags say it, for one model dir."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_sidecar.checkpoints.listing import folder_of_links
from eval_sidecar.checkpoints.space import Limits
from eval_sidecar.ledger.settings import Settings
from eval_sidecar.paths import EvaluationPaths, ResultPaths
from eval_sidecar.types import Checkpoint, Job


@dataclass(frozen=True)
class WatchConfig:
    """What to evaluate and how.

    Attributes:
        model_dir: The folder that holds the checkpoints, absolute.
        repo_root: Where the evaluation script runs, absolute; results are below it.
        eval_script: The script, absolute.
        environment: Variables that the script gets, but for the checkpoint and the GPUs.
        log_dir: Where each checkpoint's evaluation has its log.
        ready_seconds: Quiet period of a checkpoint that cannot be proved complete.
        max_pending: Evaluations that one cycle may start; 0 means any number.
        newest_first: Take the newest checkpoint first instead of the oldest.
        force: Evaluate every checkpoint that is there once more, whatever is known of it.
        max_attempts: How many times an evaluation may fail before it stays failed.
        max_evictions: How many times an evaluation may be evicted before that counts as a failure.
        time_limit: Seconds after which an evaluation is ended; 0 means never.
        limits: How much disk space pins may keep in use.
        name: What the model is called everywhere; empty for its folder's name.
        settings: What the numbers depend on, kept with each result.
        placement: Flags that say where and how long evaluations run, by name.
        force_anew: With `force`: begin again if an earlier request is done.
    """

    model_dir: Path
    repo_root: Path
    eval_script: Path
    environment: Mapping[str, str]
    log_dir: Path
    ready_seconds: float = 120.0
    max_pending: int = 0
    newest_first: bool = False
    force: bool = False
    max_attempts: int = 2
    max_evictions: int = 10
    time_limit: float = 24 * 3600.0
    limits: Limits = field(default_factory=Limits)
    name: str = ""
    settings: Settings = field(default_factory=Settings)
    placement: Mapping[str, Any] = field(default_factory=dict)
    force_anew: bool = False

    @property
    def model(self) -> str:
        """What the model is called: in results, run, ledger, logs and pins."""
        return self.name or self.model_dir.name

    @property
    def results_root(self) -> Path:
        """Where evaluations leave their results."""
        return self.repo_root / "results"

    def metrics_path(self, step: int) -> Path:
        """Return where the evaluation of a step leaves its ``metrics.json``."""
        return ResultPaths(self.results_root).metrics(self.model, step)


def job_of(config: WatchConfig, checkpoint: Checkpoint) -> Job:
    """Return the job that evaluates a checkpoint.

    Raises:
        CheckpointError: if a folder of the model's name is needed for it, and cannot be created.
    """
    if checkpoint.path.parent.name != config.model:
        # The script takes that for the model's name.
        checkpoint = folder_of_links(EvaluationPaths(config.log_dir).links, config.model, checkpoint)
    return Job(
        step=checkpoint.step,
        token=uuid.uuid4().hex,
        argv=("bash", str(config.eval_script), str(config.model_dir)),
        env={**config.environment, "CKPT_LIST": str(checkpoint.path)},
        cwd=config.repo_root,
        log=EvaluationPaths(config.log_dir).log(config.model, checkpoint.name),
    )
