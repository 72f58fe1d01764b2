"""A warm process: does one evaluation after the other for :mod:`.warm`, with the same libraries and caches.

``start.py eval_sidecar.genrec.server SOCKET FOLDER KEY``, where SOCKET is the number of an inherited socket
that is listened on. A request is a JSON line ``{"key": …, "words": […]}``, and with it the two files to print
to. The answers are ``{"pid": n}`` when it is taken on and ``{"code": n}`` at its end.

It does not stay for nothing: it leaves when its owner is gone; at once when a client goes away in the middle
of an evaluation; and after an evaluation that failed, because of what that may have left behind.
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
from eval_sidecar.genrec.session import Session
from eval_sidecar.genrec.streams import print_nowhere, print_to

#: The file that the owner holds locked for as long as it lives, which the system then frees.
OWNER_LOCK = "lock"


def main() -> None:
    """Serve evaluations until there is a reason to leave."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    folder, key = Path(sys.argv[2]), sys.argv[3]
    log_to_stderr()
    session = Session()
    working = threading.Lock()
    threading.Thread(target=_leave_with_owner, args=(folder, working), daemon=True).start()
    usable = True
    while usable:
        connection, _ = listener.accept()
        with working, connection:
            usable = _serve(connection, key, session)
    _leave()


def _serve(connection: socket.socket, key: str, session: Session) -> bool:
    """Do one evaluation; return whether the next may be done in this process too."""
    request, files = _receive(connection)
    if request is None or request["key"] != key:
        return request is None
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
    os.killpg(os.getpid(), signal.SIGKILL)
