"""The command line of the harness: trials spread over the kinds, in parallel, and a table at the end."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from faults.judging import COUNTS
from faults.registry import KINDS
from faults.trial import Trial, report, run_trial, say

_COLUMNS = ("kind", "trials", "skipped", "points", *COUNTS, "broken", "seconds")


def run_trials(kinds: Sequence[str], numbers: Sequence[int], seed: int, jobs: int) -> list[Trial]:
    """Do trials in as many processes, each trial with a server of its own; failures are told at once."""
    plan = [(kinds[number % len(kinds)], number) for number in numbers]
    trials = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        futures = [pool.submit(run_trial, kind, number, seed) for kind, number in plan]
        for done, future in enumerate(as_completed(futures), 1):
            trial = future.result()
            trials.append(trial)
            outcome = "FAILED" if trial.failed else f"skipped: {trial.skipped}" if trial.skipped else "good"
            say(f"{done}/{len(plan)} {trial.kind} {trial.number}: {outcome} ({trial.seconds:.0f} s)")
            if trial.failed:
                say(report(trial))
    return sorted(trials, key=lambda trial: trial.number)


def table(trials: Sequence[Trial]) -> list[list[str]]:
    """One row a kind, then all together; the first row is the heads."""
    rows = [[name.replace("_", " ") for name in _COLUMNS]]
    kinds = [kind for kind in KINDS if any(trial.kind == kind for trial in trials)]
    for name, chosen in [
        *((kind, [trial for trial in trials if trial.kind == kind]) for kind in kinds),
        ("all", list(trials)),
    ]:
        tried = [trial for trial in chosen if trial.skipped is None]
        counts = [sum(getattr(trial.verdict, count) for trial in tried) for count in ("points", *COUNTS)]
        broken = sum(trial.broken is not None for trial in tried)
        seconds = round(sum(trial.seconds for trial in tried))
        rows.append([name, *map(str, (len(tried), len(chosen) - len(tried), *counts, broken, seconds))])
    return rows


def show(rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, plain where another program reads it."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table(*rows[0])
        for row in rows[1:]:
            drawn.add_row(*row, end_section=row is rows[-2])
        Console().print(drawn)
        return
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [f"{cell:<{width}}" if not place else f"{cell:>{width}}"
                 for place, (cell, width) in enumerate(zip(row, widths))]  # fmt: skip
        say("  ".join(cells))


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Do trials and exit with 1 where anything was not as promised."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", help=f"only these, separated by commas; there are: {', '.join(KINDS)}")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, action="append", help="only the trial of this number")
    parser.add_argument("--json", type=Path, help="write everything there too")
    given = parser.parse_args(arguments)
    kinds = given.kinds.split(",") if given.kinds else list(KINDS)
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        parser.error(f"no such kind: {', '.join(unknown)}; there are: {', '.join(KINDS)}")
    trials = run_trials(kinds, given.only or range(given.trials), given.seed, given.jobs)
    show(table(trials))
    if given.json:
        text = json.dumps({"seed": given.seed, "trials": [asdict(trial) for trial in trials]}, indent=1)
        given.json.write_text(text + "\n")
    failed = sum(trial.failed for trial in trials)
    skipped = sum(trial.skipped is not None for trial in trials)
    say(f"{len(trials)} trials, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)
