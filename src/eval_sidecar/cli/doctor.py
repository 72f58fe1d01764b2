"""``eval-sidecar doctor``: checks what a machine has, tries what a watch does, and names what fails."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional, Union

import click

import eval_sidecar
from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.cli import show
from eval_sidecar.cli.flags import WatchFlags, message_of, takes
from eval_sidecar.cli.launching import LOCAL
from eval_sidecar.cli.planning import find_path, find_script, plan_watch, state_folder
from eval_sidecar.cli.running import manager_folder
from eval_sidecar.cli.terminal import say, say_json
from eval_sidecar.diagnosis.base import Finding, Mark, unmet
from eval_sidecar.diagnosis.evaluation import (
    can_evaluate,
    check_gpus,
    check_libraries,
    check_python,
    probe_python,
    try_evaluation,
)
from eval_sidecar.diagnosis.machine import check_folder, check_slurm
from eval_sidecar.errors import SidecarError, UsageError
from eval_sidecar.installation import find_checkout, install_command, is_own_evaluation_script
from eval_sidecar.system.accounts import CLOUD, configured_key, server_address
from eval_sidecar.system.gpus import parse_devices
from eval_sidecar.trackers.base import Session
from eval_sidecar.types import ModelSpec, Point

#: What a check returns: one finding, or several.
_Found = Union[Finding, list[Finding]]
_VERSION = 1


class _Report:
    """Does one check after the other, and shows what each finds as soon as it is known."""

    def __init__(self, *, is_shown: bool) -> None:
        self.findings: list[Finding] = []
        self._is_shown = is_shown

    def add(self, what: str, check: Callable[[], _Found]) -> None:
        """Do a check; a screen shows ``what`` meanwhile."""
        with show.working(what):
            found = check()
        for finding in found if isinstance(found, list) else [found]:
            self.findings.append(finding)
            if self._is_shown:
                show.finding(finding)

    @property
    def broken(self) -> list[str]:
        """Names of what is needed and does not work."""
        return [finding.name for finding in self.findings if finding.mark is Mark.BROKEN]


@click.command()
@takes(WatchFlags)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(flags: WatchFlags, as_json: bool) -> int:
    """Say what this machine has, try one small evaluation and one offline session, and name what fails.

    Takes the flags of `run`, to check a watch beforehand; none is needed. Exit
    code 1 if something does not work that is needed. A missing GPU, Slurm or W&B key is reported, but is not
    a failure.
    """
    # The findings report what the tried parts would log.
    logger = logging.getLogger("eval_sidecar")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    report = _Report(is_shown=not as_json)
    with tempfile.TemporaryDirectory(prefix="eval-sidecar-doctor-") as scratch:
        _examine(report, flags, Path(scratch))
    if as_json:
        checks = [asdict(finding) for finding in report.findings]
        say_json({"version": _VERSION, "works": not report.broken, "checks": checks})
    elif report.broken:
        say(f"NOT WORKING  {', '.join(report.broken)}", fg="red")
    else:
        say("all that is needed works", fg="green")
    return 1 if report.broken else 0


def _examine(report: _Report, flags: WatchFlags, scratch: Path) -> None:
    repo_root = Path(os.path.abspath(flags.repo_root))
    model_dir = find_path(flags.sft_root, repo_root) if flags.sft_root else None
    python, devices = _python(flags.python_bin, repo_root), " ".join(parse_devices(flags.cuda_list))
    script = find_script(flags.eval_script, repo_root)
    is_ours = is_own_evaluation_script(script)

    report.add("the installation", _check_sidecar)
    if model_dir:
        report.add("the flags", lambda: _check_flags(flags))
    python = _examine_python(
        report, python, devices, scratch, is_needed=is_ours, has_adapters=_has_adapters(model_dir)
    )
    report.add("W&B", lambda: _check_wandb(flags.disable_wandb))
    for folder, needs_locks, link_from in _folders(flags, repo_root, model_dir):
        check = partial(
            check_folder, folder, flags.min_free_space, needs_locks=needs_locks, link_from=link_from
        )
        report.add(f"the folder {folder}", check)
    report.add("Slurm", lambda: check_slurm(is_needed=flags.launcher != LOCAL))
    if is_ours:
        check = partial(try_evaluation, python, script, devices, scratch)
        report.add("evaluating a small model, which may take a minute", check)
    else:
        said = f"not tried: {script} is a script of your own"
        report.add("", lambda: Finding("evaluation", Mark.ABSENT, said))
    if not flags.disable_wandb and _version("wandb"):
        report.add("an offline session of W&B", lambda: _try_session(scratch))


def _examine_python(
    report: _Report, python: str, devices: str, scratch: Path, *, is_needed: bool, has_adapters: bool
) -> str:
    """Check what evaluates; return its Python, which the evaluation script may choose itself."""
    chosen = python
    probe: dict[str, Any] = {}

    def ask() -> Finding:
        nonlocal chosen, probe
        probe, problem = probe_python(python, devices, scratch)
        if is_needed and not can_evaluate(probe) and python != sys.executable:
            other, _ = probe_python(sys.executable, devices, scratch)
            if can_evaluate(other):
                chosen, probe = sys.executable, other
                said = f"{python} has no torch and transformers ({problem or 'not installed'})"
                advice = "set --python-bin to the right Python"
                return Finding("Python (eval)", Mark.LIMITED, f"{said}: {chosen} is used", advice)
        return check_python(probe, problem, python)

    report.add(f"importing torch and transformers in {python}", ask)
    if probe:
        check = partial(check_libraries, probe, is_needed=is_needed, has_adapters=has_adapters)
        report.add("libraries", check)
        report.add("GPUs", lambda: check_gpus(probe, devices))
    return chosen


def _python(given: Optional[str], repo_root: Path) -> str:
    """Return the Python that evaluates, as a command that runs in any folder."""
    given = given or sys.executable
    return os.path.abspath(repo_root / given) if "/" in given else given


def _check_sidecar() -> Finding:
    checkout = find_checkout()
    place = f"checkout {checkout}" if checkout else f"installed in {Path(eval_sidecar.__file__).parent}"
    said = f"{eval_sidecar.__version__}, {place}, Python {platform.python_version()} ({sys.executable})"
    return Finding("eval-sidecar", Mark.WORKS, said)


def _check_flags(flags: WatchFlags) -> Finding:
    """Check the flags as a watch does."""
    try:
        plan = plan_watch(flags, manager_folder())
    except UsageError as error:
        return Finding("flags", Mark.BROKEN, message_of(error))
    return Finding("flags", Mark.WORKS, f"{plan.config.model_dir} can be watched")


def _has_adapters(model_dir: Optional[Path]) -> bool:
    checkpoints = list_checkpoints(model_dir) if model_dir and model_dir.is_dir() else []
    return any((checkpoint.path / "adapter_config.json").is_file() for checkpoint in checkpoints)


def _folders(
    flags: WatchFlags, repo_root: Path, model_dir: Optional[Path]
) -> Iterator[tuple[Path, bool, Optional[Path]]]:
    """Yield one folder of each file system that results, ledgers or kept checkpoints are on."""
    wanted: list[tuple[Path, bool, Optional[Path]]] = []
    if model_dir and model_dir.is_dir():
        checkpoints = list_checkpoints(model_dir)
        files = sorted(checkpoints[-1].path.iterdir()) if checkpoints else []
        link_from = next((path for path in files if path.is_file() and not path.is_symlink()), None)
        wanted.append((model_dir.parent, False, link_from))
    state = state_folder(flags.state_dir, repo_root)
    wanted += [(state if flags.state_dir else repo_root, True, None), (repo_root, False, None)]
    seen: dict[tuple[int, bool], Path] = {}
    for folder, needs_locks, link_from in wanted:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        key = (there.stat().st_dev, os.access(there, os.W_OK))
        if key not in seen or needs_locks or link_from:
            seen[key] = folder
            yield folder, needs_locks, link_from


def _version(library: str) -> str:
    """Return the version of what is installed in this Python; empty if it is not."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _check_wandb(is_disabled: bool) -> list[Finding]:
    if is_disabled:
        return [Finding("wandb", Mark.ABSENT, "not used (--disable-wandb); a later pass without it delivers")]
    version, advice = _version("wandb"), install_command("wandb")
    wrong = unmet("wandb", version) if version else ""
    if not version:
        library = Finding("wandb", Mark.BROKEN, "not installed", f"{advice}, or add --disable-wandb")
    elif wrong:
        said = f"{version}, but wandb{wrong} is needed: others lose rows, or cannot be read back"
        library = Finding("wandb", Mark.BROKEN, said, f"{advice} --upgrade")
    else:
        library = Finding("wandb", Mark.WORKS, version)
    server = server_address() or CLOUD
    if not configured_key():
        said = f"none for {server}: sessions are kept offline"
        return [library, Finding("W&B key", Mark.ABSENT, said, "run `wandb login`, or set WANDB_API_KEY")]
    place = "WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else "the netrc file"
    return [library, Finding("W&B key", Mark.WORKS, f"in {place}, for {server} (not tried)")]


def _try_session(scratch: Path) -> Finding:
    """Deliver one point offline with the real client."""
    from eval_sidecar.trackers.wandb import WandbSettings, WandbTracker

    spec = ModelSpec(
        model_dir="doctor",
        dataset="doctor",
        cb_setting="none",
        eval_split="test",
        seed=0,
        num_beams=1,
        sid_levels=-1,
        project="eval-sidecar-doctor",
        entity=None,
        run_id="eval-doctor",
        run_name="doctor",
    )
    point = Point(1, "checkpoint-1", {"HR@10": 0.5}, "metrics.json")
    settings = WandbSettings(log=scratch / "wandb.log", directory=scratch / "offline", mode="offline")
    tracker = WandbTracker(settings)
    try:
        tracker.send(Session(spec, None, ((1, point),), (point,)))
        written = [path for path in settings.directory.rglob("*.wandb") if path.stat().st_size]
    except SidecarError as error:
        return Finding("W&B session", Mark.BROKEN, f"an offline session fails: {error}")
    finally:
        with contextlib.suppress(SidecarError):
            tracker.close()
    if not written:
        return Finding("W&B session", Mark.BROKEN, "an offline session wrote nothing")
    return Finding("W&B session", Mark.WORKS, "a point was written offline with the real client")
