"""What a start says of the machine before the first evaluation fails: a GPU or a library that is not there.

It takes a second or so, and only warns: the CPU works, and another Python may be set up meanwhile.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from eval_sidecar.installation import install_command, is_own_evaluation_script
from eval_sidecar.system.gpus import describe_missing, list_gpus, parse_devices

#: Seconds for a Python to start, on a network disk too.
_PATIENCE = 10.0
#: As in the evaluation script: finds them without importing them, which takes seconds.
_FIND = """
import importlib.util, sys
sys.path[:] = filter(None, sys.path)
sys.exit(any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")))
"""


def find_problems(cuda_list: str, script: Path, environment: Mapping[str, str], folder: Path) -> list[str]:
    """Return what evaluations on this machine will lack, a sentence each.

    Args:
        cuda_list: As the flag has it.
        script: The evaluation script; what another script needs is not known.
        environment: Its variables.
        folder: Where it runs.
    """
    found = [describe_missing(parse_devices(cuda_list), list_gpus())]
    if is_own_evaluation_script(script):
        found.append(_find_missing_libraries(script, environment, folder))
    return [sentence for sentence in found if sentence]


def _find_missing_libraries(script: Path, environment: Mapping[str, str], folder: Path) -> Optional[str]:
    """Look through the Pythons that the script tries, in its order."""
    wanted = environment.get("PYTHON_BIN") or "python"
    beside = str(script.parent / ".venv/bin/python")
    names = filter(None, (wanted, environment.get("EVAL_SIDECAR_PYTHON"), beside, "python3"))
    pythons = [shutil.which(str(folder / name) if "/" in name else name) for name in names]
    if any(_may_evaluate(python) for python in pythons if python):
        return None
    advice = install_command("genrec", pythons[0]) if pythons[0] else "set --python-bin to one that has them"
    return f"{wanted} has no torch and transformers, so evaluations will fail: {advice}"


def _may_evaluate(python: str) -> bool:
    """Return whether a Python has what evaluates, or does not answer."""
    try:
        done = subprocess.run(
            [python, "-c", _FIND],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    except OSError:
        return False
    return done.returncode == 0
