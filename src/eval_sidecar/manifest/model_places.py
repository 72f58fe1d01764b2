"""Tells one model from two with the same name: a model is its name and the places where it lives or lived."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from eval_sidecar.checkpoints.identity import read_identity
from eval_sidecar.checkpoints.listing import list_checkpoints, list_steps
from eval_sidecar.errors import UsageError
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.provenance import Provenance, are_one, read_provenance, share_weights
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.paths import PinPaths, ResultPaths
from eval_sidecar.types import Place

log = logging.getLogger(__name__)

#: How many checkpoints, the newest ones, are compared if a model is found in another place.
_COMPARED = 50


def place_of(model_dir: Path) -> Place:
    """Return the place of a model dir, links resolved; mark its parent, if possible, for other hosts."""
    path = os.path.realpath(model_dir)
    return Place(socket.gethostname(), path, _mark(PinPaths.beside(Path(path)).mark))


def _mark(path: Path) -> Optional[str]:
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: a training may not have begun
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write(secrets.token_hex(8))
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None  # read-only, say: then the host's name is all there is


def settle_place(store: LedgerStore, model_dir: Path, results_root: Path, *, moved: bool) -> None:
    """Record where a model lives, or refuse a second model with its name.

    A training that was moved, or is mounted elsewhere, is recognized by a checkpoint that has the same
    content in both places.

    Args:
        store: The model's ledger.
        model_dir: Where its checkpoints are.
        results_root: Where its results are; their provenance may tell what the ledger does not.
        moved: Whether the user says that it is the same training.

    Raises:
        UsageError: naming both places, and what to do.
    """
    ledger, place = store.ledger, place_of(model_dir)
    known, weights = ledger.places[:1], _weights_of(ledger)
    if not known:
        found = _provenances(results_root, ledger.model_dir)
        if any(are_one([place], one.places) for one in found.values()):
            found = {}
        known = next((one.places for one in reversed(list(found.values())) if one.places), ())
        weights = {step: one.origin.identity for step, one in found.items()}
    if known and not place.is_same(known[0]):
        if moved:
            why = "as --moved says"
        elif not ledger.entries and not weights:
            why = "nothing was found there"  # a link's target is known only once it exists
        elif _is_renamed(known[0], place):
            why = "the folder that holds it has another path"
        elif share_weights(weights, _weights_there(model_dir, weights)):
            why = "it has the same checkpoints"
        else:
            raise UsageError(second_model(ledger.model_dir, known[0], place))
        log.info("%s: was %s, is now %s (%s)", ledger.model_dir, known[0], place, why)
    rest = [one for one in known if one not in ledger.places]
    store.update(lambda now: now.placed(*reversed(rest), place).with_moved(moved))


@dataclass(frozen=True)
class Admission:
    """Which results from other machines are a model's own.

    Attributes:
        ledger: The ledger with what is now known of the model's places.
        foreign: Steps whose result is of another model with the same name.
        reason: Why they are not taken, in one line; None if all are.
    """

    ledger: Ledger
    foreign: frozenset[int] = frozenset()
    reason: Optional[str] = None


def admit(ledger: Ledger, found: Mapping[int, Provenance], *, moved: bool = False) -> Admission:
    """Tell a model's own results from those of another model with the same name.

    Args:
        ledger: What is known of the model.
        found: Provenance of the results that are to be taken, by step.
        moved: Whether the user says that all of them are of one training.
    """
    foreign, others = set(), []
    for step, written in found.items():
        if not written.places or any(place.is_same(written.places[0]) for place in ledger.places):
            continue
        kin = {number: one.origin.identity for number, one in found.items() if one.places == written.places}
        is_one = not ledger.places or are_one(ledger.places, written.places)
        if is_one or moved or share_weights(_weights_of(ledger), kin):
            ledger = ledger.placed(*reversed(written.places))
        else:
            foreign.add(step)
            others.append(written.places[0])
    if not foreign:
        return Admission(ledger)
    names = ", ".join(f"checkpoint-{step}" for step in sorted(foreign)[:5])
    more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
    reason = (
        f"{names}{more} not taken: of another model with this name, {others[0]}; the others are of"
        f" {ledger.places[0]}. Evaluate one of them under a name of its own (--model-name), or, if it is the"
        " same training, say so with --moved"
    )
    return Admission(ledger, frozenset(foreign), reason)


def require_same_models(root: Path, found: Mapping[str, Mapping[int, Provenance]]) -> None:
    """Refuse results if a model with the same name already has results here.

    Args:
        root: Where the results are.
        found: Provenance of the results to be unpacked, by model and step.

    Raises:
        UsageError: naming both places, and what to do.
    """
    for model, coming in sorted(found.items()):
        known = _provenances(root, model)
        there = admit(Ledger(model, "", ""), known, moved=True).ledger
        there = there.with_origins({step: one.origin for step, one in known.items()})
        admission = admit(there, coming)
        if admission.reason:
            raise UsageError(f"{model}: {admission.reason}")


def _is_renamed(known: Place, place: Place) -> bool:
    """Return whether a folder was renamed: it has our mark, and there is no copy at the old path."""
    same_name = os.path.basename(known.path) == os.path.basename(place.path)  # noqa: PTH119 - text of any host
    return None is not known.mark == place.mark and same_name and not os.path.exists(known.path)  # noqa: PTH110


def second_model(model: str, known: Place, place: Place) -> str:
    """Return the error about a second model that has the name of a known one."""
    return (
        f"{place}: {model} is the name of another model, {known}, whose results, ledger and run it would"
        " share; give this one a name of its own with --model-name, or, if it is the same training,"
        " say so with --moved"
    )


def _weights_of(ledger: Ledger) -> dict[int, Optional[str]]:
    return {entry.step: entry.known_identity for entry in ledger.steps()}


def _weights_there(model_dir: Path, wanted: Mapping[int, Optional[str]]) -> dict[int, Optional[str]]:
    found: dict[int, Optional[str]] = {}
    for checkpoint in reversed(list_checkpoints(model_dir)):
        if wanted.get(checkpoint.step) is None or len(found) >= _COMPARED:
            continue
        try:
            found[checkpoint.step] = read_identity(checkpoint.path)
        except OSError:
            continue  # not readable, or deleted meanwhile: it does not prove anything
    return found


def _provenances(results_root: Path, model: str) -> dict[int, Provenance]:
    """Return the provenance of each of a model's results, by step."""
    found = {}
    for step in list_steps(results_root / model):
        written = read_provenance(ResultPaths(results_root).metrics(model, step))
        if written is not None:
            found[step] = written
    return found
