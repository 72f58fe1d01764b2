"""``eval-sidecar watch``: wires the flags to a sidecar, a delivery thread and a screen, and runs them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import click

from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.cli import show
from eval_sidecar.cli.flags import WatchFlags, takes
from eval_sidecar.cli.groups import GroupedCommand
from eval_sidecar.cli.launching import LOCAL, STOPPING, keeps_evaluator
from eval_sidecar.cli.planning import WatchPlan, plan_watch
from eval_sidecar.cli.reporting import choose_mode, open_tracker
from eval_sidecar.cli.results import results_table
from eval_sidecar.cli.running import RunningInstance, instance_of, manager_folder, registered, stopping
from eval_sidecar.cli.terminal import say
from eval_sidecar.cli.warming import warm_processes
from eval_sidecar.delivery.background import DeliveryThread
from eval_sidecar.diagnosis.startup import find_problems
from eval_sidecar.errors import LockedError, StateError
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.evaluation.loop import Waker, run_loop
from eval_sidecar.evaluation.sidecar import Sidecar
from eval_sidecar.installation import own_evaluation_script
from eval_sidecar.ledger import lookalikes
from eval_sidecar.ledger.ledger import ASKING, Ledger
from eval_sidecar.ledger.settings import key_of
from eval_sidecar.ledger.status import settings_line, unfinished, waiting
from eval_sidecar.ledger.store import LedgerStore, load, open_store
from eval_sidecar.manifest.model_places import place_of, second_model, settle_place
from eval_sidecar.paths import OWN_FOLDER, LedgerPaths, PinPaths, ResultPaths, StatePaths, TemporaryPaths
from eval_sidecar.report.facts import model_facts
from eval_sidecar.system.accounts import configured_key
from eval_sidecar.system.file_notifications import watch_folders
from eval_sidecar.system.locks import held_lock, private_folder
from eval_sidecar.trackers.wandb_checks import check_runs
from eval_sidecar.trackers.wandb_key import KeyAwaitingTracker

log = logging.getLogger(__name__)

#: How long a running session may continue after the program was asked to stop, in seconds.
_LAST_SESSION_SECONDS = 20.0
#: How long the first pass waits for what is found out about the machine, in seconds.
_CHECK_SECONDS = 2.0
#: Rotation may delete a checkpoint 150 ms after it was complete: it must be noticed before.
_COLLECT_SECONDS = 0.03


@click.command(cls=GroupedCommand)
@takes(WatchFlags)
def watch(flags: WatchFlags) -> int:
    """Evaluate the checkpoints of a training as they appear, and report them to W&B.

    With --once, the exit code is 0 if all is done, 75 if nothing failed and something still waits (the
    last lines say for what), and 1 if something failed or was not delivered.
    """
    plan = plan_watch(flags, manager_folder())
    if flags.once and not plan.config.model_dir.exists():
        say(f"eval-sidecar: --sft-root {plan.config.model_dir}: there is no such folder yet", err=True)
        return os.EX_TEMPFAIL
    reporting = choose_mode(flags.wandb_mode, flags.disable_wandb)
    show.set_up_logging()
    for line in check_runs([plan.spec]) if reporting.mode is not None else ():
        log.warning("%s", line)
    path = StatePaths(plan.state_dir).ledger(plan.spec.model_dir, plan.spec.run_id)
    wake, stop, finish = threading.Event(), threading.Event(), threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping(stop, wake, STOPPING[flags.launcher], finish))
        store = stack.enter_context(_opened(path, plan))
        stack.enter_context(_only_one(plan.config))
        settle_place(store, plan.config.model_dir, plan.config.results_root, moved=flags.moved)
        tracker = open_tracker(flags, reporting, LedgerPaths(path).client_log)
        if reporting.reason:
            log.warning("%s", reporting.reason)
        delivery = (
            DeliveryThread(store, tracker, plan.spec, flags.confirm_seconds, account=configured_key)
            if tracker
            else None
        )
        instance = stack.enter_context(registered(instance_of(flags), [str(path)], "watch", finish))
        settings = plan.config.settings.now()
        key = key_of(settings)
        store.update(
            lambda ledger: (
                ledger.with_settings(key, settings)
                .written_by({**_writer(flags), "settings": key})
                .with_reporting(reporting.in_words)
                .with_problem(None)
            )
        )
        if isinstance(tracker, KeyAwaitingTracker):
            tracker.on_online = lambda: store.update(lambda ledger: ledger.with_reporting(ASKING))
        log.info("%s", _greeting(plan.config.model_dir))
        for line in _ours_in_model_dir(plan):
            log.warning("%s", line)
        if flags.eval_script is None and plan.config.eval_script == own_evaluation_script():
            log.info("evaluating with %s, which comes with eval-sidecar", plan.config.eval_script)
        if (changed := settings_line(store.ledger, force=flags.force_eval)) is not None:
            log.warning("%s: %s", plan.config.model, changed)
        if keeps_evaluator(flags, plan.config.eval_script):
            plan = replace(plan, config=stack.enter_context(warm_processes(plan.config)))
        for line in () if flags.once else lookalikes.like_checkpoints(plan.config.model_dir):
            log.warning("%s", line)
        interrupted = _run(plan, store, delivery, instance, wake, stop, finish)
    mode = "online" if isinstance(tracker, KeyAwaitingTracker) and tracker.is_online else reporting.mode
    return _report(plan, store, mode, interrupted)


@contextlib.contextmanager
def _opened(path: Path, plan: WatchPlan) -> Iterator[LedgerStore]:
    """Hold the model's ledger; say so if another process holds it for another model."""
    spec = plan.spec
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(open_store(path, spec.model_dir, spec.run_id, spec.run_name))
        except LockedError:
            place, holder = place_of(plan.config.model_dir), _load(path)
            if holder is not None and holder.places and not place.is_same(holder.places[0]):
                raise LockedError(second_model(spec.model_dir, holder.places[0], place)) from None
            raise
        yield store


