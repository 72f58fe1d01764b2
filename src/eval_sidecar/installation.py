"""Where this package is installed, what comes with it, and the command that installs what it lacks.

Needs nothing but the standard library: the evaluator asks it too, in a Python that may have nothing else.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shlex
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Optional

PACKAGE = Path(__file__).resolve().parent
DISTRIBUTION = "eval-sidecar"
#: Is at the root of a checkout; a wheel has it in the package.
EVALUATION_SCRIPT = "evaluate_sft_3b.sh"

_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([\w.-]+)['"]""")


def find_checkout() -> Optional[Path]:
    """Return the root of the checkout that this package runs from; None if it is installed."""
    root = PACKAGE.parents[1]
    is_checkout = PACKAGE.parent.name == "src" and (root / "pyproject.toml").is_file()
    return root if is_checkout else None


def own_evaluation_script() -> Path:
    """Return the evaluation script that comes with this package."""
    return (find_checkout() or PACKAGE) / EVALUATION_SCRIPT


def is_own_evaluation_script(script: Path) -> bool:
    """Return whether a script is this package's own or a copy of it, under any name."""
    own = own_evaluation_script()
    try:
        return script.resolve() == own.resolve() or script.read_bytes() == own.read_bytes()
    except OSError:
        return False


def install_command(extra: str = "", python: Optional[str] = None) -> str:
    """Return a shell command that installs this package with one of its extras.

    The package is on no index: the command installs it from its origin. If that no longer exists, the command
    names the extra's requirements.

    Args:
        extra: ``wandb``, ``genrec``, ``slurm`` or ``peft``; empty for none.
        python: The Python to install into; this one by default.
    """
    python = python or sys.executable
    wanted = " ".join(shlex.quote(source) for source in _sources(f"[{extra}]" if extra else "", extra))
    if python == sys.executable and importlib.util.find_spec("pip") is None:
        # The tool that creates environments without pip installs packages into them.
        return f"uv pip install --python {shlex.quote(python)} {wanted}"
    return f"{shlex.quote(python)} -m pip install {wanted}"


def _sources(suffix: str, extra: str) -> list[str]:
    """Return the requirements for pip."""
    installed = _installed()
    origin = _origin(installed) if installed else {}
    address = str(origin.get("url", ""))
    checkout = find_checkout()
    if checkout is not None:
        is_editable = origin.get("dir_info", {}).get("editable", False)
        return [*(["-e"] if is_editable else []), f"{checkout}{suffix}"]
    if address.startswith("file:"):
        place = Path(urllib.request.url2pathname(urllib.parse.urlsplit(address).path))
        if place.exists():
            return [f"{place}{suffix}"]
    elif address:
        version = origin.get("vcs_info", {})
        at = f"{version['vcs']}+{address}@{version['commit_id']}" if version else address
        return [f"{DISTRIBUTION}{suffix} @ {at}"]
    needed = [line for line in (installed.requires or [] if installed else []) if _extra_of(line) == extra]
    return [line.partition(";")[0].strip() for line in needed] or [f"{DISTRIBUTION}{suffix}"]


def _extra_of(requirement: str) -> str:
    """Return the extra that a line of the metadata belongs to; empty for a required dependency."""
    found = _EXTRA.search(requirement.partition(";")[2])
    return found.group(1) if found else ""


def _installed() -> Optional[importlib.metadata.Distribution]:
    """Return the metadata of this package, not of another with the same name."""
    for distribution in importlib.metadata.distributions(name=DISTRIBUTION):
        checkout = find_checkout()
        if checkout is not None:
            address = str(_origin(distribution).get("url", ""))
            if address and _path_of(address) == checkout:
                return distribution
        elif Path(str(distribution.locate_file(PACKAGE.name))).resolve() == PACKAGE:
            return distribution
    return None


def _path_of(address: str) -> Path:
    return Path(urllib.request.url2pathname(urllib.parse.urlsplit(address).path)).resolve()


def _origin(distribution: importlib.metadata.Distribution) -> dict[str, Any]:
    """Return the content of ``direct_url.json`` (PEP 610); empty if pip was given a name."""
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
