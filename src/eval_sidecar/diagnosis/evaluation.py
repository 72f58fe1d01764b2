"""The Python that evaluates, its libraries and GPUs, and one evaluation of a small model, tried there.

Everything runs in processes of their own: that Python may be another one, and importing torch takes memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.diagnosis.base import Finding, Mark, unmet
from eval_sidecar.installation import PACKAGE, install_command
from eval_sidecar.paths import ResultPaths
from eval_sidecar.system.gpus import list_gpus
from eval_sidecar.system.logs import last_line

#: On a network disk, the first import of torch may take minutes.
_SECONDS = 600.0
#: Without one of these nothing can be evaluated.
_NEEDED = ("torch", "transformers", "tokenizers")


def probe_python(python: str, devices: str, scratch: Path) -> tuple[dict[str, Any], str]:
    """Ask a Python what an evaluation finds in it.

    Args:
        python: A command or a path.
        devices: As in ``--cuda-list``.
        scratch: A folder for files that may be left.

    Returns:
        What `genrec.probe` writes, empty if it could not; and then why.
    """
    (scratch / "probe.json").unlink(missing_ok=True)  # of another Python
    answer, printed = scratch / "probe.json", scratch / "probe.log"
    problem = _run([python, *_module("probe"), str(answer), devices], scratch, printed)
    try:
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, problem or "it wrote no answer"
    return found, ""


def can_evaluate(probe: Mapping[str, Any]) -> bool:
    """Return whether all that an evaluation needs is installed, of whatever version."""
    return bool(probe) and all(probe["libraries"][name] for name in _NEEDED)


def check_python(probe: Mapping[str, Any], problem: str, python: str) -> Finding:
    """Say which Python evaluates."""
    if not probe:
        return Finding(
            "Python (eval)",
            Mark.BROKEN,
            f"{python}: {problem}",
            "set --python-bin to a Python that runs, 3.10 or newer",
        )
    said = f"{probe['python']}, {probe['executable']}"
    if tuple(map(int, probe["python"].split(".")[:2])) < (3, 10):
        advice = "the evaluator is tested with 3.10 and newer: make an environment with one"
        return Finding("Python (eval)", Mark.LIMITED, said, advice)
    return Finding("Python (eval)", Mark.WORKS, said)


def check_libraries(probe: Mapping[str, Any], *, is_needed: bool, has_adapters: bool) -> list[Finding]:
    """Compare the libraries that were found with what an evaluation needs.

    Args:
        probe: Of `probe_python`.
        is_needed: Whether the evaluation script is ours; what others need is not known.
        has_adapters: Whether there are checkpoints that are PEFT adapters.
    """
    python = probe["executable"]
    findings = []
    for name, library in probe["libraries"].items():
        extra = "genrec" if name in _NEEDED else name
        is_missed = is_needed and (name in _NEEDED or has_adapters)
        advice, version = install_command(extra, python), library.get("version", "")
        wrong = unmet(name, version) if version else ""
        mark = Mark.BROKEN if is_missed else Mark.LIMITED
        if not library:
            what = "not installed" + ("" if is_missed else ": checkpoints that are adapters need it")
            what = what if name not in _NEEDED else "not installed"
            findings.append(Finding(name, mark if is_missed else Mark.ABSENT, what, advice))
        elif "error" in library:
            advice = f"install it again: {advice} --force-reinstall"
            findings.append(Finding(name, mark, f"{version} cannot be imported: {library['error']}", advice))
        elif wrong:
            findings.append(
                Finding(name, mark, f"{version}, but {name}{wrong} is needed", f"{advice} --upgrade")
            )
        else:
            findings.append(Finding(name, Mark.WORKS, version))
    return findings


def check_gpus(probe: Mapping[str, Any], devices: str) -> Finding:
    """Say which GPUs torch and the driver show, and whether those that are asked for are among them."""
    shown = [gpu for gpu in list_gpus() or () if gpu.number is not None]
    gpus = probe.get("gpus", [])
    if "problem" in probe:
        advice = f"change --cuda-list {devices!r}, or CUDA_VISIBLE_DEVICES"
        return Finding("GPUs", Mark.BROKEN, probe["problem"], advice)
    if gpus:
        names = [f"{gpu['name']} ({gpu['bytes'] / 2**30:.0f} GiB)" for gpu in gpus]
        listed = ", ".join(f"{number}: {name}" for number, name in enumerate(names))
        return Finding("GPUs", Mark.WORKS, f"{listed}; --cuda-list {devices!r} is there")
    if shown:
        why = f"nvidia-smi shows {len(shown)} ({shown[0].name}), and torch none: evaluations run on the CPU"
        version = probe.get("libraries", {}).get("torch", {}).get("version", "torch")
        if not probe.get("cuda"):
            return Finding(
                "GPUs", Mark.LIMITED, why, f"torch {version} is built without CUDA: install another"
            )
        advice = "check CUDA_VISIBLE_DEVICES, and whether the driver is as new as torch's CUDA"
        return Finding("GPUs", Mark.LIMITED, why, f"{advice} ({probe['cuda']})")
    return Finding("GPUs", Mark.ABSENT, "none: evaluations run on the CPU only")


def try_evaluation(python: str, script: Path, devices: str, scratch: Path) -> Finding:
    """Evaluate a small model that is made on the spot, through the evaluation script as a sidecar calls it.

    Args:
        python: What evaluates.
        script: The evaluation script, ours.
        devices: As in ``--cuda-list``.
        scratch: An empty folder.
    """
    log = scratch / "evaluation.log"
    began = time.monotonic()
    problem = _run([python, *_module("sample"), str(scratch)], scratch, log)
    if not problem:
        checkpoint = scratch / "model" / "checkpoint-1"
        variables = {
            "PYTHON_BIN": python,
            "CKPT_LIST": str(checkpoint),
            "CUDA_LIST": devices,
            "TEST_DATA_PATH": str(scratch / "test.json"),
            "INDEX_PATH": str(scratch / "id2sid.json"),
            "NUM_BEAMS": "5",
        }
        problem = _run(["bash", str(script), str(checkpoint.parent)], scratch, log, variables)
    metrics = ResultPaths(scratch / "results").metrics("model", 1)
    took = f"{time.monotonic() - began:.0f} s"
    if problem:
        return Finding("evaluation", Mark.BROKEN, f"a small model cannot be evaluated: {problem}")
    if not metrics.is_file():
        return Finding("evaluation", Mark.BROKEN, "it ended with exit code 0, but wrote no metrics.json")
    return Finding("evaluation", Mark.WORKS, f"a small model was made and evaluated in {took}")


def _module(name: str) -> list[str]:
    return [str(PACKAGE / "genrec" / "start.py"), f"eval_sidecar.genrec.{name}"]


def _run(
    command: Sequence[str], folder: Path, log: Path, variables: Optional[Mapping[str, str]] = None
) -> str:
    """Run a command in a folder; return why it failed, or nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "EVAL_SIDECAR_WARM"}
    # A checkpoint that is made here is not to be looked for on a server.
    environment.update(variables or {}, PYTHONSAFEPATH="1", HF_HUB_OFFLINE="1")
    try:
        with log.open("ab") as output:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return f"not done within {_SECONDS:.0f} s; the last line was: {last_line(log)}"
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    return f"exit code {done.returncode}: {last_line(log)}" if done.returncode else ""