def _load(path: Path) -> Optional[Ledger]:
    try:
        return load(path, keep_corrupt=True)
    except StateError:
        return None


def _greeting(model_dir: Path) -> str:
    if not model_dir.is_dir():
        return f"waiting for {model_dir}, which does not exist yet (the training must create it)"
    found = len(list_checkpoints(model_dir))
    if not found:
        return f"watching {model_dir}: no folder named checkpoint-<number> in it yet"
    return f"watching {model_dir}: {found} checkpoint{'s' if found > 1 else ''}"


def _ours_in_model_dir(plan: WatchPlan) -> list[str]:
    """Return a warning for each folder of ours that the user has put into the training's output folder."""
    places = (
        (plan.config.results_root, "give another --repo-root"),
        (plan.state_dir, "give another --state-dir"),
        (plan.config.log_dir, "start from another folder, or set MANAGER_DIR"),
    )
    model_dir = os.path.realpath(plan.config.model_dir)
    return [
        f"{path}: is in the training's output folder, so a push to the Hub would include it, and the next"
        f" start of the training may find its folder not empty; {advice}"
        for path, advice in places
        if os.path.commonpath([model_dir, os.path.realpath(path)]) == model_dir
    ]


def _run(
    plan: WatchPlan,
    store: LedgerStore,
    delivery: Optional[DeliveryThread],
    instance: RunningInstance,
    wake: threading.Event,
    stop: threading.Event,
    finish: threading.Event,
) -> bool:
    """Run the sidecar; return whether a signal ended it."""
    once = plan.flags.once
    sidecar = Sidecar(plan.config, store, plan.launcher)
    request = LedgerPaths(store.path).retry_request
    check = _MachineCheck(plan, store)

    def after_pass() -> None:
        check.tell()
        if delivery is not None:
            delivery.notify()
        instance.after_pass([str(store.path)])

    with contextlib.ExitStack() as stack:
        stack.enter_context(show.progress(store))
        if not once:
            waker = Waker(sidecar.pins, plan.config.model_dir, request, wake)
            folders = [plan.config.model_dir, store.path.parent]
            stack.enter_context(
                watch_folders(folders, waker, collect_seconds=_COLLECT_SECONDS, is_regular=True)
            )
        if delivery is not None:
            delivery.start()
        try:
            run_loop(
                sidecar,
                after_pass,
                once=once,
                poll_seconds=plan.flags.poll_interval_seconds,
                retry_request=request,
                wake=wake,
                stop=stop,
                finish=finish,
            )
            if delivery is not None and (once or finish.is_set()):
                delivery.deliver_rest(stop)
        except BaseException:
            # A second signal, or a ledger that cannot be saved: leave no process behind.
            with contextlib.suppress(StateError):
                sidecar.leave()
            raise
        finally:
            if delivery is not None:
                delivery.close(_LAST_SESSION_SECONDS)
    return stop.is_set()


