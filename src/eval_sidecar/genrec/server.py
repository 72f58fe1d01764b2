"""A warm process: runs one evaluation after the other for :mod:`.warm`, with the same libraries and caches.

``start.py eval_sidecar.genrec.server SOCKET FOLDER KEY``, where SOCKET is the number of an inherited socket
that is listened on. A request is a JSON line ``{"key": …, "words": […]}``, and with it the two files to print
to. The answers are ``{"pid": n}`` when it is accepted and ``{"code": n}`` at its end.

It ends when its owner has ended; at once when a client goes away in the middle of an evaluation; after an
evaluation that failed, as that may have left something behind; when a file that it has imported has
changed; and when there was no evaluation for a while, because a GPU's context takes memory that the training
may need.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

from eval_sidecar.genrec.channel import Channel
from eval_sidecar.genrec.cli import log_to_stderr, parse, run
from eval_sidecar.genrec.loaded import LoadedFiles
from eval_sidecar.genrec.session import Session
from eval_sidecar.genrec.streams import print_nowhere, print_to

#: File that the owner keeps locked as long as it runs; the system then unlocks it.
OWNER_LOCK = "lock"


#: Seconds without an evaluation after which a process ends. A new one needs seconds for its imports.
IDLE_SECONDS = 600.0


def main() -> None:
    """Serve evaluations until there is a reason to stop."""
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])


def serve(listener: socket.socket, folder: Path, key: str, idle_seconds: float = IDLE_SECONDS) -> None:
    """Serve evaluations until there is a reason to stop; then end this process.

    Args:
        listener: Where requests come from.
        folder: The folder with the owner's lock.
        key: The key that a request must have; others are for another process.
        idle_seconds: How long to wait for a request.
    """
    log_to_stderr()
    session, loaded = Session(), LoadedFiles()
    working = threading.Lock()
    threading.Thread(target=_leave_with_owner, args=(folder, working), daemon=True).start()
    listener.settimeout(idle_seconds)
    usable = True
    while usable:
        try:
            connection, _ = listener.accept()
        except socket.timeout:
            break
        with working, connection:
            usable = _serve(Channel(connection), key, session, loaded)
    _leave()


def _serve(channel: Channel, key: str, session: Session, loaded: LoadedFiles) -> bool:
    """Do one evaluation; return whether the next may be done in this process too."""
    request = channel.receive()
    if request is None:
        return True
    if request["key"] != key or loaded.find_changed():
        return False
    print_to(*channel.files)
    try:
        channel.send({"pid": os.getpid()})
    except ConnectionError:  # the client went away while it waited
        print_nowhere()
        return True
    finished = threading.Event()
    watcher = channel.watch(lambda: None if finished.is_set() else _leave())
    try:
        code = run(parse(request["words"]), session)
    except Exception:  # noqa: BLE001  (as at the end of a cold process)
        traceback.print_exc()
        code = 1
    finished.set()
    print_nowhere()
    channel.send({"code": code})
    channel.shutdown()
    watcher.join()
    loaded.note()
    return code == 0


def _leave_with_owner(folder: Path, working: threading.Lock) -> None:
    """Leave when the owner has ended and the current evaluation, whose client waits for it, is done."""
    # If the folder is gone, so is the owner.
    with contextlib.suppress(OSError), (folder / OWNER_LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    working.acquire()
    shutil.rmtree(folder, ignore_errors=True)
    _leave()


def _leave() -> None:
    """End without waiting for anything, and the workers of this group too, even one that hangs."""
    # Not system.process.end_family: the evaluator imports nothing of the sidecar. Its workers share a group.
    os.killpg(os.getpid(), signal.SIGKILL)
