"""The receipt: what the uploading machine has confirmed, carried back so that the rest can be packed."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from eval_sidecar.files import write_json
from eval_sidecar.ledger import CONFIRMED, Ledger
from eval_sidecar.store import now_text

VERSION = 1
FILE_NAME = ".wandb_eval_receipt.json"


def write_receipt(
    models: Mapping[str, str], path: Path, read: Callable[[str], Optional[Ledger]], believed: Container[str]
) -> bool:
    """Write what is confirmed; where nothing but the time would change, leave the file as it is.

    Args:
        models: Run ids by model dir, of all models that belong into it.
        path: The receipt.
        read: Reads a model's ledger; None where there is none.
        believed: The models about which the receipt that is there may be believed.

    Returns:
        Whether anything was written.

    Raises:
        StateError: where it cannot be written.
    """
    before = _read_models(path)
    models_now = {}
    for model, run_id in models.items():
        if model in believed and before.get(model, {}).get("run_id") == run_id:
            models_now[model] = before[model]
        elif (ledger := read(model)) is not None:
            models_now[model] = _confirmed(ledger)
    if before == models_now and path.exists():
        return False
    write_json(path, {"version": VERSION, "generated_at": now_text(), "models": models_now})
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


def _read_models(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
        return dict(value["models"]) if value["version"] == VERSION else {}
    except (OSError, ValueError, TypeError, LookupError):
        return {}
