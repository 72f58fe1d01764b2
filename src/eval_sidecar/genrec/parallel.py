"""Shares the rows of a checkpoint among several devices, one process each."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.devices import Device
from eval_sidecar.genrec.errors import EvaluationError
from eval_sidecar.genrec.libraries import start_command
from eval_sidecar.genrec.prompts import Prompts
from eval_sidecar.genrec.search import SearchSettings

log = logging.getLogger(__name__)

_Messages = queue.SimpleQueue[tuple[int, "dict[str, Any] | None"]]

#: Exit code of a worker that finds, before it begins, that files which it has imported have changed.
EXIT_STALE = 75


class _StaleError(Exception):
    """A worker is no longer what a new one would be."""


class ParallelRanker:
    """Ranks like :class:`.ranking.LocalRanker`, on several devices at once.

    The workers hold the other end of a socket and leave when it closes, so they do not outlive this process,
    however it ends; one that hangs ends with the process group. Each request brings the standard error of
    that moment, which differs from evaluation to evaluation in a warm process.
    """

    def __init__(
        self, devices: Sequence[Device], settings: SearchSettings, trust_remote_code: bool = False
    ) -> None:
        """Start one worker a device; they load their libraries while this process reads the prompts."""
        self._devices = list(devices)
        self._settings = settings
        self._trust_remote_code = trust_remote_code
        self._workers: list[subprocess.Popen[str]] = []
        self._requests: list[socket.socket] = []
        self._readers: list[threading.Thread] = []
        #: Seconds that the slowest worker took to load the latest model.
        self.load_seconds = 0.0
        #: How the latest model was searched, for a log line.
        self.search = ""
        self._start()

    def rank(
        self,
        checkpoint: Path,
        prompts: Prompts,
        items: Sequence[Sequence[int]],
        advance: Callable[[int], None],
    ) -> list[list[int]]:
        """Return for each prompt the places of its best items; see :meth:`.ranking.LocalRanker.rank`.

        Raises:
            EvaluationError: A worker reports one, or dies.
        """
        if any(worker.poll() is not None for worker in self._workers):
            self.close()  # the system may have ended one to gain memory while it had nothing to do
        if not self._workers:
            self._start()
        # Dealt out by length, so that every worker gets as much to do.
        by_length = sorted(range(len(prompts.ids)), key=lambda row: len(prompts.ids[row]))
        shares = [by_length[number :: len(self._workers)] for number in range(len(self._workers))]
        shares = [share for share in shares if share]
        try:
            answers = self._ask(checkpoint, prompts, shares, items, advance)
        except _StaleError:
            self._start()
            answers = self._ask(checkpoint, prompts, shares, items, advance)
        ranked: list[list[int]] = [[] for _ in prompts.ids]
        for share, answer in zip(shares, answers):
            for row, found in zip(share, answer["ranked"]):
                ranked[row] = found
        self.load_seconds = max(answer["load_seconds"] for answer in answers)
        self.search = " and ".join(dict.fromkeys(answer["search"] for answer in answers))
        return ranked

    def _ask(
        self,
        checkpoint: Path,
        prompts: Prompts,
        shares: Sequence[Sequence[int]],
        items: Sequence[Sequence[int]],
        advance: Callable[[int], None],
    ) -> list[dict[str, Any]]:
        """Give each worker its share, and return their answers; end them all if one fails."""
        messages: _Messages = queue.SimpleQueue()
        try:
            for number, share in enumerate(shares):
                self._request(number, checkpoint, prompts.select(share), items, messages)
            return self._collect(len(shares), messages, advance)
        except BaseException:
            self.close()  # the others would go on with work that nobody waits for
            raise

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()
        for reader in self._readers:
            reader.join()
        for worker in self._workers:
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
        for requests in self._requests:
            requests.close()
        self._workers, self._requests, self._readers = [], [], []

    def _start(self) -> None:
        for device in self._devices:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": device.visible}
            requests, theirs = socket.socketpair()
            self._requests.append(requests)
            with theirs:
                self._workers.append(
                    subprocess.Popen(
                        start_command("worker"),
                        stdin=theirs.fileno(),
                        stdout=subprocess.PIPE,
                        env=environment,
                        encoding="utf-8",
                    )
                )

    def _request(
        self,
        number: int,
        checkpoint: Path,
        prompts: Prompts,
        items: Sequence[Sequence[int]],
        messages: _Messages,
    ) -> None:
        """Give a worker its share, and a thread that passes on what it answers."""
        on_cpu = self._devices[number].name == "cpu"
        request = {
            "checkpoint": str(checkpoint),
            "device": "cpu" if on_cpu else "cuda:0",  # the only one that the worker sees
            "threads": max(1, (os.cpu_count() or 1) // len(self._devices)) if on_cpu else 0,
            "settings": asdict(self._settings),
            "trust_remote_code": self._trust_remote_code,
            **asdict(prompts),
            "items": items,
        }
        with contextlib.suppress(ConnectionError):  # it has died, which the reader reports
            socket.send_fds(self._requests[number], [b" "], [2])
            self._requests[number].sendall(json.dumps(request).encode() + b"\n")
        reader = threading.Thread(target=_read, args=(number, self._workers[number], messages), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _collect(
        self, count: int, messages: _Messages, advance: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Return each worker's answer, in the order of the workers."""
        answers: dict[int, dict[str, Any]] = {}
        announced = False
        while len(answers) < count:
            number, message = messages.get()
            if message is None:
                code = self._workers[number].wait()
                if code == EXIT_STALE:
                    raise _StaleError
                place = self._devices[number].visible or "cpu"
                guess = " (out of memory?)" if code == -signal.SIGKILL else ""
                how = f"was killed by signal {-code}{guess}" if code < 0 else f"ended with code {code}"
                raise EvaluationError(f"the process on device {place} {how}; what it printed stands above")
            if "error" in message:
                raise EvaluationError(message["error"])
            if "advance" in message:
                advance(message["advance"])
            elif "announce" in message:
                if not announced:  # they all search the same model
                    log.info("%s", message["announce"])
                announced = True
            else:
                answers[number] = message
        return [answers[number] for number in range(count)]


def _read(number: int, worker: subprocess.Popen[str], messages: _Messages) -> None:
    """Pass on a worker's messages until its answer is complete; None says that it has died."""
    assert worker.stdout is not None
    for line in worker.stdout:
        if not line.endswith("\n"):
            break  # it was killed while it wrote
        message = json.loads(line)
        messages.put((number, message))
        if not {"advance", "announce"} & set(message):
            return
    messages.put((number, None))
