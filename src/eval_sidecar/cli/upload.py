"""The two-machine way: ``prepare-manifest``, ``upload``, ``verify`` and ``receipt``."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import click

from eval_sidecar.cli import show
from eval_sidecar.cli.reporting import MODE_METAVAR, choose_mode, open_tracker, parse_mode
from eval_sidecar.cli.running import instance_of, registered, stopping
from eval_sidecar.cli.terminal import say
from eval_sidecar.delivery.reconcile import Comparison
from eval_sidecar.delivery.uploading import Outcome, Uploader, choose_models
from eval_sidecar.errors import ResultError, SidecarError, StateError, UsageError
from eval_sidecar.ledger import lookalikes
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.stamps import stamp
from eval_sidecar.ledger.store import load
from eval_sidecar.manifest.manifest import FILE_NAME, Defaults, load_manifest, write_manifest
from eval_sidecar.manifest.receipt import FILE_NAME as RECEIPT_NAME
from eval_sidecar.manifest.receipt import part_of, read_parts, write_parts
from eval_sidecar.system.file_notifications import watch_folders
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.trackers.base import Tracker
from eval_sidecar.trackers.wandb_checks import check_runs
from eval_sidecar.types import ModelSpec

log = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])

_SOURCE = (
    click.option("--results-root", default="./results", show_default=True),
    click.option("--manifest-path", help=f"[default: RESULTS_ROOT/{FILE_NAME}]"),
    click.option("--manifest-overrides", help="Overrides on top of the manifest, as for prepare-manifest."),
    click.option("--state-dir", default="state/wandb_eval_uploader", show_default=True, help="Where the ledgers are."),
    click.option("--model-filter", multiple=True, help="Only these models; repeat it, or separate names by commas."),
)  # fmt: skip
_REPORTING = (
    click.option("--wandb-mode", envvar="WANDB_MODE", callback=parse_mode, metavar=MODE_METAVAR, help="[default: online]"),
    click.option("--wandb-resume", type=click.Choice(["allow", "must", "never", "auto"]), default="allow", show_default=True),
    click.option("--wandb-job-type", default="eval", show_default=True),
    click.option("--confirm-seconds", type=click.FloatRange(min=0), default=60.0, show_default=True, help="How long a server may take to show a point before it counts as not delivered."),
    click.option("--workers", type=click.IntRange(min=1), default=8, show_default=True, help="Models at a time."),
)  # fmt: skip


#: Models with nothing new that get a line each.
_MANY = 20


def _with(*groups: Sequence[Callable[[Any], Any]]) -> Callable[[_F], _F]:
    def decorate(command: _F) -> _F:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def chosen_defaults() -> frozenset[str]:
    """Which defaults of the manifest are on the command line, not from the environment or built in."""
    context = click.get_current_context()
    flags = {
        "default_project": "project",
        "default_entity": "entity",
        "default_eval_split": "eval_split",
        "run_id_prefix": "run_id_prefix",
    }
    given = click.core.ParameterSource.COMMANDLINE
    return frozenset(field for flag, field in flags.items() if context.get_parameter_source(flag) == given)


@click.command("prepare-manifest")
@click.option("--results-root", default="./results", show_default=True)
@click.option("--output-manifest", help=f"[default: RESULTS_ROOT/{FILE_NAME}]")
@click.option("--overrides", help="JSON file that changes what is inferred from a model dir's name.")
@click.option("--default-project", envvar="WANDB_PROJECT", default="MIMIGenRec-Eval", show_default=True)
@click.option("--default-entity", envvar="WANDB_ENTITY")
@click.option("--default-eval-split", default="test", show_default=True)
@click.option("--run-id-prefix", default="eval", show_default=True)
def prepare_manifest(
    results_root: str,
    output_manifest: Optional[str],
    overrides: Optional[str],
    default_project: str,
    default_entity: Optional[str],
    default_eval_split: str,
    run_id_prefix: str,
) -> int:
    """Write down which models there are in results, and which run each belongs to."""
    root = Path(results_root)
    defaults = Defaults(
        *(default_project, default_entity or None, default_eval_split, run_id_prefix),
        chosen=chosen_defaults(),
    )
    path = write_manifest(
        root,
        Path(output_manifest) if output_manifest else root / FILE_NAME,
        overrides=Path(overrides) if overrides else None,
        defaults=defaults,
    )
    say(f"{len(load_manifest(path))} models in {path}")
    show.problems(lookalikes.everywhere(root))
    return 0


@click.command()
@_with(_SOURCE, _REPORTING)
@click.option("--once", is_flag=True, help="Upload what there is now, then end.")
@click.option("--poll-interval-seconds", type=click.FloatRange(min=0.05), default=60.0, show_default=True)
@click.option("--disable-wandb", is_flag=True, help="Take results into the ledgers, deliver nothing.")
@click.option(
    "--moved", is_flag=True, help="Results of one name are of one training, wherever they were made."
)
@click.option("--instance", envvar="INSTANCE", help="Name for `status`, `tail` and `stop`.")
def upload(**flags: Any) -> int:  # noqa: ANN401 - one an option
    """Upload the results of a manifest's models: what is new or has changed, each point once.

    With --once, the exit code is 0 only if every result was taken and every point is confirmed; the last
    lines say what is not.
    """
    mode, reason = choose_mode(flags["wandb_mode"], flags["disable_wandb"], "online")
    show.set_up_logging()
    source = _Source(flags, checks_runs=mode is not None)
    source.load()
    if reason:
        log.warning("%s", reason)
    with _tracker(flags, mode) as tracker:
        uploader = _uploader(flags, tracker, mode)
        wake, stop = threading.Event(), threading.Event()
        with contextlib.ExitStack() as stack:
            instance = stack.enter_context(registered(instance_of(flags), [], "upload"))
            stack.enter_context(stopping(stop, wake, "ending; the next upload goes on from here"))
            if not flags["once"]:
                is_own = functools.partial(_is_own, source, uploader)
                stack.enter_context(
                    watch_folders(
                        [source.results_root],
                        lambda changed: (
                            wake.set()
                            if not changed or [path for path in changed if not is_own(path)]
                            else None
                        ),
                    )
                )
            outcomes: list[Outcome] = []
            while True:
                wake.clear()
                outcomes = _one_pass(source, uploader, stop, None if flags["once"] else outcomes)
                instance.after_pass([str(uploader.state_file(outcome.spec)) for outcome in outcomes])
                if flags["once"] or stop.is_set():
                    break
                if tracker is not None and not any(
                    outcome.report.sent or outcome.left for outcome in outcomes
                ):
                    tracker.close()  # while nothing is to be sent: its client takes more memory than all else
                wake.wait(flags["poll_interval_seconds"])
                if stop.is_set():
                    break
    left = [f"{outcome.spec.model_dir}: {line}" for outcome in outcomes for line in outcome.left]
    left += source.overlooked(uploader) if flags["once"] else []
    left += [source.receipt_problem] if source.receipt_problem else []
    show.problems(left)
    return 1 if left and flags["once"] else 0


def _one_pass(
    source: _Source, uploader: Uploader, stop: threading.Event, before: Optional[list[Outcome]]
) -> list[Outcome]:
    """Upload once, and print a line a model; after an earlier pass only where there is something new."""
    models = source.load()
    known = {outcome.spec.model_dir: outcome.left for outcome in before or []}
    with show.counting("uploading", len(models)) as advance:
        outcomes = uploader.run_pass(models, stop, lambda outcome: advance(outcome.spec.model_dir))
    untouched = [not outcome.was_opened and not outcome.report.unconfirmed for outcome in outcomes]
    many = before is None and sum(untouched) > _MANY
    if many:
        say(f"{sum(untouched)} models: nothing new")
    for outcome, is_untouched in zip(outcomes, untouched):
        if many and is_untouched:
            continue
        report = outcome.report
        is_news = outcome.taken or report.sent or report.confirmed or report.already or report.sent_table
        if before is None or is_news or known.get(outcome.spec.model_dir, ()) != outcome.left:
            show.outcome(outcome)
    if before is not None and uploader.looks_closely:
        source.warn_of_overlooked(uploader)
    uploader.remember(source.receipt if source.renew_receipt(uploader, outcomes) else None)
    return outcomes


def _is_own(source: _Source, uploader: Uploader, path: Path) -> bool:
    """Whether a change is this program's own; the uploader is told of all others."""
    if source.receipt.name in path.name:
        return True
    uploader.notice(path)
    return False


