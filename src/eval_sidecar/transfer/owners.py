"""Whose results an archive brings: another model's of a known name are refused before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eval_sidecar.ledger.provenance import Provenance, parse_provenance
from eval_sidecar.manifest.model_places import require_same_models
from eval_sidecar.paths import PROVENANCE
from eval_sidecar.transfer.staging import Staged


def refuse_other_models(root: Path, staged: Iterable[Staged]) -> None:
    """Refuse an archive with results of another model that has the name of one that is here.

    Args:
        root: The results root.
        staged: What is to be put there.

    Raises:
        UsageError: naming both places, and what to do.
    """
    found: dict[str, dict[int, Provenance]] = {}
    for entry in staged:
        model, _, rest = entry.name.partition("/")
        if rest.endswith(f"/{PROVENANCE}") and (written := parse_provenance(entry.path.read_bytes())):
            found.setdefault(model, {})[written.step] = written
    require_same_models(root, found)
