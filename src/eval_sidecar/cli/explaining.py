"""What `explain` prints: the answer on the first line, then the evidence, wrapped to the screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from eval_sidecar.cli.formats import job_time, local_time, number
from eval_sidecar.cli.terminal import say
from eval_sidecar.report.facts import READY, CheckpointFacts, ModelFacts, seconds_of
from eval_sidecar.report.story import Story, is_this_folder
from eval_sidecar.types import Completeness

#: Columns of the labels.
_LABEL = 13


def print_story(story: Story) -> None:
    """Print a story for people."""
    name = f"checkpoint-{story.step}"
    if not story.known:
        found = story.folders[0]
        reason = f": {found.evidence[0]}" if found.evidence else ""
        say(f"{name}: not in a ledger yet; its folder is {found.verdict}{reason}", indent=2, fg="yellow")
    for facts, one in story.known:
        run = f" (run {facts.ledger.run_id})" if len(story.known) > 1 else ""
        colour = {"failed": "red", "evaluated": "green"}.get(one.stage, "yellow")
        say(f"{name}{run}: {answer(facts, one, story)}", indent=2, fg=colour)
    judged = None
    for found in story.folders:
        _row(found.kind, str(found.path))
        if judged != (found.verdict, found.evidence):  # a pin has the same files
            _row("verdict", found.verdict)
            for fact in found.evidence:
                _row("", f"- {fact}")
        judged = (found.verdict, found.evidence)
    told = {fact for found in story.folders for fact in found.evidence}
    for facts, one in story.known:
        for label, text in _rows(story, facts, one, told):
            _row(label, text)


def answer(facts: ModelFacts, one: CheckpointFacts, story: Story) -> str:
    """Return where a checkpoint stands, in one sentence."""
    entry, there = one.entry, story.weights
    if one.stage == "running":
        return f"is being evaluated: {job_time(one.elapsed, one.estimated)}"
    if one.stage == "failed":
        return f"failed: {one.problem}"
    if one.stage == "deleted":
        return "was deleted before it could be evaluated"
    if one.stage == "abandoned":
        return f"was never completed: {one.problem}"
    if one.stage == "waiting":
        # The folder as it is now, not as the last pass found it.
        is_complete = any(found.verdict == Completeness.COMPLETE for found in story.folders)
        why = READY if is_complete and not (facts.ledger.busy or entry.failure) else one.problem
        if entry.is_superseded:
            why = "its result is of weights that were replaced"
        return f"waits to be evaluated: {why or 'not looked at yet'}"
    if entry.result is None:
        return "evaluated by an earlier version, which kept no numbers"
    shown = list(one.metrics.items())[:2]
    numbers = ", ".join(f"{name} {number(value)}" for name, value in shown)
    remark = {"*": "; with other settings than the current ones", "?": "; settings unknown"}.get(one.mark, "")
    if entry.origin.identity is not None and there not in (None, entry.origin.identity):
        remark += "; of other weights than the folder holds now"
    return f"evaluated: {numbers}; delivery: {one.delivery or 'none'}{remark}"


def _rows(story: Story, facts: ModelFacts, one: CheckpointFacts, told: set[str]) -> Iterator[tuple[str, str]]:
    """Yield what a ledger says, as label and text, without facts that were shown already."""
    ledger, entry = facts.ledger, one.entry
    yield "ledger", str(facts.state_file)
    if ledger.places:
        yield "model dir", str(ledger.places[0])
    if not is_this_folder(story, facts):
        yield "", "which is not this folder: two models of one name? (--model-name)"
    if entry.first_seen:
        yield "first seen", f"{_local(entry.first_seen)}, last verdict {entry.verdict}"
        for fact in entry.evidence:
            if fact not in told:
                yield "", f"- {fact}"
    if entry.running:
        since = local_time(entry.running.started_at)
        yield "evaluation", f"running since {since}, attempt {entry.attempts + 1}"
        yield "log", entry.running.log
        if entry.running.state:
            yield "job", entry.running.state
    for reason in entry.evictions:
        yield "interrupted", reason
    if ledger.busy and entry.is_pending and not entry.running:
        yield "not started", ledger.busy
    if entry.failure:
        then = "failed until `eval-sidecar retry`" if entry.failure.final else "will retry"
        count = f"{entry.attempts} attempt{'s' if entry.attempts != 1 else ''}"
        yield "failure", f"{_local(entry.failure.time)}: {entry.failure.error} ({count}, {then})"
        if entry.failure.log:
            yield "log", entry.failure.log
    if entry.content:
        yield "weights", f"{entry.content.identity}, saved {_local(entry.content.since)}"
        if story.weights not in (None, entry.content.identity):
            yield "", f"the folder now holds other weights: {story.weights}"
    yield from _result_rows(story, one)
    if entry.delivery:
        status = one.delivery or entry.delivery.status
        row = f", row {entry.delivery.index}" if entry.delivery.index is not None else ""
        how = f" ({entry.delivery.via})" if entry.delivery.via else ""
        yield "delivery", f"{status}, revision {entry.delivery.revision}{row}, run {ledger.run_id}{how}"
    if ledger.problem and entry.due() is not None:
        yield "", ledger.problem


def _result_rows(story: Story, one: CheckpointFacts) -> Iterator[tuple[str, str]]:
    entry = one.entry
    if entry.result is None:
        return
    yield "result", entry.result.path
    yield "", _weights_of_result(one, story.weights)
    if one.settings is None:
        yield "", "settings unknown"
    else:
        yield "", "settings: " + ", ".join(f"{name} {value}" for name, value in one.settings.items())
    if one.changes:
        yield "", f"settings now: {', '.join(one.changes)}"
    yield "", ", ".join(f"{key} {value:g}" for key, value in entry.result.metrics.items())
    for name in entry.result.left_out:
        yield "left out", name


def _weights_of_result(one: CheckpointFacts, there: Optional[str]) -> str:
    origin = one.entry.origin
    when = f", evaluated {_local(origin.at)}" if origin.at else ""
    if origin.identity is None:
        return f"of weights that are unknown{when}"
    if one.entry.is_superseded:
        of = "weights that were replaced: will evaluate it again"
    elif there not in (None, origin.identity):
        of = "other weights than the folder holds now"
    else:
        of = "these weights"
    return f"of {origin.identity}, {of}{when}"


def _local(moment: str) -> str:
    seconds = seconds_of(moment)
    return moment if seconds is None else local_time(seconds)


def _row(label: str, text: str) -> None:
    say(f"{label:<{_LABEL}}{text}", indent=_LABEL)