@click.command()
@_with(_SOURCE, _REPORTING)
@click.option("--repair", is_flag=True, help="Send what the server lacks, or has with other numbers.")
def verify(**flags: Any) -> int:  # noqa: ANN401 - one an option
    """Compare ledgers and server, point by point. Exit code 1 where anything differs."""
    mode, reason = choose_mode(flags["wandb_mode"], False, "online")
    if mode != "online":
        why = reason or f"--wandb-mode (or WANDB_MODE) is {flags['wandb_mode']}"
        raise UsageError(f"{why}; only a server can be verified against: add --wandb-mode online")
    show.set_up_logging()
    source = _Source(flags, checks_runs=True)
    models = source.load()
    with _tracker(flags, mode) as tracker:
        uploader = _uploader(flags, tracker, mode)
        before = [_verified(uploader, spec) for spec in models]
        differing = [spec for spec, found in zip(models, before) if not found]
        if flags["repair"] and differing:
            for outcome in uploader.repair(differing, threading.Event()):
                show.outcome(outcome)
            differing = [spec for spec in differing if not _verified(uploader, spec)]
        overlooked = source.overlooked(uploader)
        show.problems(overlooked)
    return 1 if differing or overlooked else 0


def _verified(uploader: Uploader, spec: ModelSpec) -> bool:
    """Print one model's comparison; whether it agrees."""
    try:
        found = uploader.verify(spec)
    except SidecarError as error:
        say(f"{spec.model_dir}: {error}", fg="red")
        return False
    say(f"{spec.model_dir}: {_in_words(found)}", fg=None if found.agrees else "red")
    return found.agrees


