"""Runs the tests of the evaluator and of the tracker on other releases of their libraries.

Each row of the table has an environment of its own under .venv-versions, over that of scripts/setup: what the
row names is installed there, and all else, torch first, is found in .venv. Rows on another Python have
everything of their own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-versions"
DOCUMENT = ROOT / "docs" / "compatibility.md"
BASE = f"{sys.version_info[0]}.{sys.version_info[1]}"

#: All of its tests but those of the processes around it, which no release of these libraries changes.
EVALUATOR = (
    "tests/genrec",
    *(f"--ignore=tests/genrec/test_{name}.py" for name in ("warm", "watch_warm", "wheel", "first_manual")),
)
TRACKER = (
    "tests/test_tracker_wandb.py",
    "tests/test_trackers_contract.py",
    "tests/test_wandb_content.py",
    "tests/test_wandb_server.py",
)
#: What tests need on a Python that shares nothing with .venv.
TOOLS = ("click", "filelock", "psutil", "rich", "watchfiles", "packaging")
TOOLS += ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")

GREEN, RED, SKIPPED = "green", "RED", "not tried"


@dataclass(frozen=True)
class Row:
    """One environment and the tests that are run in it.

    Attributes:
        name: What the row is about, as it stands in the table.
        library: The package whose release is the point of the row.
        version: Its release: None is the newest that pip finds, "floor" the least that pyproject.toml asks
            for, "held" that of requirements/held.txt.
        tests: Files and folders given to pytest.
        python: The Python to run on; None is that of .venv.
        others: Further requirements; ``name==floor`` is its lower bound in pyproject.toml.
        end: Whether the row is one of those that .ci/run tries.
    """

    name: str
    library: str
    version: str | None
    tests: tuple[str, ...]
    python: str | None = None
    others: tuple[str, ...] = ()
    end: bool = False


ROWS = (
    Row("transformers, floor", "transformers", "floor", EVALUATOR, end=True),
    Row("transformers 4.57", "transformers", "4.57.6", EVALUATOR),
    Row("transformers 5.0", "transformers", "5.0.0", EVALUATOR),
    Row("transformers 5.12", "transformers", "5.12.1", EVALUATOR),
    Row("transformers 5.23", "transformers", "5.23.0", EVALUATOR),
    Row("transformers, newest", "transformers", None, EVALUATOR, end=True),
    # Newer releases of transformers do not take the oldest torch: floors go together.
    Row("Python 3.10, all floors", "torch", "floor", EVALUATOR, "3.10", ("transformers==floor", "peft")),
    Row("Python 3.13", "torch", "held", EVALUATOR, "3.13", ("transformers", "peft")),
    Row("wandb, floor", "wandb", "floor", TRACKER, end=True),
    Row("wandb on Python 3.9", "wandb", "0.26.1", TRACKER, "3.9"),
    Row("wandb, newest", "wandb", None, TRACKER, end=True),
)


@dataclass(frozen=True)
class Outcome:
    """How a row came out.

    Attributes:
        row: The row.
        state: `GREEN`, `RED` or `SKIPPED`.
        versions: What ran: Python and libraries with their releases.
        text: Counts of tests, or why there are none.
        seconds: Time that it took, installation included.
    """

    row: Row
    state: str
    versions: str
    text: str
    seconds: float


class Unavailable(Exception):
    """A row cannot be tried here; the text says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Try the rows and print a table; 0 if no row is red."""
    parser = argparse.ArgumentParser(prog="scripts/test-versions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ends", action="store_true", help="only the floor and the newest of each library")
    parser.add_argument("--only", metavar="TEXT", help="only the rows whose name holds this text")
    parser.add_argument("--write", action="store_true", help="put the table into docs/compatibility.md")
    options = parser.parse_args(argv)
    rows = [row for row in ROWS if row.end or not options.ends]
    rows = [row for row in rows if (options.only or "").lower() in row.name.lower()]
    if not rows:
        parser.error(f"no row has {options.only!r} in its name: {', '.join(row.name for row in ROWS)}")
    outcomes = []
    for number, row in enumerate(rows, 1):
        print(f"[{number}/{len(rows)}] {row.name} ...", flush=True)
        outcome = try_row(row, same_is_enough=options.ends)
        outcomes.append(outcome)
        print(
            f"[{number}/{len(rows)}] {row.name}: {outcome.state}, {outcome.text}, {outcome.seconds:.0f} s",
            flush=True,
        )
    print("\n" + table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.state == RED]
    if options.write:
        if failed or len(rows) != len(ROWS):
            print(
                "docs/compatibility.md is left as it is: not every row was tried, or not every one is green"
            )
        else:
            write(table(outcomes))
    return 1 if failed else 0


def try_row(row: Row, *, same_is_enough: bool = False) -> Outcome:
    """Make the row's environment and run its tests.

    Args:
        row: The row.
        same_is_enough: Whether a newest release is not tried again if .venv has it, where all tests run.
    """
    began = time.monotonic()
    text, state, versions = "", SKIPPED, ""
    try:
        version = release(row)
        if (
            same_is_enough
            and row.version is None
            and version == version_in(Path(sys.executable), row.library)
        ):
            text = f"{row.library} {version} is that of the lock, which scripts/test runs with"
        else:
            python = environment(row, version)
            versions = describe(python, row)
            state, text = run_tests(python, row)
    except Unavailable as error:
        # The newest may be out of reach, and not every Python is everywhere; all else must be there.
        state = SKIPPED if row.version is None or row.python else RED
        text = str(error)
    return Outcome(row, state, versions, text, time.monotonic() - began)


def release(row: Row) -> str:
    """Return the release of the row's library.

    Raises:
        Unavailable: pip does not find the newest one.
    """
    if row.version == "floor":
        return floor_of(row.library)
    if row.version == "held":
        held = (ROOT / "requirements" / "held.txt").read_text(encoding="utf-8")
        return re.findall(rf"^{row.library}==([\d.]+)", held, re.MULTILINE)[0]
    if row.version is not None:
        return row.version
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--quiet",
    ]
    done = subprocess.run(
        [*command, "--report", "-", row.library], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unavailable(f"pip finds no {row.library}: {last_line(done.stderr)}")
    return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])


def floor_of(library: str) -> str:
    """Return the lower bound that pyproject.toml gives a library."""
    found = re.search(rf'"{library}>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found, f"pyproject.toml has no lower bound for {library}"
    return found[1]


def environment(row: Row, version: str) -> Path:
    """Make the row's environment, unless it is there, and return its Python.

    Raises:
        Unavailable: There is no such Python here, or pip cannot install.
    """
    folder = FOLDER / re.sub(r"\W+", "-", row.name).lower()
    python, done = folder / "bin" / "python", folder / ".done"
    others = (name.partition("==floor") for name in row.others)
    wanted = [
        f"{row.library}=={version}",
        *(f"{name}=={floor_of(name)}" if at else name for name, at, _ in others),
    ]
    key = json.dumps([wanted, BASE, (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")])
    if done.exists() and done.read_text(encoding="utf-8") == key:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    base = find_python(row.python) if row.python else sys.executable
    subprocess.run([base, "-m", "venv", *([] if row.python else ["--without-pip"]), str(folder)], check=True)
    if row.python:
        pip = [str(python), "-m", "pip"]
        wanted += TOOLS
    else:
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        (site,) = folder.glob("lib/python*/site-packages")
        (own,) = Path(sys.prefix).glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(f"{own}\n", encoding="utf-8")  # after what the row has itself
    installed = subprocess.run(
        [*pip, "install", "--quiet", *wanted], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        raise Unavailable(f"pip cannot install {' '.join(wanted)}: {last_line(installed.stderr)}")
    done.write_text(key, encoding="utf-8")
    return python


def find_python(version: str) -> str:
    """Return the command of a Python, on the PATH or among pyenv's.

    Raises:
        Unavailable: There is none.
    """
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for name in (f"python{version}", *map(str, sorted(versions.glob(f"{version}.*/bin/python")))):
        check = [name, "-c", f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"]
        try:
            if subprocess.run(check, capture_output=True, check=False).returncode == 0:
                return name
        except OSError:
            continue
    raise Unavailable(f"no Python {version} here")


def version_in(python: Path, library: str) -> str:
    """Return the release of a library that a Python finds; empty if it finds none."""
    code = f"import importlib.metadata as m; print(m.version({library!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def describe(python: Path, row: Row) -> str:
    """Return Python and libraries of a row with their releases, as they stand in the table."""
    libraries = ["torch", "transformers", "tokenizers"] if row.tests == EVALUATOR else ["wandb"]
    code = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    return ", ".join(
        [f"Python {said.strip()}"] + [f"{name} {version_in(python, name)}" for name in libraries]
    )


def run_tests(python: Path, row: Row) -> tuple[str, str]:
    """Run the row's tests; return its state and the counts."""
    folder = python.parents[1]
    report, log = folder / "report.xml", folder / "pytest.log"
    report.unlink(missing_ok=True)
    command = [
        str(python),
        "-m",
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadgroup",
        f"--junit-xml={report}",
        *row.tests,
    ]
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    if not report.exists():
        return RED, f"pytest ended with {code}: {last_line(log.read_text(encoding='utf-8'))} (see {log})"
    cases = list(ET.parse(report).getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = f"{len(cases) - len(bad) - skipped} passed" + (f", {skipped} skipped" if skipped else "")
    if code or bad or len(cases) == skipped:
        for case in bad:
            print(f"  failed: {case.get('classname')}::{case.get('name')}")
        return RED, f"{len(bad)} failed, {counts} (see {log})"
    return GREEN, counts


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table in Markdown, which is one to the eye too."""
    lines = [("what", "versions", "result", "tests")]
    lines += [(outcome.row.name, outcome.versions, outcome.state, outcome.text) for outcome in outcomes]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines
    ]
    rows.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(rows)


def write(text: str) -> None:
    """Put the table and its date into the document, between its two marks."""
    today = datetime.date.today().isoformat()
    document = DOCUMENT.read_text(encoding="utf-8")
    begin, end = "<!-- table -->", "<!-- end of table -->"
    head, tail = document.split(begin)[0], document.split(end)[1]
    DOCUMENT.write_text(f"{head}{begin}\nTried on {today}:\n\n{text}\n{end}{tail}", encoding="utf-8")
    print(f"{DOCUMENT.relative_to(ROOT)} is written")


def last_line(text: str) -> str:
    """Return the last line of a program's output that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "WARNING" not in line]
    return lines[-1] if lines else "no output"


if __name__ == "__main__":
    sys.exit(main())
