"""Find models to report on: in the ledgers of a state folder, and in results that no ledger knows."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from eval_sidecar.errors import ResultError, SidecarError, StateError, UsageError
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.lookalikes import is_model
from eval_sidecar.ledger.provenance import read_provenance
from eval_sidecar.ledger.results import read_result
from eval_sidecar.ledger.stamps import list_stamps
from eval_sidecar.ledger.store import find_ledgers, load
from eval_sidecar.paths import ResultPaths
from eval_sidecar.report.facts import ModelFacts, model_facts
from eval_sidecar.types import UNKNOWN


@dataclass(frozen=True)
class Found:
    """What there is to report on.

    Attributes:
        models: By name, then run.
        unreadable: What could not be read, one line each.
    """

    models: tuple[ModelFacts, ...]
    unreadable: tuple[str, ...]


def find_models(
    state_dirs: Sequence[Path],
    results_root: Optional[Path],
    wanted: Sequence[str],
    now: float,
    files: Sequence[Path] = (),
) -> Found:
    """Read ledgers, and results that are in none of them.

    Args:
        state_dirs: Folders of the ledgers; may be missing.
        results_root: Folder with a folder per model; may be missing. None: ledgers alone are read.
        wanted: Names, patterns such as ``*-dsz0``, or paths of model dirs; none for all models.
        now: Seconds since the epoch.
        files: More ledgers.

    Raises:
        UsageError: if there is nothing to report, or not what is wanted.
    """
    unreadable: list[str] = []
    ledgers: dict[Path, Ledger] = {}
    lying = [path for folder in state_dirs for path in find_ledgers(folder)]
    for path in dict.fromkeys([*lying, *files]):
        try:
            ledger = load(path, keep_corrupt=True)
        except StateError as error:
            unreadable.append(str(error))
            continue
        if ledger is not None:
            ledgers[path] = ledger
    names = sorted(
        {
            *(ledger.model_dir for ledger in ledgers.values()),
            *(_in_results(results_root) if results_root else ()),
        }
    )
    chosen = _choose(
        names, wanted, f"{', '.join(map(str, [*state_dirs, *filter(None, [results_root])]))}", unreadable
    )
    models = []
    for name in chosen:
        known = [(path, ledger) for path, ledger in ledgers.items() if ledger.model_dir == name]
        if len(known) < 2:  # with several runs of one model, it is not known which one new results are for
            ledger = known[0][1] if known else Ledger(name, "", "")
            ledger = _with_results(ledger, results_root / name, unreadable) if results_root else ledger
            models.append(model_facts(ledger, known[0][0] if known else None, now))
        else:
            models += [model_facts(ledger, path, now) for path, ledger in known]
    return Found(tuple(models), tuple(unreadable))


def _in_results(root: Path) -> list[str]:
    try:
        return [path.name for path in root.iterdir() if path.is_dir() and is_model(path)]
    except OSError:
        return []


def _choose(
    names: Sequence[str], wanted: Sequence[str], looked_at: str, unreadable: Sequence[str]
) -> list[str]:
    if not names and not unreadable:
        raise UsageError(
            f"no results and no ledgers in {looked_at}; give --repo-root, --state-dir or --results-root"
        )
    chosen: list[str] = []
    for word in wanted:
        name = os.path.basename(os.path.normpath(word))  # noqa: PTH119 - a path that may be written in any way
        found = [known for known in names if known in (word, name)] or fnmatch.filter(names, word)
        if not found:
            raise UsageError(f"{word}: no such model in {looked_at}; there are: {', '.join(names)}")
        chosen += [known for known in found if known not in chosen]
    return chosen if wanted else list(names)


def _with_results(ledger: Ledger, folder: Path, unreadable: list[str]) -> Ledger:
    """Add results that the ledger does not know; none if its own results are in another folder."""
    known = [entry.result.path for entry in ledger.steps() if entry.result]
    if any(Path(path).parent.parent != folder for path in known):
        return ledger
    try:
        steps = [step for step, stamp in list_stamps(folder).items() if stamp and step not in ledger.entries]
    except SidecarError as error:
        unreadable.append(str(error))
        return ledger
    for step in steps:
        path = ResultPaths(folder.parent).metrics(folder.name, step)
        try:
            result = read_result(path)
        except ResultError as error:
            unreadable.append(str(error))
            continue
        written = read_provenance(path)
        origin, settings = (written.origin, written.settings) if written else (UNKNOWN, {})
        ledger = ledger.found(step, result, origin, settings)
    return ledger
