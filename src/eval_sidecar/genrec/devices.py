"""Finds the devices that a user names."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from eval_sidecar.genrec.errors import EvaluationError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """A device to compute on.

    Attributes:
        name: As torch names it in this process: ``cpu``, ``cuda:0``, ….
        visible: What ``CUDA_VISIBLE_DEVICES`` shows this device alone, to a separate process.
    """

    name: str
    visible: str


def find_devices(wanted: str) -> list[Device]:
    """Return the devices that a list such as ``0 1 2``, ``0,1,2``, ``cpu`` or ``cpu cpu`` names.

    If no GPU is available, one process on the CPU does the work, whatever is listed. A GPU's number counts
    among the GPUs that ``CUDA_VISIBLE_DEVICES`` shows, unless that variable contains all the numbers.

    Raises:
        EvaluationError: If the list is empty, or it has a GPU that does not exist although others do.
    """
    entries = wanted.replace(",", " ").split()
    if not entries:
        raise EvaluationError('no device is given: use GPU numbers such as "0 1", or cpu')
    cpu = Device("cpu", "")
    if all(entry == "cpu" for entry in entries):
        return [cpu] * len(entries)
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        log.info("no GPU is available for %s: evaluating on the CPU, in one process", " ".join(entries))
        return [cpu]
    shown = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    names = shown[:count] or [str(number) for number in range(count)]
    return [_find_gpu(entry, names, entries) for entry in dict.fromkeys(entries)]


def _find_gpu(entry: str, names: list[str], entries: list[str]) -> Device:
    """Return the GPU that an entry means, ``names`` being what the visible ones are called outside."""
    if all(other in names for other in entries):
        place = names.index(entry)
    elif entry.isdecimal() and int(entry) < len(names):
        place = int(entry)
    else:
        raise EvaluationError(f"GPU {entry} does not exist: {len(names)} are visible ({', '.join(names)})")
    return Device(f"cuda:{place}", names[place])
