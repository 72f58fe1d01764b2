"""Requests that one command leaves for the process that holds a ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.system.files import set_aside, write_json


def leave_request(path: Path, value: Any) -> None:  # noqa: ANN401 - anything that JSON can hold
    """Leave a request for the process that holds a ledger."""
    write_json(path, value)


def read_request(path: Path) -> Optional[Any]:  # noqa: ANN401 - what `leave_request` was given
    """Take a request; None if there is none, or if it cannot be read."""
    try:
        value = json.loads(path.read_bytes())
        path.unlink()
    except FileNotFoundError:
        return None
    except ValueError:
        set_aside(path, "unreadable")
        return None
    return value
