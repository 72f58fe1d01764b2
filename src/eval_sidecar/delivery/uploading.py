"""Uploads results that were evaluated elsewhere: the models of a manifest, in parallel.

It takes results into each model's ledger; `eval_sidecar.delivery.delivery` delivers them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from eval_sidecar.delivery.delivery import Report, deliver
from eval_sidecar.delivery.pass_tracker import PassTracker
from eval_sidecar.delivery.reconcile import Comparison, compare, mark_for_repair
from eval_sidecar.delivery.unchanged import UnchangedModels
from eval_sidecar.errors import ResultError, SidecarError
from eval_sidecar.ledger import lookalikes
from eval_sidecar.ledger.intake import is_news, take_in
from eval_sidecar.ledger.ledger import Entry
from eval_sidecar.ledger.provenance import read_provenance
from eval_sidecar.ledger.results import left_out_of
from eval_sidecar.ledger.stamps import list_stamps
from eval_sidecar.ledger.status import unfinished
from eval_sidecar.ledger.store import LedgerStore, open_store
from eval_sidecar.manifest.model_places import admit
from eval_sidecar.manifest.receipt import part_of
from eval_sidecar.paths import METRICS, StatePaths
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.trackers.base import Tracker
from eval_sidecar.types import UNKNOWN, ModelSpec, Origin, Stamp, now_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelUpload:
    """What became of one model in a pass.

    Attributes:
        spec: The model and its run.
        report: What was delivered.
        left: What should have been done and is not, one line each.
        taken: Results that were new or had changed.
        was_opened: Whether its ledger was opened; False if nothing has changed.
        receipt: What the receipt will say of the model; None if its ledger was not opened.
    """

    spec: ModelSpec
    report: Report
    left: tuple[str, ...] = ()
    taken: int = 0
    was_opened: bool = True
    receipt: Optional[Mapping[str, Any]] = None

    @property
    def is_news(self) -> bool:
        """Whether anything was taken, sent or confirmed."""
        report = self.report
        return bool(self.taken or report.sent or report.confirmed or report.already or report.sent_table)


@dataclass(frozen=True)
class Uploader:
    """Uploads models, pass by pass.

    Attributes:
        results_root: Where the results are.
        state_dir: Where the ledgers are.
        tracker: Where points go, or None to only take results into the ledgers.
        confirms: Whether the tracker can be read back.
        settle_seconds: How long a server may take to show a row that it has.
        workers: Models at a time.
        moved: Whether the user says that results with the same name are of one training.
    """

    results_root: Path
    state_dir: Path
    tracker: Optional[Tracker]
    confirms: bool
    settle_seconds: float = 60.0
    workers: int = 8
    moved: bool = False

    def state_file(self, spec: ModelSpec) -> Path:
        """Return the path of a model's ledger."""
        return StatePaths(self.state_dir).ledger(spec.model_dir, spec.run_id)

    def run_pass(
        self,
        models: Sequence[ModelSpec],
        stop: threading.Event,
        on_done: Callable[[ModelUpload], None] = lambda done: None,
    ) -> list[ModelUpload]:
        """Deliver what is new or changed of every model; one model's failure does not stop the others.

        Returns:
            What became of each model, in the order of the models.
        """
        self._unchanged.begin_pass()
        done = {spec.model_dir: upload for spec in models if (upload := self._nothing_to_do(spec))}
        for upload in done.values():
            on_done(upload)
        rest = [spec for spec in models if spec.model_dir not in done]
        tracker = PassTracker(self.tracker) if self.tracker is not None else None
        opened = self._for_each(rest, lambda spec: self._deliver(spec, tracker, stop), on_done)
        done.update({upload.spec.model_dir: upload for upload in opened})
        return [done[spec.model_dir] for spec in models]

    @property
    def looks_closely(self) -> bool:
        """Whether the last pass looked at every result."""
        return self._unchanged.is_close

    def overlooked(self, models: Sequence[ModelSpec]) -> list[str]:
        """Return what looks like a result of these models and is not taken, one line each."""
        lines = []
        for spec in models:
            folder = self.results_root / spec.model_dir
            # A folder that cannot be listed is reported when its model is opened.
            with contextlib.suppress(SidecarError):
                lines += lookalikes.in_model(folder, self._unchanged.waiting(self.state_file(spec), folder))
        return lines

    def notice(self, path: Path) -> None:
        """Look closely at the model of this path in the next pass: it has changed."""
        for model in path.relative_to(self.results_root).parts[:1]:
            self._unchanged.touch(model)

    def knows_receipt(self, path: Path) -> bool:
        """Return whether a receipt is as `remember` found it, in this process or an earlier one."""
        return self._unchanged.knows_receipt(path)

    def remember(self, receipt: Optional[Path]) -> None:
        """Save for the next process which models had nothing to do, and the receipt if there is one."""
        self._unchanged.save(receipt)

    @functools.cached_property
    def _unchanged(self) -> UnchangedModels:
        return UnchangedModels(StatePaths(self.state_dir).unchanged)

    @functools.cached_property
    def _warn_once(self) -> WarnOnce:
        return WarnOnce()

    def _nothing_to_do(self, spec: ModelSpec) -> Optional[ModelUpload]:
        """Return the outcome for an unchanged model with nothing to do; None if it must be opened."""
        standing = self._unchanged.unchanged(self.state_file(spec), self.results_root / spec.model_dir)
        if standing is None:
            return None
        if self.tracker is None:
            return ModelUpload(spec, Report(where=standing.where), was_opened=False)
        if standing.undelivered or (self.confirms and (standing.unconfirmed or standing.table_due)):
            return None
        report = Report(unconfirmed=standing.unconfirmed, where=standing.where)
        return ModelUpload(spec, report, was_opened=False)

    def _for_each(
        self,
        models: Sequence[ModelSpec],
        work: Callable[[ModelSpec], ModelUpload],
        on_done: Callable[[ModelUpload], None],
    ) -> list[ModelUpload]:
        # Each saved ledger waits for the disk twice: in parallel, that is faster even without a server.
        workers = max(1, min(self.workers, len(models)))
        done: dict[str, ModelUpload] = {}
        with ThreadPoolExecutor(max_workers=workers) as pool:
            for future in as_completed([pool.submit(_guarded, work, spec) for spec in models]):
                upload = future.result()
                done[upload.spec.model_dir] = upload
                on_done(upload)
        return [done[spec.model_dir] for spec in models]

    def _deliver(self, spec: ModelSpec, tracker: Optional[Tracker], stop: threading.Event) -> ModelUpload:
        look, stamps = self._unchanged.look(self.results_root / spec.model_dir)
        with self._open(spec) as store:
            taken, foreign = self._take_results(store, stamps)
            report = Report(where=store.ledger.where)
            if tracker is not None and not stop.is_set():
                report = deliver(store, tracker, spec, settle_seconds=self.settle_seconds, pause=stop.wait)
            left = (*foreign, *self._left(store))
            if not left:
                self._unchanged.remember(store.path, look, store.ledger)
            saved = store.path.exists()  # a model without results has no ledger yet
            return ModelUpload(spec, report, left, taken, receipt=part_of(store.ledger) if saved else None)

    def _take_results(
        self, store: LedgerStore, stamps: Mapping[int, Optional[Stamp]]
    ) -> tuple[int, tuple[str, ...]]:
        """Take every result that is new or has changed into the ledger of its model.

        A result that cannot be read becomes a failure, until it can be read or is gone; what was known before
        is kept.

        Returns:
            How many are new, and the reason why some were not taken (they are of another model).
        """
        model = store.ledger.model_dir
        # A failure with a log is an evaluation's, and the uploader does not clear it.
        unread = [
            entry.step for entry in store.ledger.steps() if entry.failure and entry.failure.is_unread_result
        ]
        gone = [step for step in unread if stamps.get(step) is None]
        changed, taken = [], 0
        news_of = [step for step, found in stamps.items() if is_news(store.ledger.entry(step), found)]
        # A Path would cost as much as reading the file.
        paths = {step: f"{self.results_root}/{model}/checkpoint-{step}/{METRICS}" for step in news_of}
        written = {step: one for step, path in paths.items() if (one := read_provenance(path)) is not None}
        admission = admit(store.ledger, written, moved=self.moved)
        for step, path in paths.items():
            if step in admission.foreign:
                continue
            entry = store.ledger.entry(step)
            origin = written[step].origin if step in written else UNKNOWN
            news = self._take_one(model, entry, path, origin)
            if news is not entry:
                changed.append(news)
                taken += news.due() is not None and not (news.result and entry.has_numbers_of(news.result))
        known = admission.ledger
        for one in written.values():
            known = known.with_settings(one.origin.settings, one.settings)
        moved = self.moved
        store.update(lambda ledger: ledger.taking(changed, known, unread=gone).with_moved(moved))
        return taken, (admission.reason,) if admission.reason else ()

    def _take_one(self, model: str, entry: Entry, path: str, origin: Origin) -> Entry:
        try:
            intake = take_in(entry, path, lambda _result: origin)
        except ResultError as error:
            failed = entry.unreadable(str(error), now_text())
            if failed is not entry:
                log.error("%s %s: %s", model, entry.name, error)
            return failed
        if intake is None:
            return entry
        if said := left_out_of(model, entry.name, intake.result):
            self._warn_once(said)
        return entry.evaluated(intake.result, intake.origin)

    def _left(self, store: LedgerStore) -> tuple[str, ...]:
        expected = self.tracker is not None
        confirms = expected and self.confirms
        return tuple(unfinished(store.ledger, expects_delivery=expected, expects_confirmation=confirms))

    def _open(self, spec: ModelSpec) -> AbstractContextManager[LedgerStore]:
        return open_store(self.state_file(spec), spec.model_dir, spec.run_id, spec.run_name)

    # -- verify -------------------------------------------------------------------------------------

    def verify(self, spec: ModelSpec) -> Comparison:
        """Compare one model's ledger with the server, point by point.

        Raises:
            TrackerError: if the server cannot be read.
            StateError: if the ledger cannot be read.
        """
        assert self.tracker is not None
        with self._open(spec) as store:
            _, foreign = self._take_results(store, list_stamps(self.results_root / spec.model_dir))
            if foreign:
                raise ResultError(foreign[0])
            return compare(store.ledger, self.tracker.read(spec))

    def repair(self, models: Sequence[ModelSpec], stop: threading.Event) -> list[ModelUpload]:
        """Send what the server lacks, or has with other numbers."""

        def work(spec: ModelSpec) -> ModelUpload:
            assert self.tracker is not None
            with self._open(spec) as store:
                view = self.tracker.read(spec)
                store.update(lambda ledger: mark_for_repair(ledger, view))
                report = deliver(
                    store, self.tracker, spec, settle_seconds=self.settle_seconds, pause=stop.wait
                )
                return ModelUpload(spec, report, self._left(store))

        return self._for_each(models, work, lambda done: None)


def _guarded(work: Callable[[ModelSpec], ModelUpload], spec: ModelSpec) -> ModelUpload:
    try:
        return work(spec)
    except SidecarError as error:
        return ModelUpload(spec, Report(problem=str(error)), (str(error),))
    except Exception as error:  # a bug must not stop the other models
        log.exception("%s: unexpected error", spec.model_dir)
        text = f"{type(error).__name__}: {error}"
        return ModelUpload(spec, Report(problem=text), (text,))