def _in_words(found: Comparison) -> str:
    parts = [f"{len(found.confirmed)} confirmed"]
    for steps, words in (
        (found.missing, "missing there"),
        (found.unknown, "there but unknown here"),
        (found.different, "with different values"),
        (found.doubled, "there more than once"),
    ):
        parts += [f"{len(steps)} {words}: {', '.join(map(str, steps))}"] if steps else []
    parts += ["the table lacks some of them"] if found.old_table else []
    return "; ".join(parts)


@click.command()
@_with(_SOURCE)
@click.option("--output", help=f"[default: RESULTS_ROOT/{RECEIPT_NAME}]")
def receipt(output: Optional[str], **flags: Any) -> int:  # noqa: ANN401 - one an option
    """Write what is confirmed, for `pack --incremental` on the training machine."""
    source = _Source(flags, output)
    models = source.load()
    source.write_receipt(_uploader({**flags, "confirm_seconds": 0.0, "workers": 1}, None, None))
    say(f"{len(models)} models in {source.receipt}")
    return 0


class _Source:
    """The manifest as it is now, read again when it has changed."""

    def __init__(
        self, flags: dict[str, Any], output: Optional[str] = None, *, checks_runs: bool = False
    ) -> None:
        self._checks_runs = checks_runs
        self.results_root = Path(os.path.abspath(flags["results_root"]))
        if not self.results_root.is_dir():
            raise UsageError(
                f"--results-root {self.results_root}: there is no such folder"
                " (to watch a training instead, give its folder as --sft-root)"
            )
        given = flags["manifest_path"]
        self.path = Path(given) if given else self.results_root / FILE_NAME
        self.receipt = Path(output) if output else self.results_root / RECEIPT_NAME
        self._overrides = Path(flags["manifest_overrides"]) if flags["manifest_overrides"] else None
        self._filters = flags["model_filter"]
        self._all: list[ModelSpec] = []
        self._models: Optional[list[ModelSpec]] = None
        self._stamps: object = None
        self._in_receipt: object = None
        self.receipt_problem: Optional[str] = None
        self._warn_once = WarnOnce()

    def load(self) -> list[ModelSpec]:
        """The models to work on.

        Raises:
            UsageError: where the manifest is wrong; where it has become wrong since, that is logged and
                the last good one goes on to be used.
        """
        try:
            stamps = [stamp(path) for path in (self.path, self._overrides) if path is not None]
            if self._models is None or stamps != self._stamps:
                everything = load_manifest(self.path, self._overrides)
                models = choose_models(everything, self._filters)
                for line in check_runs(models) if self._checks_runs else ():
                    self._warn_once(line)
                self._models = models
                self._all, self._stamps = everything, stamps
        except (UsageError, ResultError) as error:
            if self._models is None:
                raise
            self._warn_once(f"{error}; the manifest read before stays in use")
        return self._models

    def overlooked(self, uploader: Uploader) -> list[str]:
        """What in the results looks like a result and is not uploaded, one line each."""
        lines = uploader.overlooked(self._models or [])
        if not self._filters:
            listed = {spec.model_dir for spec in self._all}
            lines += lookalikes.outside(self.results_root, listed, self.path)
        return lines

    def warn_of_overlooked(self, uploader: Uploader) -> None:
        """Say of each, once, while the program goes on."""
        for line in self.overlooked(uploader):
            self._warn_once(line)

    def renew_receipt(self, uploader: Uploader, outcomes: Sequence[Outcome]) -> bool:
        """Write the receipt after a pass; whether that was possible. `receipt_problem` says why not."""
        try:
            self.write_receipt(uploader, outcomes)
        except StateError as error:
            self.receipt_problem = (
                f"{error}; `pack --incremental` elsewhere packs more than it must until then"
            )
            self._warn_once(self.receipt_problem)
            return False
        self.receipt_problem = None
        return True

    def write_receipt(self, uploader: Uploader, outcomes: Sequence[Outcome] = ()) -> None:
        """Write what the ledgers of all of the manifest's models say is confirmed.

        Args:
            uploader: Knows where they are.
            outcomes: Of a pass that has just ended; ledgers that it did not open are as they were.
        """
        files = {spec.model_dir: uploader.state_file(spec) for spec in self._all}
        new = {outcome.spec.model_dir: outcome.receipt for outcome in outcomes if outcome.receipt}
        same = {outcome.spec.model_dir for outcome in outcomes if not outcome.was_opened}
        is_known = uploader.knows_receipt(self.receipt)
        if is_known and self._in_receipt == files and len(same) == len(files):
            return
        before = read_parts(self.receipt) if is_known else {}
        parts = {}
        for spec in self._all:
            model = spec.model_dir
            if model in new:
                parts[model] = new[model]
            elif model in same and before.get(model, {}).get("run_id") == spec.run_id:
                parts[model] = before[model]
            elif (ledger := _readable(files[model])) is not None:
                parts[model] = part_of(ledger)
        write_parts(self.receipt, parts)
        self._in_receipt = files


def _readable(path: Path) -> Optional[Ledger]:
    try:
        return load(path, keep_corrupt=True)
    except StateError:
        return None  # its model's own outcome says so


def _uploader(flags: dict[str, Any], tracker: Optional[Tracker], mode: Optional[str]) -> Uploader:
    return Uploader(
        results_root=Path(os.path.abspath(flags["results_root"])),
        state_dir=Path(os.path.abspath(flags["state_dir"])),
        tracker=tracker,
        confirms=mode == "online",
        settle_seconds=flags["confirm_seconds"],
        workers=flags["workers"],
        moved=flags.get("moved", False),
    )


@contextlib.contextmanager
def _tracker(flags: dict[str, Any], mode: Optional[str]) -> Iterator[Optional[Tracker]]:
    tracker = open_tracker(flags, mode, Path(os.path.abspath(flags["state_dir"])) / "wandb.log")
    try:
        yield tracker
    finally:
        if tracker is not None:
            tracker.close()
