"""Runs every benchmark, prints one table, and writes it as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
COLUMNS = ["what", "baseline", "ours", "ratio", "must reach", "reached", "note"]
TOPICS = ("uploads", "passes", "packing", "watch", "evaluator")


def main() -> int:
    """Return 0 where every target was reached."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--only", choices=TOPICS, action="append", help="Only this topic; repeatable.")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="[default: %(default)s]")
    parser.add_argument("--markdown", type=Path, help="Write the table there too, as in docs/performance.md.")
    given = parser.parse_args()
    console = Console(stderr=True)
    machine = _machine()
    rows: list[dict[str, Any]] = []
    for topic in given.only or TOPICS:
        began = time.monotonic()
        with console.status(f"{topic} …"):
            found = importlib.import_module(topic).measure()
        console.print(f"{topic}: {time.monotonic() - began:.0f} s")
        rows += [{"topic": topic, **item} for item in found]
    lines = [_cells(item) for item in rows]
    table = Table(show_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("what", "note") else "right")
    for cells, item in zip(lines, rows):
        table.add_row(*cells, style=None if item["reached"] else "red")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if given.markdown:
        heads = [COLUMNS, ["---"] * len(COLUMNS), *lines]
        given.markdown.write_text("".join(f"| {' | '.join(cells)} |\n" for cells in heads))
    report = {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), **machine, "rows": rows}
    given.json.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"{machine['machine']}; written to {given.json}")
    return 0 if all(item["reached"] for item in rows) else 1


def _cells(item: dict[str, Any]) -> list[str]:
    baseline, ratio = item["baseline"], item["ratio"]
    return [
        item["what"],
        "" if baseline is None else f"{_short(baseline)} {item['unit']}",
        f"{_short(item['ours'])} {item['unit']}",
        "" if ratio is None else f"{_short(ratio)}x",
        str(item["target"]),
        "yes" if item["reached"] else "no",
        str(item.get("note", "")),
    ]


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {
        "machine": f"{cores} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}",
        "load_before": f"{os.getloadavg()[1]:.1f}",
    }


if __name__ == "__main__":
    sys.exit(main())
