"""Reports what an evaluation finds in this Python: ``start.py eval_sidecar.genrec.probe FILE DEVICES``.

Writes one JSON object to FILE, since what libraries print when they are imported goes to the standard output.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.errors import EvaluationError, one_line
from eval_sidecar.genrec.libraries import LIBRARIES, OPTIONAL_LIBRARIES, importing


def main() -> None:
    """Look for libraries and devices, and write what was found."""
    libraries = {name: _look_for(name) for name in (*LIBRARIES, *OPTIONAL_LIBRARIES)}
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "libraries": libraries,
    }
    if libraries["torch"].get("version") and "error" not in libraries["torch"]:
        found.update(_look_for_devices(sys.argv[2]))
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


def _look_for(name: str) -> dict[str, str]:
    """Return a library's version, and why it cannot be imported; nothing if it is not installed."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec(name) is None:
            return {}
        version = "?"
    try:
        with importing():
            importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
        return {"version": version, "error": f"{type(error).__name__}: {one_line(error)}"}
    return {"version": version}


def _look_for_devices(wanted: str) -> dict[str, Any]:
    import torch

    from eval_sidecar.genrec.devices import find_devices

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    found: dict[str, Any] = {
        "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
        "gpus": [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in gpus],
    }
    try:
        return {**found, "devices": [device.name for device in find_devices(wanted)]}
    except EvaluationError as error:
        return {**found, "problem": str(error)}
