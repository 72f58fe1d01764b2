"""One of several processes that share the rows of a checkpoint; started by :mod:`.parallel`.

Its standard input is a :class:`.channel.Channel`. Each request brings the file to print to until the answer
is complete. The answers: ``{"advance": n}`` and ``{"announce": "…"}`` while it works, then ``{"ranked": …,
"load_seconds": …, "search": …}``, ``{"error": …}``, or ``{"stale": file}`` if an imported file has changed.
"""

from __future__ import annotations

import os
import signal
import socket
import traceback
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.channel import Channel
from eval_sidecar.genrec.errors import EvaluationError, one_line
from eval_sidecar.genrec.libraries import importing
from eval_sidecar.genrec.loaded import LoadedFiles
from eval_sidecar.genrec.streams import print_nowhere, print_to


def main() -> None:
    """Serve requests until the parent closes the channel or dies."""
    # Ctrl-C reaches the whole group; the parent decides, and its end closes the channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loaded = LoadedFiles()
    channel = Channel(socket.socket(fileno=0))
    channel.watch(lambda: os._exit(0))  # at once, also in the middle of a search
    with importing():
        import eval_sidecar.genrec.ranking  # noqa: F401  (while the parent reads the prompts)
    print_nowhere()
    ranker: Any = None
    while request := channel.receive():
        if changed := loaded.find_changed():
            channel.send({"stale": changed})
            return
        log = channel.files.pop()
        print_to(log, log)
        try:
            if ranker is None:
                ranker = _make_ranker(request, channel)
            answer = _rank(ranker, request, channel)
        except EvaluationError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001  (the parent reports it; this process stays usable)
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {one_line(error)}"}
        print_nowhere()
        channel.send(answer)
        loaded.note()


def _make_ranker(request: dict[str, Any], channel: Channel) -> Any:  # noqa: ANN401
    """Return a ranker on the one device that this process sees."""
    import torch

    from eval_sidecar.genrec.ranking import LocalRanker
    from eval_sidecar.genrec.search import SearchSettings

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    return LocalRanker(
        request["device"],
        SearchSettings(**request["settings"]),
        request["trust_remote_code"],
        lambda line: channel.send({"announce": line}),
    )


def _rank(ranker: Any, request: dict[str, Any], channel: Channel) -> dict[str, Any]:  # noqa: ANN401
    """Return the answer to one request."""
    from eval_sidecar.genrec.prompts import Prompts

    prompts = Prompts(tuple(tuple(ids) for ids in request["ids"]), tuple(request["padded"]), request["eos"])
    ranked = ranker.rank(
        Path(request["checkpoint"]),
        prompts,
        request["items"],
        lambda rows: channel.send({"advance": rows}),
    )
    return {"ranked": ranked, "load_seconds": ranker.load_seconds, "search": ranker.search}
