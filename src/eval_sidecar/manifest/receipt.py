"""The receipt: what the uploading machine has confirmed, copied back so that only the rest is packed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

from eval_sidecar.errors import UsageError
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.system.files import write_json
from eval_sidecar.types import now_text

VERSION = 1


def part_of(ledger: Ledger) -> dict[str, Any]:
    """Return what a receipt says of one model."""
    return {
        "run_id": ledger.run_id,
        "confirmed": {
            str(entry.step): {"digest": entry.delivery.digest, "revision": entry.delivery.revision}
            for entry in ledger.steps()
            if entry.delivery is not None and entry.delivery.is_confirmed and entry.delivery.digest
        },
    }


def read_parts(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a receipt says of each model; nothing if it is missing or cannot be read."""
    try:
        value = json.loads(path.read_bytes())
        return dict(value["models"]) if value["version"] == VERSION else {}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def write_parts(path: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a receipt; if only the time would change, leave the file as it is.

    Raises:
        StateError: if it cannot be written.
    """
    if not os.path.exists(path) or read_parts(path) != parts:  # noqa: PTH110 - Path's raises for a lost disk
        write_json(path, {"version": VERSION, "generated_at": now_text(), "models": parts})


class Confirmed(NamedTuple):
    """What a receipt says of one model.

    Attributes:
        run_id: The run that has its points; None if the receipt does not say.
        digests: Step, as text, to the hash of its numbers.
    """

    run_id: Optional[str]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Receipt:
    """What is confirmed.

    Attributes:
        identity: Names this receipt.
        models: By model dir.
    """

    identity: str
    models: Mapping[str, Confirmed]


def read_receipt(path: Path) -> Receipt:
    """Read what the uploading machine has written.

    Raises:
        UsageError: if the file is missing, damaged, or from a newer version.
    """
    try:
        data = path.read_bytes()
        value = json.loads(data)
        if value["version"] > VERSION:
            raise UsageError(
                f"{path}: is of version {value['version']}, this program supports {VERSION};"
                " update eval-sidecar"
            )
        models = {
            name: Confirmed(
                model.get("run_id"),
                {step: point["digest"] for step, point in model["confirmed"].items()},
            )
            for name, model in value["models"].items()
        }
    except OSError as error:
        raise UsageError(f"{path}: the receipt cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path}: is not a receipt, or is damaged, so nothing was packed; copy it again, or remove it"
            " to pack everything"
        ) from error
    return Receipt(hashlib.sha256(data).hexdigest()[:12], models)


def without_moved(receipt: Receipt, manifest: Path) -> Receipt:
    """Return the receipt without models to which the manifest now gives another run, which is still empty."""
    try:
        listed = json.loads(manifest.read_bytes())["models"]
        runs = {model["model_dir"]: model["wandb_run_id"] for model in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return receipt  # the upload reports what is wrong with it
    models = {
        name: model
        for name, model in receipt.models.items()
        if None in (model.run_id, runs.get(name)) or model.run_id == runs[name]
    }
    return Receipt(receipt.identity, models)
