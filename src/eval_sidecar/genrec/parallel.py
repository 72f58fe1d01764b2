"""Shares the rows of a checkpoint among several devices, one process each."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.channel import Channel
from eval_sidecar.genrec.devices import Device
from eval_sidecar.genrec.errors import EvaluationError
from eval_sidecar.genrec.libraries import start_command
from eval_sidecar.genrec.prompts import Prompts
from eval_sidecar.genrec.search import SearchSettings

log = logging.getLogger(__name__)


class _StaleError(Exception):
    """A file that a worker has imported has changed, so a new process would run other code."""


@dataclass(frozen=True)
class _Worker:
    """A process on a device, and the channel to it."""

    device: Device
    process: subprocess.Popen[bytes]
    channel: Channel


class ParallelRanker:
    """Ranks like :class:`.ranking.LocalRanker`, on several devices at once.

    Workers leave when their channel closes, so they do not outlive this process, however it ends; one that
    hangs ends with the process group. Each request brings the current standard error: in a warm process,
    each evaluation has its own.
    """

    def __init__(
        self, devices: Sequence[Device], settings: SearchSettings, trust_remote_code: bool = False
    ) -> None:
        """Start one worker per device; they load their libraries while this process reads the prompts."""
        self._devices = list(devices)
        self._settings = settings
        self._trust_remote_code = trust_remote_code
        #: Seconds that the slowest worker took to load the latest model.
        self.load_seconds = 0.0
        #: How the latest model was searched, for a log line.
        self.search = ""
        self._workers = [_start(device) for device in self._devices]

    def rank(
        self,
        checkpoint: Path,
        prompts: Prompts,
        items: Sequence[Sequence[int]],
        advance: Callable[[int], None],
    ) -> list[list[int]]:
        """Return for each prompt the places of its best items; see :meth:`.ranking.LocalRanker.rank`.

        Raises:
            EvaluationError: If a worker reports one, or dies.
        """
        if any(worker.process.poll() is not None for worker in self._workers):
            self.close()  # the system may have killed an idle worker to free memory
        # Distributed by length, so that all workers have the same amount of work.
        by_length = sorted(range(len(prompts.ids)), key=lambda row: len(prompts.ids[row]))
        shares = [by_length[number :: len(self._devices)] for number in range(len(self._devices))]
        shares = [share for share in shares if share]
        try:
            answers = self._ask(checkpoint, prompts, shares, items, advance)
        except _StaleError:
            answers = self._ask(checkpoint, prompts, shares, items, advance)
        ranked: list[list[int]] = [[] for _ in prompts.ids]
        for share, answer in zip(shares, answers):
            for row, found in zip(share, answer["ranked"]):
                ranked[row] = found
        self.load_seconds = max(answer["load_seconds"] for answer in answers)
        self.search = " and ".join(dict.fromkeys(answer["search"] for answer in answers))
        return ranked

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.channel.close()
        self._workers = []

    def _ask(
        self,
        checkpoint: Path,
        prompts: Prompts,
        shares: Sequence[Sequence[int]],
        items: Sequence[Sequence[int]],
        advance: Callable[[int], None],
    ) -> list[dict[str, Any]]:
        """Give each worker its share, and return their answers; end all workers if one fails."""
        if not self._workers:
            self._workers = [_start(device) for device in self._devices]
        try:
            for worker, share in zip(self._workers, shares):
                with contextlib.suppress(ConnectionError):  # it has died; handled below
                    request = self._request(worker.device, checkpoint, prompts.select(share), items)
                    worker.channel.send(request, [2])
            return _collect(self._workers[: len(shares)], advance)
        except BaseException:
            self.close()  # the others would continue useless work
            raise

    def _request(
        self, device: Device, checkpoint: Path, prompts: Prompts, items: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        on_cpu = device.name == "cpu"
        return {
            "checkpoint": str(checkpoint),
            "device": "cpu" if on_cpu else "cuda:0",  # the only one that the worker sees
            "threads": max(1, (os.cpu_count() or 1) // len(self._devices)) if on_cpu else 0,
            "settings": asdict(self._settings),
            "trust_remote_code": self._trust_remote_code,
            **asdict(prompts),
            "items": items,
        }


def _start(device: Device) -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            start_command("worker"),
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": device.visible},
        )
    return _Worker(device, process, Channel(ours))


def _collect(workers: Sequence[_Worker], advance: Callable[[int], None]) -> list[dict[str, Any]]:
    """Return each worker's answer, in the order of the workers."""
    answers: dict[int, dict[str, Any]] = {}
    announced = False
    for number, message in _messages(workers):
        if message is None:
            raise EvaluationError(_describe_end(workers[number]))
        if "stale" in message:
            raise _StaleError
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
            if len(answers) == len(workers):
                break
    return [answers[number] for number in range(len(workers))]


def _messages(workers: Sequence[_Worker]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield each worker's messages with its number as they arrive; None if it has died."""
    with selectors.DefaultSelector() as speaking:
        for number, worker in enumerate(workers):
            speaking.register(worker.channel, selectors.EVENT_READ, number)
        while True:
            for key, _ in speaking.select():
                channel = workers[key.data].channel
                yield key.data, channel.receive()
                while channel.has_message():
                    yield key.data, channel.receive()


def _describe_end(worker: _Worker) -> str:
    code = worker.process.wait()
    guess = " (out of memory?)" if code == -signal.SIGKILL else ""
    how = f"was killed by signal {-code}{guess}" if code < 0 else f"ended with code {code}"
    place = worker.device.visible or "cpu"
    return f"the process on device {place} {how}; see the lines above for what it printed"
