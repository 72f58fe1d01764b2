"""``provenance.json`` beside a result: which weights it is of, where they were, and how it was made.

The sidecar writes it when it takes an evaluation's numbers. It is packed with them, so that a machine that
has only results can tell two models with the same name apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from eval_sidecar.errors import StateError
from eval_sidecar.ledger.settings import key_of
from eval_sidecar.paths import PROVENANCE, ResultPaths
from eval_sidecar.system.files import write_json
from eval_sidecar.types import Origin, Place

VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """What is known of a result.

    Attributes:
        model: The model's name.
        step: Training step.
        origin: The weights, the settings' key, and when.
        places: Where the model lived, the newest place first.
        settings: What the evaluation was made with.
        metrics: SHA-256 of the ``metrics.json`` that this is about, in hex.
    """

    model: str
    step: int
    origin: Origin
    places: tuple[Place, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: str = ""


def write_provenance(metrics: Path, found: Provenance) -> None:
    """Write the provenance of the numbers in a ``metrics.json``.

    Raises:
        StateError: if it cannot be written.
        OSError: if the numbers cannot be read.
    """
    digest = hashlib.sha256(metrics.read_bytes()).hexdigest()
    write_json(metrics.with_name(PROVENANCE), _as_json(found, digest))


def _as_json(found: Provenance, digest: str) -> dict[str, Any]:
    return {
        "version": VERSION,
        "model": found.model,
        "step": found.step,
        "identity": found.origin.identity,
        "evaluated_at": found.origin.at,
        "places": [vars(place) for place in found.places],
        "settings": dict(found.settings),
        "metrics_sha256": digest,
    }


def read_provenance(metrics: Union[str, Path]) -> Optional[Provenance]:
    """Return the provenance of the numbers in a ``metrics.json``.

    None if there is none, if it is about other numbers (a user has edited them, say), or if it is from a
    newer version: the numbers then count as a user's, of unknown origin.
    """
    try:
        with open(f"{os.path.dirname(metrics)}/{PROVENANCE}", "rb") as file:  # noqa: PTH120, PTH123 - one a result
            found = parse_provenance(file.read())
        if found is None or hashlib.sha256(Path(metrics).read_bytes()).hexdigest() != found.metrics:
            return None
    except OSError:
        return None
    return found


def parse_provenance(data: bytes) -> Optional[Provenance]:
    """Read the content of a ``provenance.json``; None if it is invalid or from a newer version."""
    try:
        value = json.loads(data)
        if value["version"] > VERSION:
            return None
        settings = dict(value.get("settings") or {})
        identity, at = value.get("identity"), value.get("evaluated_at")
        return Provenance(
            model=str(value["model"]),
            step=int(value["step"]),
            origin=Origin(identity and str(identity), key_of(settings), at and str(at)),
            places=tuple(
                Place(str(place["host"]), str(place["path"]), place.get("mark")) for place in value["places"]
            ),
            settings=settings,
            metrics=str(value["metrics_sha256"]),
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


# -- of an evaluation that is under way --------------------------------------------------------------


def _begun_path(metrics: Path) -> Path:
    checkpoint = metrics.parent
    return ResultPaths(checkpoint.parent.parent).begun(checkpoint.parent.name, checkpoint.name)


def write_begun(metrics: Path, found: Provenance) -> None:
    """Write the provenance of the numbers that an evaluation will write, before it starts.

    It is needed if the sidecar dies and its state is lost.

    Raises:
        StateError: if it cannot be written.
    """
    find_provenance(metrics)  # keep that of an earlier evaluation before it is overwritten
    write_json(_begun_path(metrics), _as_json(found, ""))


def find_provenance(metrics: Path) -> Optional[Provenance]:
    """Return the provenance of the numbers in a ``metrics.json``.

    If there is none beside them, it is what `write_begun` wrote before an evaluation whose end no sidecar
    saw; it is then written beside the numbers.
    """
    found = read_provenance(metrics)
    if found is None and (found := _read_begun(metrics)) is not None:
        with contextlib.suppress(OSError, StateError):
            write_provenance(metrics, found)
    return found


def _read_begun(metrics: Path) -> Optional[Provenance]:
    path = _begun_path(metrics)
    try:
        found = parse_provenance(path.read_bytes())
        # Older numbers are not from this evaluation.
        return found if metrics.stat().st_mtime_ns >= path.stat().st_mtime_ns else None
    except OSError:
        return None


def remove_begun(metrics: Path) -> None:
    """Remove what `write_begun` wrote, after the evaluation."""
    path = _begun_path(metrics)
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()


# -- one model or two --------------------------------------------------------------------------------


def are_one(ours: Iterable[Place], theirs: Iterable[Place]) -> bool:
    """Return whether two lists of places have one in common."""
    known = list(theirs)
    return any(place.is_same(other) for place in ours for other in known)


def share_weights(ours: Mapping[int, Optional[str]], theirs: Mapping[int, Optional[str]]) -> bool:
    """Return whether identities of weights, by step, are of one training: one in common, none different."""
    both = [(ours[step], theirs[step]) for step in ours.keys() & theirs.keys()]
    known = [(one, other) for one, other in both if one is not None and other is not None]
    return bool(known) and all(one == other for one, other in known)
