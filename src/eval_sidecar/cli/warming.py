"""The processes that evaluations leave to the next one (``--warm``): their folder, and their end."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from eval_sidecar.errors import StateError
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.system.locks import held_lock
from eval_sidecar.system.process import wait_for_end

log = logging.getLogger(__name__)

#: Limit for a socket's path: 104 bytes on macOS, 108 on Linux, minus what is added to the folder.
_LONGEST_FOLDER = 60
#: How long to wait for the processes to end, in seconds; they need milliseconds.
_LAST_LOOK = 5.0


@contextlib.contextmanager
def warm_processes(config: WatchConfig) -> Iterator[WatchConfig]:
    """Let one evaluation leave its process to the next; the last one ends with the ``with`` block.

    The evaluator finds its processes in a folder; a lock in it tells them that this program is alive. If the
    folder cannot be made, each evaluation has a process of its own.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(_temporary_folder()))
            owned = held_lock(folder / "lock", f"{folder}: another process uses this folder")
            lock = stack.enter_context(contextlib.ExitStack())
            lock.enter_context(owned)
        except (OSError, StateError) as error:
            log.warning("no evaluator is kept between checkpoints (%s): each evaluation starts one", error)
            yield config
            return
        stack.callback(_end, folder, lock)
        yield replace(config, environment={**config.environment, "EVAL_SIDECAR_WARM": str(folder)})


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    usual = tempfile.gettempdir()
    place = usual if len(usual.encode()) <= _LONGEST_FOLDER else "/tmp"
    return tempfile.TemporaryDirectory(prefix="eval-sidecar-", dir=place)


def _end(folder: Path, lock: contextlib.ExitStack) -> None:
    """Release the processes and wait for their end, so that their GPUs are free afterwards."""
    left = []
    for path in folder.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            left.append(psutil.Process(int(path.read_text())))
    lock.close()
    if not wait_for_end(left, _LAST_LOOK):
        pids = ", ".join(str(process.pid) for process in left)
        log.warning("the evaluator does not end (pid %s); it ends after the running evaluation", pids)
