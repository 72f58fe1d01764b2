"""Chooses the launcher of new evaluations by the flags; running ones stay with their launcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval_sidecar.cli.flags import LauncherFlags
from eval_sidecar.errors import UsageError
from eval_sidecar.installation import is_own_evaluation_script
from eval_sidecar.launchers.base import JobState, Launcher
from eval_sidecar.launchers.local import LocalLauncher
from eval_sidecar.launchers.slurm import KIND as SLURM
from eval_sidecar.launchers.slurm import SlurmLauncher, require_slurm, sbatch_parameters
from eval_sidecar.system.gpus import split_devices
from eval_sidecar.types import Handle, Job

LOCAL = "local"
#: How many Slurm jobs are in flight unless the user says otherwise.
_MAX_JOBS = 4
_SLURM_FLAGS = ("slurm_partition", "slurm_gres", "slurm_time", "slurm_extra", "max_jobs")

#: The message at the first signal.
STOPPING = {
    LOCAL: "ending evaluations; their checkpoints stay pending",
    SLURM: "Slurm jobs go on, and the next start collects them",
}


class Launchers:
    """A launcher for new jobs, and the others for jobs that still run from an earlier start.

    Without this, a start with another ``--launcher`` would evaluate running checkpoints a second time.
    """

    def __init__(self, chosen: str, launchers: Mapping[str, Launcher]) -> None:
        self._kind = chosen
        self._chosen = launchers[chosen]
        self._launchers = launchers

    @property
    def pause(self) -> float:
        """See `Launcher`."""
        return self._chosen.pause

    def free_slots(self, running: Sequence[Handle]) -> int:
        """Return how many more jobs the chosen launcher takes; those of others do not count."""
        return self._chosen.free_slots(self._own(running))

    def reserve(self, job: Job) -> Handle:
        """See `Launcher`."""
        return self._chosen.reserve(job)

    def submit(self, job: Job, running: Sequence[Handle]) -> Handle:
        """See `Launcher`."""
        return self._chosen.submit(job, self._own(running))

    def poll(self, handle: Handle) -> JobState:
        """See `Launcher`."""
        return self._of(handle).poll(handle)

    def cancel(self, handle: Handle) -> bool:
        """See `Launcher`."""
        return self._of(handle).cancel(handle)

    def detach(self, handle: Handle) -> bool:
        """See `Launcher`."""
        return self._of(handle).detach(handle)

    def _of(self, handle: Handle) -> Launcher:
        return self._launchers[_kind(handle)]

    def _own(self, running: Sequence[Handle]) -> list[Handle]:
        return [handle for handle in running if _kind(handle) == self._kind]


def _kind(handle: Handle) -> str:
    kind: str = handle.get("launcher", LOCAL)
    return kind


def choose_launcher(flags: LauncherFlags, poll_seconds: float) -> Launchers:
    """Return the launcher that the flags ask for.

    Args:
        flags: Which one, and what it has.
        poll_seconds: How often Slurm may be asked.

    Raises:
        UsageError: if flags do not go together, or something that the launcher needs is missing.
    """
    device_lists = split_devices(flags.cuda_list, flags.gpus_per_eval)
    extras = sbatch_parameters(
        flags.slurm_extra,
        partition=flags.slurm_partition,
        gres=flags.slurm_gres,
        time=flags.slurm_time,
    )
    slurm = SlurmLauncher(
        flags.max_jobs or _MAX_JOBS,
        extras,
        " ".join(device_lists),
        ask_every=poll_seconds,
    )
    if flags.launcher == SLURM:
        if flags.warm:  # given explicitly: by default it is off here
            raise UsageError("--warm has no effect with --launcher slurm: no process outlives its job")
        require_slurm()
        slurm.check_parameters()
    else:
        for name in _SLURM_FLAGS:
            if getattr(flags, name):
                raise UsageError(f"--{name.replace('_', '-')} has no effect without --launcher slurm")
    return Launchers(
        flags.launcher,
        {
            LOCAL: LocalLauncher(device_lists),
            SLURM: slurm,
        },
    )


def keeps_evaluator(flags: LauncherFlags, script: Path) -> bool:
    """Return whether an evaluation keeps its process for the next one, by ``--warm`` or by default.

    By default only for our own script: others run as before, although one that calls ours could use it.
    """
    if flags.warm is not None:
        return flags.warm
    return flags.launcher == LOCAL and is_own_evaluation_script(script)


def launcher_of_old_jobs() -> Launchers:
    """Return a launcher that submits nothing, for jobs that a sidecar has left running."""
    return Launchers(LOCAL, {LOCAL: LocalLauncher(()), SLURM: SlurmLauncher(0, {}, "")})
