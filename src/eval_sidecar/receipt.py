"""The receipt: what the uploading machine has confirmed, carried back so that the rest can be packed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval_sidecar.files import write_json
from eval_sidecar.ledger import CONFIRMED, Ledger
from eval_sidecar.store import now_text

VERSION = 1
FILE_NAME = ".wandb_eval_receipt.json"


def part_of(ledger: Ledger) -> dict[str, Any]:
    """What a receipt says of one model."""
    return {
        "run_id": ledger.run_id,
        "confirmed": {
            str(entry.step): {"digest": entry.delivery.digest, "revision": entry.delivery.revision}
            for entry in ledger.steps()
            if entry.delivery is not None and entry.delivery.status == CONFIRMED and entry.delivery.digest
        },
    }


def read_parts(path: Path) -> dict[str, dict[str, Any]]:
    """What a receipt says of each model; nothing where it is missing or cannot be read."""
    try:
        value = json.loads(path.read_bytes())
        return dict(value["models"]) if value["version"] == VERSION else {}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def write_parts(path: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a receipt; where nothing but the time would change, leave the file as it is.

    Raises:
        StateError: where it cannot be written.
    """
    if not os.path.exists(path) or read_parts(path) != parts:  # noqa: PTH110 - Path's raises for a lost disk
        write_json(path, {"version": VERSION, "generated_at": now_text(), "models": parts})
