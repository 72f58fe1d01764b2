"""A real Slurm on one machine, for the length of a test session: its own ports, files, key and daemons.

Nothing of it meets a Slurm or a munged that is there already, nor the one of a second test process.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from eval_sidecar.system.process import ProcessIdentity, end_family
from toolbox import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")

#: CPUs that the node pretends to have: jobs with one CPU each that run at a time.
CPUS = 4


def require_programs() -> None:
    """Skip where Slurm is not installed; fail where it was to be."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing and os.environ.get("REQUIRE_SLURM"):
        pytest.fail(f"not installed: {', '.join(missing)}; run scripts/setup-slurm")
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}); scripts/setup-slurm does that")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """One node, a partition ``main``, and a partition ``urgent`` that preempts it.

    Args:
        folder: An empty folder that nobody else may write to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, int] = {}
        self._write_files()

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to talk to this cluster and to no other."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        files = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        options = [f"--{name}{'' if name in ('socket',) else '-file'}={path}" for name, path in files.items()]
        self._run("munged", "--force", f"--key-file={self.folder / 'munge.key'}", *options)
        self._daemons["munged"] = self._pid("munge.pid")
        self.start_controller()
        self._run("slurmd", "-c")
        self._daemons["slurmd"] = self._pid("slurmd.pid")
        wait_until(
            lambda: self.ask("sinfo", "-h", "-p", "main", "-o", "%T") == "idle\n", "the node being idle"
        )

    def start_controller(self) -> None:
        self._run("slurmctld")
        self._daemons["slurmctld"] = self._pid("slurmctld.pid")

    def stop_controller(self) -> None:
        pid = self._daemons.pop("slurmctld")
        end_family(ProcessIdentity.of(pid), grace_seconds=10)

    def stop(self) -> None:
        """End the jobs, then the daemons, each with what it has started."""
        try:
            if "slurmctld" in self._daemons:
                self.clear()
        finally:
            for pid in self._daemons.values():
                end_family(ProcessIdentity.of(pid), grace_seconds=10)
            self._daemons.clear()

    def clear(self) -> None:
        """End every job."""
        self.ask("scancel", f"--user={os.getuid()}")
        wait_until(lambda: not self.ask("squeue", "-h"), "the queue being empty")

    def ask(self, *command: str) -> str:
        """Run a command of Slurm's; what it prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self) -> dict[int, str]:
        """State by number of every job in the queue."""
        lines = self.ask("squeue", "-h", "-o", "%i|%T").splitlines()
        return {int(number): state for number, state in (line.split("|") for line in lines)}

    def wait_for(self, state: str) -> int:
        """Wait until the only job in the queue is in that state; return its number."""
        return wait_until(
            lambda: next((job for job, now in self.jobs().items() if now == state), None), f"a job {state}"
        )

    def _pid(self, name: str) -> int:
        path = self.folder / name
        return int(wait_until(lambda: path.exists() and path.read_text().strip(), f"{name} being written"))

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def _write_files(self) -> None:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        user = psutil.Process().username()
        control, node = free_ports(2)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for number in range(CPUS):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{CPUS - 1}]\n")
        self.conf.write_text(
            f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={control}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
KillWait=2
MessageTimeout=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} Gres=gpu:{CPUS} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
        )
