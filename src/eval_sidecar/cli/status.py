"""What `status` prints of an instance: a table with a line a model, then what is wrong, runs and waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.cli.formats import (
    duration,
    job_time,
    local_time,
    number,
    relative_paths,
    runs_by_project,
    screen_width,
    several,
    short,
    shorten,
    table,
)
from eval_sidecar.cli.terminal import clean, say
from eval_sidecar.errors import StateError
from eval_sidecar.ledger.ledger import ASKING, ONLINE, Ledger
from eval_sidecar.ledger.store import load
from eval_sidecar.report.export import model_json, unreadable_json
from eval_sidecar.report.facts import CheckpointFacts, ModelFacts, Problem, model_facts
from eval_sidecar.system import instances
from eval_sidecar.system.instances import Instance
from eval_sidecar.system.process import ProcessIdentity

#: Columns beside a path.
_PATH_LABEL = 12
#: From this width on, the table has the estimated time beside the elapsed one.
_WIDE = 100


@dataclass(frozen=True)
class InstanceFacts:
    """An instance and the models that it works on.

    Attributes:
        instance: Its name and files.
        process: Its running process on this machine, or None.
        record: What the process wrote of itself.
        models: What is known of its models.
        unreadable: Why a ledger cannot be read, by its path.
    """

    instance: Instance
    process: Optional[ProcessIdentity]
    record: Mapping[str, Any]
    models: Sequence[ModelFacts]
    unreadable: Mapping[Path, str] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        """Whether it was ever started from here."""
        return bool(self.record) or self.instance.log_file.exists()

    @property
    def elsewhere(self) -> Optional[str]:
        """The other machine that it was started on, if it has not recorded its end there; else None."""
        return instances.other_machine(self.instance)


def instance_facts(instance: Instance, now: float) -> InstanceFacts:
    """Read what is known of an instance."""
    record = instances.read_record(instance)
    models, unreadable = [], {}
    for path in instances.state_files(instance):
        try:
            ledger = load(path, keep_corrupt=True)
        except StateError as error:
            unreadable[path] = str(error)
            continue
        if ledger is not None:
            models.append(model_facts(ledger, path, now))
    return InstanceFacts(instance, instances.find_process(instance), record, models, unreadable)


def instance_json(facts: InstanceFacts) -> dict[str, Any]:
    """Return an instance as plain JSON."""
    return {
        "instance": facts.instance.name,
        "running": facts.process is not None,
        "known": facts.is_known,
        "host": facts.record.get("host"),
        "pid": facts.process.pid if facts.process else None,
        "elsewhere": facts.elsewhere,
        "since": facts.process.started if facts.process else None,
        "log": str(facts.instance.log_file),
        "models": [
            *map(model_json, facts.models),
            *(unreadable_json(path, problem) for path, problem in facts.unreadable.items()),
        ],
    }


def print_instance(facts: InstanceFacts, now: float) -> None:
    """Print an instance for people."""
    name, log = facts.instance.name, facts.instance.log_file
    if facts.process:
        since = f"{local_time(facts.process.started)} ({duration(now - facts.process.started)})"
        ending = ", ends when the running evaluations have" if facts.record.get("finishing") else ""
        say(f"{name}: running (pid {facts.process.pid}) since {since}{ending}", indent=4, fg="green")
    elif not facts.is_known:
        say(f"{name}: not running, and was never started from here ({log.parent})", indent=4, fg="yellow")
        return
    else:
        host = facts.elsewhere
        there = f" here; it was started on {host}, run this there" if host else ""
        say(f"{name}: not running{there}", indent=4, fg="yellow")
    if facts.models:
        _print_table(facts.models)
    for text in _problem_lines(facts):
        say(f"  problem  {text}", indent=4, fg="red")
    is_alone = len(facts.models) == 1
    for model in facts.models:
        about = "" if is_alone else f"{short(model.name)}: "
        for text, fg in _details(model, is_running=facts.process is not None):
            say(f"  {about}{text}", indent=4, fg=fg)
    for text in _places(facts.models, facts.process):
        say(f"  W&B {text}", indent=4)
    files = [str(model.state_file) for model in facts.models if model.state_file]
    if files:
        where = files[0] if is_alone else ", ".join(sorted({str(Path(path).parent) for path in files}))
        say(f"  {'ledger' if is_alone else 'ledgers'} {_here(where)}", indent=4)
    say(f"  log {_here(str(log))}", indent=4)


def _print_table(models: Sequence[ModelFacts]) -> None:
    width = screen_width()
    headings = ["model", "done", "running", "failed", "undelivered", "unconfirmed", "best"]
    rows = []
    for model in models:
        ledger = model.ledger
        metric = next(iter(model.best), None)
        best = f"{metric} {number(model.best_value(metric))} at {model.best[metric]}" if metric else ""
        counts = (model.failed, len(ledger.undelivered()), len(ledger.unconfirmed()))
        running = _running_cell(model.running, is_wide=width is None or width >= _WIDE)
        done = f"{model.evaluated}/{len(model.checkpoints)}"
        rows.append([clean(model.name), done, running, *(str(count or "") for count in counts), best])
    used = [column for column, name in enumerate(headings) if column < 2 or any(row[column] for row in rows)]
    lines = table(
        [headings[column] for column in used],
        [[row[column] for column in used] for row in rows],
        "".join("nrlrrrl"[column] for column in used),
        width and width - 2,
    )
    for line in lines:
        say(f"  {line}")


def _running_cell(running: Sequence[CheckpointFacts], *, is_wide: bool) -> str:
    if not running:
        return ""
    more = f" +{len(running) - 1}" if len(running) > 1 else ""
    took = job_time(running[0].elapsed, running[0].estimated if is_wide else None)
    return f"{running[0].entry.step} {took}{more}"


def _problem_lines(facts: InstanceFacts) -> Iterator[str]:
    """Yield all current problems, delivery first; one line if several models have the same problem."""
    yield from facts.unreadable.values()
    together: dict[tuple[str, str], list[tuple[ModelFacts, Problem]]] = {}
    for kind in ("delivery", "evaluation", "checkpoint"):
        for model in facts.models:
            for problem in model.problems:
                if problem.kind == kind:
                    together.setdefault((kind, problem.text), []).append((model, problem))
    for (kind, text), found in together.items():
        model, problem = found[0]
        if len(found) > 1:
            yield f"{several([one.name for one, _ in found], len(facts.models))}: {kind}: {text}"
            continue
        about = f"{short(model.name)}: " if len(facts.models) > 1 else ""
        log = f"; log: {_here(problem.log)}" if problem.log else ""
        yield f"{about}{problem}{log}"


def _places(models: Sequence[ModelFacts], process: Optional[ProcessIdentity]) -> Iterator[str]:
    """Yield where points go: the run of a single model, else the number of runs in each project or folder."""
    if len(models) == 1:
        ledger = models[0].ledger
        reporting = reporting_of(ledger, process)
        why = "" if reporting in (None, ASKING, ONLINE) else f"; {reporting}"
        yield f"run {ledger.run_id}: {_place(ledger.where or 'no session yet')}{why}"
        return
    for line in runs_by_project(model.ledger.where for model in models):
        count, _, where = line.partition(": ")
        yield f"{count}: {_place(where)}"


def reporting_of(ledger: Ledger, process: Optional[ProcessIdentity]) -> Optional[str]:
    """Return how a process reports; None if it is not the one that wrote the ledger's last start."""
    writer = ledger.writer or {}
    return writer.get("reporting") if process is not None and writer.get("pid") == process.pid else None


