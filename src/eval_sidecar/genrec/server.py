"""A warm process: does one evaluation after the other for :mod:`.warm`, with the same libraries and caches.

``start.py eval_sidecar.genrec.server SOCKET FOLDER KEY``, where SOCKET is the number of an inherited socket
that is listened on. A request is a JSON line ``{"key": …, "words": […]}``, and with it the two files to print
to. The answers are ``{"pid": n}`` when it is taken on and ``{"code": n}`` at its end.

It does not stay for nothing: it leaves when its owner is gone; at once when a client goes away in the middle
of an evaluation; after an evaluation that failed, because of what that may have left behind; when a file that
it has imported has changed; and when no evaluation has come for a while, because a GPU's context takes memory
that the training may want.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.cli import log_to_stderr, parse, run
from eval_sidecar.genrec.loaded import LoadedFiles
from eval_sidecar.genrec.session import Session
from eval_sidecar.genrec.streams import print_nowhere, print_to

#: The file that the owner holds locked for as long as it lives, which the system then frees.
OWNER_LOCK = "lock"


#: Seconds without an evaluation after which a process leaves. A new one needs seconds for its imports.
IDLE_SECONDS = 600.0


def main() -> None:
    """Serve evaluations until there is a reason to leave."""
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])


def serve(listener: socket.socket, folder: Path, key: str, idle_seconds: float = IDLE_SECONDS) -> None:
    """Serve evaluations until there is a reason to leave; then end this process.

    Args:
        listener: Where requests come from.
        folder: The folder with the owner's lock.
        key: What a request must hold, or else it is for another process.
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
            usable = _serve(connection, key, session, loaded)
    _leave()


def _serve(connection: socket.socket, key: str, session: Session, loaded: LoadedFiles) -> bool:
    """Do one evaluation; return whether the next may be done in this process too."""
    request, files = _receive(connection)
    if request is None:
        return True
    if request["key"] != key or loaded.find_changed():
        return False
    print_to(*files)
    try:
        _answer(connection, {"pid": os.getpid()})
    except ConnectionError:  # the client has gone away while it waited
        print_nowhere()
        return True
    finished = threading.Event()
    watcher = threading.Thread(target=_leave_with_client, args=(connection, finished), daemon=True)
    watcher.start()
    try:
        code = run(parse(request["words"]), session)
    except Exception:  # noqa: BLE001  (as at the end of a process of its own)
        traceback.print_exc()
        code = 1
    finished.set()
    print_nowhere()
    _answer(connection, {"code": code})
    connection.shutdown(socket.SHUT_RDWR)
    watcher.join()
    loaded.note()
    return code == 0


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return a request and the files that came with it; None where the client has gone away."""
    content, files, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    while content and not content.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            break
        content += more
    return (json.loads(content) if content.endswith(b"\n") else None), files


def _answer(connection: socket.socket, message: dict[str, int]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _leave_with_owner(folder: Path, working: threading.Lock) -> None:
    """Leave when the owner has ended and the evaluation under way, whose client waits for it, is done."""
    # Where the folder is gone, so is the owner.
    with contextlib.suppress(OSError), (folder / OWNER_LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    working.acquire()
    shutil.rmtree(folder, ignore_errors=True)
    _leave()


def _leave_with_client(connection: socket.socket, finished: threading.Event) -> None:
    """Leave at once when the client goes away: the evaluation has been given up, and must not write more."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    if not finished.is_set():
        _leave()


def _leave() -> None:
    """End without waiting for anything, and the workers of this group too, even one that hangs."""
    # Not system.process.end_family: the evaluator imports nothing of the sidecar. Its workers share a group.
    os.killpg(os.getpid(), signal.SIGKILL)
