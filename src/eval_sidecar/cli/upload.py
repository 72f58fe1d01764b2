"""``upload``, ``verify`` and ``receipt``: deliver results that were evaluated elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import click

from eval_sidecar.cli import show
from eval_sidecar.cli.flags import UPLOAD_STATE, RunFlags, TrackerFlags, flag, message_of, takes
from eval_sidecar.cli.groups import GroupedCommand
from eval_sidecar.cli.reporting import Reporting, choose_mode, open_tracker
from eval_sidecar.cli.running import instance_of, registered, stopping
from eval_sidecar.cli.terminal import say
from eval_sidecar.cli.upload_report import print_news, print_pass, problem_lines
from eval_sidecar.delivery.receipt_writer import ReceiptWriter
from eval_sidecar.delivery.reconcile import Comparison
from eval_sidecar.delivery.source import Source
from eval_sidecar.delivery.uploading import ModelUpload, Uploader
from eval_sidecar.errors import SidecarError, UsageError
from eval_sidecar.paths import MANIFEST, RECEIPT, ResultPaths, StatePaths
from eval_sidecar.system.accounts import configured_key
from eval_sidecar.system.file_notifications import watch_folders
from eval_sidecar.system.loop import run_passes
from eval_sidecar.trackers.base import Tracker
from eval_sidecar.trackers.wandb_checks import check_runs
from eval_sidecar.types import ModelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _SourceFlags:
    """Which results of which models, and where their ledgers are."""

    GROUP = "What to upload"

    results_root: str = flag("./results", "Folder that holds a folder of results for each model.")
    manifest_path: Optional[str] = flag(
        help=f"Which models there are, as `prepare-manifest` writes it.  [default: RESULTS_ROOT/{MANIFEST}]"
    )
    manifest_overrides: Optional[str] = flag(
        help="Overrides on top of the manifest, as for prepare-manifest."
    )
    state_dir: str = flag(UPLOAD_STATE, "Where the ledgers are.", group="Files")
    model_filter: tuple[str, ...] = flag(
        (), "Only these models; repeat it, or separate names by commas.", multiple=True
    )

    @property
    def results(self) -> Path:
        return Path(os.path.abspath(self.results_root))

    @property
    def ledgers(self) -> Path:
        return Path(os.path.abspath(self.state_dir))


@dataclass(frozen=True)
class _ReceiptFlags(_SourceFlags):
    output: Optional[str] = flag(help=f"Where to write it.  [default: RESULTS_ROOT/{RECEIPT}]")


@dataclass(frozen=True)
class _DeliveryFlags(TrackerFlags, _SourceFlags):
    workers: int = flag(8, "Models at a time.", type=click.IntRange(min=1))


@dataclass(frozen=True)
class _UploadFlags(RunFlags, _DeliveryFlags):
    pass


@dataclass(frozen=True)
class _VerifyFlags(_DeliveryFlags):
    repair: bool = flag(False, "Send what the server lacks, or has with other numbers.", is_flag=True)


@click.command(cls=GroupedCommand)
@takes(_UploadFlags)
def upload(flags: _UploadFlags) -> int:
    """Upload the results of a manifest's models: what is new or has changed, each point once.

    With --once, the exit code is 0 only if every result was taken and every point is confirmed; the last
    lines say what is not.
    """
    reporting = choose_mode(flags.wandb_mode, flags.disable_wandb, "online")
    show.set_up_logging()
    source = _source(flags, checks_runs=reporting.mode is not None)
    source.load()
    if reporting.reason:
        log.warning("%s", reporting.reason)
    wake, stop, finish = threading.Event(), threading.Event(), threading.Event()
    with contextlib.ExitStack() as stack:
        tracker = stack.enter_context(_tracker(flags, reporting))
        uploader = _uploader(flags, tracker, reporting.mode, moved=flags.moved)
        receipt = ReceiptWriter(ResultPaths(flags.results).receipt)
        passes = _Passes(source, uploader, receipt, stop, once=flags.once)
        stack.enter_context(stopping(stop, wake, "ending; the next upload goes on from here", finish))
        instance = stack.enter_context(registered(instance_of(flags), [], "upload", finish))

        def on_change(changed: Collection[Path]) -> None:
            foreign = [path for path in changed if RECEIPT not in path.name]
            for path in foreign:
                uploader.notice(path)
            if foreign or not changed:
                wake.set()

        if not flags.once:
            stack.enter_context(watch_folders([flags.results], on_change))

        account = [configured_key()]

        def do_pass() -> Optional[float]:
            if tracker is not None and (key := configured_key()) != account[0]:
                account[0] = key
                tracker.close()  # its client has the key from its start
            passes.upload()
            instance.after_pass([str(uploader.state_file(done.spec)) for done in passes.uploads])
            if flags.once or stop.is_set() or finish.is_set():
                return None
            if tracker is not None and passes.is_idle:
                tracker.close()  # its client takes most of the memory
            return flags.poll_interval_seconds

        run_passes(do_pass, wake=wake, stop=stop)
    left = passes.left()
    show.problems(left)
    if flags.once and stop.is_set() and not passes.uploads:
        return 130
    return 1 if left and flags.once else 0


class _Passes:
    """Passes of an upload, and what each prints.

    Attributes:
        uploads: What became of each model in the last one.
    """

    def __init__(
        self, source: Source, uploader: Uploader, receipt: ReceiptWriter, stop: threading.Event, *, once: bool
    ) -> None:
        self.uploads: list[ModelUpload] = []
        self._source = source
        self._uploader = uploader
        self._receipt = receipt
        self._stop = stop
        self._once = once

    def upload(self) -> None:
        """Upload once, and print a line for each model; after the first pass only for those with news."""
        models = self._source.load()
        before = set(problem_lines(self.uploads))
        with show.counting("uploading", len(models)) as advance:
            uploads = self._uploader.run_pass(models, self._stop, lambda done: advance(done.spec.model_dir))
        if self._once:
            print_pass(uploads)
        else:
            print_news(done for done in uploads if done.is_news)
            show.problems([line for line in problem_lines(uploads) if line not in before])
            if self._uploader.looks_closely:
                self._source.warn_of_overlooked(self._uploader)
        self.uploads = uploads
        self._uploader.remember(self._receipt.renew(self._source.all_models, self._uploader, uploads))

    @property
    def is_idle(self) -> bool:
        """Whether the last pass found nothing to send."""
        return not any(done.report.sent or done.left for done in self.uploads)

    def left(self) -> list[str]:
        """Return what is not done, one line each."""
        left = problem_lines(self.uploads)
        left += self._source.overlooked(self._uploader) if self._once else []
        return left + ([self._receipt.problem] if self._receipt.problem else [])


@click.command()
@takes(_VerifyFlags)
def verify(flags: _VerifyFlags) -> int:
    """Compare ledgers and server, point by point. Exit code 1 if anything differs."""
    reporting = choose_mode(flags.wandb_mode, False, "online")
    if reporting.mode != "online":
        why = reporting.reason or f"--wandb-mode (or WANDB_MODE) is {flags.wandb_mode}"
        raise UsageError(f"{why}; only a server can be verified against: add --wandb-mode online")
    show.set_up_logging()
    source = _source(flags, checks_runs=True)
    models = source.load()
    with _tracker(flags, reporting) as tracker:
        uploader = _uploader(flags, tracker, reporting.mode)
        before = [_verified(uploader, spec) for spec in models]
        differing = [spec for spec, agrees in zip(models, before) if not agrees]
        if flags.repair and differing:
            repaired = uploader.repair(differing, threading.Event())
            print_news(repaired)
            show.problems(problem_lines(repaired))
            differing = [spec for spec in differing if not _verified(uploader, spec)]
        overlooked = source.overlooked(uploader)
        show.problems(overlooked)
    return 1 if differing or overlooked else 0


def _verified(uploader: Uploader, spec: ModelSpec) -> bool:
    """Print the comparison of one model; return whether ledger and server agree."""
    try:
        found = uploader.verify(spec)
    except SidecarError as error:
        say(f"{spec.model_dir}: {message_of(error)}", fg="red")
        return False
    say(f"{spec.model_dir}: {_in_words(found)}", fg=None if found.agrees else "red")
    return found.agrees


def _in_words(found: Comparison) -> str:
    parts = [f"{len(found.confirmed)} confirmed"]
    for steps, words in (
        (found.missing, "missing on the server"),
        (found.unknown, "on the server only"),
        (found.different, "with different values"),
        (found.doubled, "on the server more than once"),
    ):
        parts += [f"{len(steps)} {words}: {', '.join(map(str, steps))}"] if steps else []
    parts += ["the table lacks some of them"] if found.old_table else []
    return "; ".join(parts)


@click.command()
@takes(_ReceiptFlags)
def receipt(flags: _ReceiptFlags) -> int:
    """Write the receipt of what is confirmed, for `pack --incremental` on the training machine."""
    source = _source(flags)
    models = source.load()
    writer = ReceiptWriter(Path(flags.output) if flags.output else ResultPaths(flags.results).receipt)
    writer.write(source.all_models, Uploader(flags.results, flags.ledgers, None, confirms=False))
    say(f"{len(models)} models in {writer.path}")
    return 0


def _source(flags: _SourceFlags, *, checks_runs: bool = False) -> Source:
    watching = "to watch a training instead, give its folder as --sft-root"
    if not flags.results.is_dir():
        raise UsageError(
            f"--results-root {flags.results}: there is no such folder; uploading needs results and their"
            f" manifest ({watching})"
        )
    if flags.manifest_path is None and not ResultPaths(flags.results).manifest.exists():
        raise UsageError(
            f"{ResultPaths(flags.results).manifest}: there is no such file; to upload these results, run"
            f" `eval-sidecar prepare-manifest` first ({watching})"
        )
    return Source(
        Path(flags.manifest_path) if flags.manifest_path else ResultPaths(flags.results).manifest,
        Path(flags.manifest_overrides) if flags.manifest_overrides else None,
        flags.model_filter,
        check_runs if checks_runs else lambda models: (),
    )


def _uploader(
    flags: _DeliveryFlags, tracker: Optional[Tracker], mode: Optional[str], *, moved: bool = False
) -> Uploader:
    return Uploader(
        results_root=flags.results,
        state_dir=flags.ledgers,
        tracker=tracker,
        confirms=mode == "online",
        settle_seconds=flags.confirm_seconds,
        workers=flags.workers,
        moved=moved,
    )


@contextlib.contextmanager
def _tracker(flags: _DeliveryFlags, reporting: Reporting) -> Iterator[Optional[Tracker]]:
    tracker = open_tracker(flags, reporting, StatePaths(flags.ledgers).client_log)
    try:
        yield tracker
    finally:
        if tracker is not None:
            tracker.close()