def _place(where: str) -> str:
    return where if "://" in where else _here(where)


def _details(model: ModelFacts, *, is_running: bool) -> Iterator[tuple[str, Optional[str]]]:
    """Yield what runs, waits and has changed, each with the colour of its line."""
    for one in model.running:
        yield _job_line(one, is_alone=not is_running), None
    together: dict[str, list[str]] = {}
    for one in model.waiting:
        together.setdefault(_why_waiting(one), []).append(one.entry.name)
    for words, names in together.items():
        before, _, after = words.partition("|")
        yield f"waiting {', '.join(names)} ({before}){after}", None
    if model.settings_changed:
        yield model.settings_changed, "yellow"
    if model.ledger.busy and (is_running or model.ledger.shared_failure.reason):
        yield f"not started: {model.ledger.busy}", "yellow"
    for warning in model.warnings if is_running else ():
        yield f"warning: {warning}", "yellow"


def _why_waiting(one: CheckpointFacts) -> str:
    entry = one.entry
    pinned = ", pinned" if entry.pinned else ""
    other = ", its result is of other weights" if entry.is_superseded else ""
    reasons = entry.evictions
    times = "once" if len(reasons) == 1 else f"{len(reasons)} times"
    interrupted = f": interrupted {times}, last {reasons[-1]}" if reasons else ""
    return f"{entry.verdict or 'not looked at yet'}{pinned}{other}|{interrupted}"


def _job_line(one: CheckpointFacts, *, is_alone: bool) -> str:
    running = one.entry.running
    assert running is not None
    took, log = job_time(one.elapsed, one.estimated), _here(running.log)
    if running.state is None:
        left = " (left behind: start continues it, stop ends it)" if is_alone else ""
        return f"evaluating {one.entry.name} for {took}, log: {log}{left}"
    left = " (as last seen; start collects it)" if is_alone else ""
    return f"{one.entry.name}: {running.state} for {took}, log: {log}{left}"


def _here(path: str) -> str:
    """Return a path as short as the screen needs it; whole in a pipe, and in `explain`."""
    width = screen_width()
    return shorten(relative_paths(path), width - _PATH_LABEL) if width else path
