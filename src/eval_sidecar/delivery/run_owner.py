"""What a run says of its model, so that machines that share nothing else do not mix up two models."""

from __future__ import annotations

import json
from typing import Optional

from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.provenance import are_one, share_weights
from eval_sidecar.types import Place

#: A run names the weights of this many checkpoints, the last ones.
_NAMED = 50


def home_of(ledger: Ledger) -> Optional[str]:
    """Return what a run should say of a ledger's model; None if it is not known where it lives."""
    if not ledger.places:
        return None
    known = [(entry.step, entry.origin.identity) for entry in ledger.steps() if entry.origin.identity]
    places = [[place.host, place.path, place.mark] for place in ledger.places]
    return json.dumps({"places": places, "weights": dict(known[-_NAMED:])}, separators=(",", ":"))


def why_foreign(ledger: Ledger, home: Optional[str]) -> Optional[str]:
    """Return why a run is not this model's; None if it is, or if one of them does not say."""
    try:
        value = json.loads(home or "")
        places = [Place(str(host), str(path), mark) for host, path, mark in value["places"]]
        weights = {int(step): str(identity) for step, identity in value["weights"].items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    ours = {entry.step: entry.known_identity for entry in ledger.steps()}
    if not places or not ledger.places or ledger.moved:
        return None
    if are_one(ledger.places, places) or share_weights(ours, weights):
        return None
    return (
        f"holds the points of another model, {places[0]}, and this is {ledger.places[0]}; nothing was sent."
        " Give this one a run of its own (another --model-name, or --wandb-run-id if you give one), or, if it"
        " is the same training, say so with --moved"
    )
