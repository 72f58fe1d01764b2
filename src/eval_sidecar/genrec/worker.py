"""One of several processes that share the rows of a checkpoint; started by :mod:`.parallel`.

Reads one JSON request a line from its standard input, a socket; with the first byte of each comes the file to
print to until the answer is complete. Answers on its standard output, in lines ``{"advance": n}`` and
``{"announce": "…"}``, then ``{"ranked": …, "load_seconds": …, "search": …}`` or ``{"error": …}``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from eval_sidecar.genrec.errors import EvaluationError, one_line
from eval_sidecar.genrec.libraries import importing
from eval_sidecar.genrec.loaded import LoadedFiles
from eval_sidecar.genrec.parallel import EXIT_STALE
from eval_sidecar.genrec.streams import print_nowhere, print_to


def main() -> None:
    """Serve requests until the parent closes the socket or dies."""
    # Ctrl-C reaches the whole group; the parent decides, and its end closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries that print must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    print_nowhere()
    requests: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    ranker: Any = None
    loaded = LoadedFiles()
    while True:
        line, log = requests.get()
        if loaded.find_changed():
            os._exit(EXIT_STALE)
        print_to(log, log)
        request = json.loads(line)
        try:
            if ranker is None:
                ranker = _start(request, answers)
            answer = _rank(ranker, request, answers)
        except EvaluationError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001  (the parent reports it; this process stays usable)
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {one_line(error)}"}
        print_nowhere()
        _answer(answers, answer)
        loaded.note()


def _read(requests: queue.SimpleQueue[tuple[str, int]]) -> None:
    """Pass requests on; leave at once when the socket ends, also in the middle of a search."""
    with socket.socket(fileno=0) as connection, connection.makefile("r", encoding="utf-8") as lines:
        while True:
            _, files, _, _ = socket.recv_fds(connection, 1, 1)
            line = lines.readline()
            if not files or not line.endswith("\n"):
                os._exit(0)
            requests.put((line, files[0]))


def _start(request: dict[str, Any], answers: TextIO) -> Any:  # noqa: ANN401
    """Return a ranker on the one device that this process sees."""
    with importing():
        import torch

        from eval_sidecar.genrec.ranking import LocalRanker
        from eval_sidecar.genrec.search import SearchSettings

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    return LocalRanker(
        request["device"],
        SearchSettings(**request["settings"]),
        request["trust_remote_code"],
        lambda line: _answer(answers, {"announce": line}),
    )


def _rank(ranker: Any, request: dict[str, Any], answers: TextIO) -> dict[str, Any]:  # noqa: ANN401
    """Return the answer to one request."""
    from eval_sidecar.genrec.prompts import Prompts

    prompts = Prompts(tuple(tuple(ids) for ids in request["ids"]), tuple(request["padded"]), request["eos"])
    ranked = ranker.rank(
        Path(request["checkpoint"]),
        prompts,
        request["items"],
        lambda rows: _answer(answers, {"advance": rows}),
    )
    return {"ranked": ranked, "load_seconds": ranker.load_seconds, "search": ranker.search}


def _answer(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
