"""What long-running commands share: their instance, and how they are asked to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import click

from eval_sidecar.cli.flags import RunFlags
from eval_sidecar.cli.restarting import start_of
from eval_sidecar.system.instances import FINISH, Instance, register, unregister
from eval_sidecar.system.logs import WarnOnce, rotate_output

log = logging.getLogger(__name__)


def manager_folder() -> Path:
    """Return ``MANAGER_DIR``, where instances have their logs and pid files."""
    return Path(os.path.abspath(os.environ.get("MANAGER_DIR") or "log/eval_sidecar"))


def instance_of(flags: RunFlags) -> Optional[Instance]:
    """Return the instance that a command runs as; None for a command that ends on its own."""
    return Instance(flags.instance, manager_folder()) if flags.instance and not flags.once else None


class RunningInstance:
    """This process as an instance; without a name for it, nothing is written."""

    def __init__(self, instance: Optional[Instance], job: str, finish: threading.Event) -> None:
        self._instance = instance
        self._known = {"job": job, "can_finish": True, **start_of(click.get_current_context())}
        self._finish = finish
        self._recorded: Optional[dict[str, Any]] = None
        self._warn_once = WarnOnce()

    def record(self, state_files: list[str], *, ready: bool) -> None:
        """Write down what it works on, if that has changed."""
        if self._instance is None:
            return
        record = {"state_files": state_files, "ready": ready, "finishing": self._finish.is_set()}
        if record != self._recorded:
            register(self._instance, **self._known, **record)
            self._recorded = record

    def after_pass(self, state_files: list[str]) -> None:
        """Record that a pass is done and which ledgers it was about, and rotate the log if it is full."""
        if self._instance is None:
            return
        self.record(state_files, ready=True)
        try:
            rotate_output(self._instance.log_file)
        except OSError as error:
            self._warn_once(f"{error.filename}: cannot be renamed ({error.strerror}), so it keeps growing")


@contextlib.contextmanager
def registered(
    instance: Optional[Instance], state_files: list[str], job: str, finish: threading.Event
) -> Iterator[RunningInstance]:
    """Be the instance for the length of a ``with`` block, not ready yet."""
    running = RunningInstance(instance, job, finish)
    running.record(state_files, ready=False)
    try:
        yield running
    finally:
        if instance is not None:
            unregister(instance)


@contextlib.contextmanager
def stopping(
    stop: threading.Event, wake: threading.Event, saying: str, finish: threading.Event
) -> Iterator[None]:
    """Turn the first signal into a request to stop, and say so; a second one interrupts at once.

    The signal of ``stop --after-current`` sets `finish` instead, and is not counted.
    """
    received: queue.SimpleQueue[Optional[int]] = queue.SimpleQueue()

    def ask(number: int, _frame: object) -> None:
        # A handler interrupts any code: events and logs may be locked then, this queue never is.
        received.put(number)
        for other in previous if number != FINISH else ():
            if other != FINISH:
                signal.signal(other, signal.default_int_handler)

    def pass_on() -> None:
        while (number := received.get()) is not None:
            is_end = number != FINISH
            words = saying if is_end else "ending when the running evaluations have; nothing new is started"
            log.info("%s: %s", signal.Signals(number).name, words)
            (stop if is_end else finish).set()
            wake.set()

    # A hang-up or Ctrl-C that was turned off (nohup, a script's background job) stays so.
    previous = {
        number: signal.signal(number, ask)
        for number in (signal.SIGTERM, FINISH, signal.SIGINT, signal.SIGHUP)
        if number in (signal.SIGTERM, FINISH) or signal.getsignal(number) is not signal.SIG_IGN
    }
    threading.Thread(target=pass_on, name="signals", daemon=True).start()
    try:
        yield
    finally:
        received.put(None)
        for number, handler in previous.items():
            signal.signal(number, handler)
