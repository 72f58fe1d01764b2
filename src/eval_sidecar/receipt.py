"""The receipt: what the uploading machine has confirmed, carried back so that the rest can be packed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval_sidecar.files import write_json
from eval_sidecar.ledger import CONFIRMED, Ledger
from eval_sidecar.store import now_text

VERSION = 1
FILE_NAME = ".wandb_eval_receipt.json"


def write_receipt(ledgers: Iterable[Ledger], path: Path) -> bool:
    """Write what is confirmed; where nothing but the time would change, leave the file as it is.

    Returns:
        Whether anything was written.

    Raises:
        StateError: where it cannot be written.
    """
    models = {ledger.model_dir: _confirmed(ledger) for ledger in ledgers}
    if _read_models(path) == models:
        return False
    write_json(path, {"version": VERSION, "generated_at": now_text(), "models": models})
    return True


def _confirmed(ledger: Ledger) -> dict[str, Any]:
    return {
        "run_id": ledger.run_id,
        "confirmed": {
            str(entry.step): {"digest": entry.delivery.digest, "revision": entry.delivery.revision}
            for entry in ledger.steps()
            if entry.delivery is not None and entry.delivery.status == CONFIRMED and entry.delivery.digest
        },
    }


def _read_models(path: Path) -> Any:  # noqa: ANN401 - whatever an earlier version wrote
    try:
        return json.loads(path.read_bytes()).get("models")
    except (OSError, ValueError, AttributeError):
        return None
