"""``show``: the results of one or all models, as a table, a curve, CSV or JSON."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import click

from eval_sidecar.best import HEADLINE
from eval_sidecar.cli.formats import job_time, number, screen_width, shorten, table
from eval_sidecar.cli.planning import state_folders
from eval_sidecar.cli.plot import plot
from eval_sidecar.cli.running import manager_folder
from eval_sidecar.cli.terminal import clean, say, say_json
from eval_sidecar.errors import UsageError
from eval_sidecar.report.export import csv_rows, model_json
from eval_sidecar.report.facts import CheckpointFacts, ModelFacts
from eval_sidecar.report.find import Found, find_models
from eval_sidecar.system.instances import find_instances, state_files

#: Marks of results that need an explanation, and what each means.
_LEGEND = {
    "!": "of weights that were replaced; the current ones are not evaluated yet",
    "*": "made with other settings than the current ones",
    "?": "settings unknown: found in results, or made by an earlier version",
}
#: How many metrics are shown if none is chosen and none is a headline metric.
_MOST_METRICS = 4
#: Width of a curve in a pipe.
_PIPE_WIDTH = 80


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--metric", "metrics", multiple=True, help="Show this metric; may be given several times.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: every metric, unless --metric is given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of models.")
@click.option("--plot", "as_plot", is_flag=True, help="Draw a curve of each metric.")
@click.option("--repo-root", default=".", show_default=True, help="Where state/ and results/ are.")
@click.option("--state-dir", help="Ledgers.  [default: of watching and of uploading, in REPO_ROOT/state]")
@click.option("--results-root", help="Results.  [default: results in REPO_ROOT]")
def show(
    models: Sequence[str],
    metrics: Sequence[str],
    as_csv: bool,
    as_json: bool,
    as_plot: bool,
    repo_root: str,
    state_dir: Optional[str],
    results_root: Optional[str],
) -> int:
    """Show the results of models, and checkpoints that have none yet.

    MODEL is a name, a pattern such as '*-dsz0', the path of a model dir, or an instance; default: all models.
    What is not in this folder is looked for among the models of your instances.
    """
    if as_csv + as_json + as_plot > 1:
        raise UsageError("--csv, --json and --plot: give one of them")
    root = Path(os.path.abspath(repo_root))
    results = Path(os.path.abspath(results_root)) if results_root else root / "results"
    ledgers = [Path(os.path.abspath(state_dir))] if state_dir else state_folders(root)
    try:
        found = find_models(ledgers, results, models, time.time())
    except UsageError:
        is_given = state_dir or results_root or repo_root != "."
        if is_given or (elsewhere := _find_of_instances(models)) is None:
            raise
        found = elsewhere
    _require_metrics(found.models, metrics)
    if as_json:
        say_json([model_json(model) for model in found.models])
    elif as_csv:
        _print_csv(found.models, metrics)
    else:
        for number, model in enumerate(found.models):
            if number:
                say("")
            if as_plot:
                _print_curves(model, metrics or shown_metrics(model))
            else:
                results_table(model, metrics)
    for line in found.unreadable:
        say(f"NOT READ     {line}", fg="red", err=True)
    return 1 if found.unreadable else 0


def _find_of_instances(wanted: Sequence[str]) -> Optional[Found]:
    """Return models that instances work on, in whatever folder; None if these do not have what is wanted.

    Args:
        wanted: As for `find_models`; names of instances too.
    """
    known, now = find_instances(manager_folder()), time.time()
    named = [path for one in known if one.name in wanted for path in state_files(one)]
    words = [word for word in wanted if word not in {one.name for one in known}]
    everywhere = [path for one in known for path in state_files(one)]
    parts = []
    try:
        if named or not wanted:
            parts.append(find_models([], None, [], now, named or everywhere))
        if words:
            parts.append(find_models([], None, words, now, everywhere))
    except UsageError:
        return None
    if not parts:
        return None
    models = tuple(model for part in parts for model in part.models)
    return Found(models, tuple(line for part in parts for line in part.unreadable))


def _require_metrics(models: Sequence[ModelFacts], metrics: Sequence[str]) -> None:
    known = list(dict.fromkeys(name for model in models for name in model.metric_names))
    for metric in metrics:
        if metric not in known:
            raise UsageError(f"--metric {metric}: no result has it; there are: {', '.join(known) or 'none'}")


def _print_csv(models: Sequence[ModelFacts], metrics: Sequence[str]) -> None:
    every = list(dict.fromkeys(name for model in models for name in model.metric_names))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for row in csv_rows(models, metrics or every):
        writer.writerow([clean(cell) for cell in row])


def _print_curves(model: ModelFacts, metrics: Sequence[str]) -> None:
    width = screen_width() or _PIPE_WIDTH
    for metric in metrics:
        points = [
            (float(one.entry.step), one.metrics[metric])
            for one in model.checkpoints
            if metric in one.metrics and one.mark != "!"
        ]
        name = clean(metric)
        say(f"{shorten(clean(model.name), width - len(name) - 2)}  {name}")
        for line in plot(points, width) if points else ["  no results yet"]:
            say(line)
        others = sum(one.mark == "*" for one in model.checkpoints)
        if others:
            say(f"{others} of these results were made with other settings than the current ones")


def shown_metrics(model: ModelFacts) -> list[str]:
    """Return the metrics that a table has if none is chosen."""
    names = model.metric_names
    return [name for name in HEADLINE if name in names] or names[:_MOST_METRICS]


def results_table(model: ModelFacts, metrics: Sequence[str] = (), *, only_results: bool = False) -> None:
    """Print a row a checkpoint, the best marked, and what the marks mean.

    Args:
        model: What to show.
        metrics: Columns; default: `shown_metrics`.
        only_results: Leave out checkpoints without a result, and print nothing if there is none.
    """
    width = screen_width()
    names = list(metrics) or shown_metrics(model)
    shown = [one for one in model.checkpoints if one.metrics or not only_results]
    if not shown and only_results:
        return
    say(shorten(clean(model.name), width) if width else model.name)
    if not shown:
        say("  no checkpoints yet")
        return
    best = model.best.get(names[0]) if names else None
    rows = [
        [
            str(one.entry.step),
            *(number(one.metrics[name]) if name in one.metrics else "" for name in names),
            one.delivery or "",
            _remark(one, is_best=one.entry.step == best),
        ]
        for one in shown
    ]
    headings = ["step", *map(clean, names), "delivery", ""]
    heading, *lines = table(headings, rows, "r" + "r" * len(names) + "lt", width)
    say(heading)
    for line, one in zip(lines, shown):
        say(line, fg="green" if one.entry.step == best else "red" if one.stage == "failed" else None)
    used = {one.mark for one in shown}
    for mark, meaning in _LEGEND.items():
        if mark in used:
            say(f"{mark} {meaning}")


def _remark(one: CheckpointFacts, *, is_best: bool) -> str:
    words = [one.mark, "<- best" if is_best else ""]
    if one.stage == "running":
        words.append(f"running: {job_time(one.elapsed, one.estimated)}")
    elif one.stage != "evaluated":
        words.append(f"{one.stage}: {one.problem}" if one.problem else one.stage)
    return clean(" ".join(word for word in words if word))