class _MachineCheck:
    """Looks beside the first pass, which pins checkpoints, for what evaluations on this machine will lack."""

    def __init__(self, plan: WatchPlan, store: LedgerStore) -> None:
        self._plan = plan
        self._store = store
        self._found: list[str] = []
        self._patience = _CHECK_SECONDS
        self._thread: Optional[threading.Thread] = None
        if plan.flags.launcher == LOCAL:
            self._thread = threading.Thread(target=self._look, name="machine check", daemon=True)
            self._thread.start()

    def tell(self) -> None:
        """Say and keep what was found, once; only the first call waits for it."""
        if self._thread is None:
            return
        self._thread.join(self._patience)
        self._patience = 0.0
        if self._thread.is_alive():
            return
        self._thread = None
        for line in self._found:
            log.warning("%s", line)
        if self._found:
            self._store.update(lambda ledger: ledger.warned(self._found))

    def _look(self) -> None:
        config = self._plan.config
        self._found = find_problems(
            self._plan.flags.cuda_list, config.eval_script, config.environment, config.repo_root
        )


def _report(plan: WatchPlan, store: LedgerStore, mode: Optional[str], interrupted: bool) -> int:
    ledger = store.ledger
    results_table(model_facts(ledger, store.path, time.time()), only_results=True)
    show.places(ledger, plan.config.results_root / ledger.model_dir, store.path, plan.config.log_dir, mode)
    left = unfinished(ledger, expects_delivery=mode is not None, expects_confirmation=mode == "online")
    left += lookalikes.in_model(plan.config.results_root / ledger.model_dir)
    left += lookalikes.like_checkpoints(plan.config.model_dir)
    waits = waiting(ledger)
    if not ledger.steps() and not left:
        waits = [f"{plan.config.model_dir}: no checkpoint is in it yet"]
    show.waiting(waits)
    show.problems(left)
    if not plan.flags.once:
        return 0
    if interrupted:
        return 130
    return 1 if left else os.EX_TEMPFAIL if waits else 0


def _writer(flags: WatchFlags) -> dict[str, Any]:
    command = f"instance {flags.instance}" if flags.instance else "eval-sidecar watch"
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command}


@contextlib.contextmanager
def _only_one(config: WatchConfig) -> Iterator[None]:
    """Keep a second sidecar off this model dir, by any path, and off this model's results."""
    model_dir, results = config.model_dir, config.results_root
    busy = (
        f"{model_dir}: another sidecar already watches this folder (with another --state-dir or run);"
        " two would evaluate everything twice"
    )
    of_results = ResultPaths(results).lock(config.model)
    results_busy = (
        f"{results / config.model}: another sidecar already writes its results there (of another folder"
        " of this name?); give one of them a name of its own with --model-name"
    )
    beside = PinPaths.beside(Path(os.path.realpath(model_dir))).lock(model_dir)
    old = model_dir / OWN_FOLDER / "lock"
    with contextlib.ExitStack() as stack:
        if old.parent.is_dir():  # a sidecar of an earlier version may be running
            try:
                stack.enter_context(held_lock(old, busy))
            except LockedError:
                raise
            except StateError as error:
                log.warning("%s: a sidecar of an earlier version is not kept off", error)
        try:
            if not beside.parent.parent.is_dir():
                raise StateError(f"{beside.parent.parent}: does not exist yet")
            stack.enter_context(held_lock(beside, busy))
        except LockedError:
            raise
        except StateError as error:
            log.warning("%s: a second sidecar of another user or machine is not kept off", error)
            private_folder(TemporaryPaths().private)
            stack.enter_context(held_lock(TemporaryPaths().watch_lock(model_dir), busy))
        try:
            stack.enter_context(held_lock(of_results, results_busy))
        except LockedError:
            raise
        except StateError as error:
            log.warning("%s: a second sidecar is not kept off these results", error)
        yield
