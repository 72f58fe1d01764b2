"""The GPUs that ``--cuda-list`` names, and whether they are there, as far as the driver tells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

from eval_sidecar.errors import UsageError

#: Seconds for nvidia-smi: without a driver that stays loaded, it takes some.
_PATIENCE = 10.0
_NUMBERS = re.compile(r"(?:cuda:)?(\d+)(?:-(\d+))?")
_UUID = re.compile(r"(?:GPU|MIG)-\S+")
#: A line of ``nvidia-smi -L``; the parts of a GPU are indented below it.
_LISTED = re.compile(r"(?:GPU (?P<number>\d+): (?P<name>.*?)|\s+MIG .*?) \(UUID: (?P<uuid>\S+)\)")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one.

    Attributes:
        uuid: What the driver calls it.
        number: Its number; None for a part of a GPU.
        name: The product's name; empty for a part of a GPU.
    """

    uuid: str
    number: Optional[int] = None
    name: str = ""


def list_gpus() -> Optional[list[Gpu]]:
    """Return the GPUs that the driver shows; None if nobody can be asked."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "No devices" not in done.stdout + done.stderr:
        return None
    found = filter(None, map(_LISTED.match, done.stdout.splitlines()))
    return [
        Gpu(line["uuid"], None if line["number"] is None else int(line["number"]), line["name"] or "")
        for line in found
    ]


def parse_devices(cuda_list: str, ask: Callable[[], Optional[list[Gpu]]] = list_gpus) -> tuple[str, ...]:
    """Return the devices of a list such as ``0 1``, ``0,1``, ``0-3``, ``cuda:0``, ``all`` or ``GPU-<uuid>``.

    Args:
        cuda_list: The list, as the user gave it.
        ask: Returns the GPUs that are there; called only for ``all``.

    Raises:
        UsageError: if a range is empty, or numbers and UUIDs are mixed.
    """
    devices: list[str] = []
    for word in cuda_list.replace(",", " ").split():
        numbers = _NUMBERS.fullmatch(word)
        if word == "all":
            devices += map(str, range(_count(ask()) or 1))
        elif numbers is None:
            devices.append(word)
        else:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if last < first:
                raise UsageError(
                    f"{word}: ends before it begins; did you mean {last}-{first}?", setting="cuda_list"
                )
            devices += map(str, range(first, last + 1))
    are_uuids = {bool(_UUID.fullmatch(device)) for device in devices}
    if len(are_uuids) > 1:
        raise UsageError(
            f"{cuda_list!r}: give either numbers or UUIDs of GPUs, not both", setting="cuda_list"
        )
    return tuple(devices)


def split_devices(cuda_list: str, gpus_per_eval: int) -> tuple[str, ...]:
    """Split a list of GPUs into one list for each evaluation.

    Args:
        cuda_list: Devices, as for `parse_devices`.
        gpus_per_eval: Devices for each evaluation; 0 gives the whole list to one.

    Raises:
        UsageError: if the list is empty, cannot be read or does not divide.
    """
    devices = parse_devices(cuda_list)
    if not devices:
        raise UsageError(
            f"{cuda_list!r}: name a GPU, such as 0 (it is ignored on a machine without one)",
            setting="cuda_list",
        )
    if gpus_per_eval == 0:
        return (" ".join(devices),)
    if gpus_per_eval < 0 or len(devices) % gpus_per_eval:
        raise UsageError(
            f"{gpus_per_eval}: does not divide the list of {len(devices)} GPUs", setting="gpus_per_eval"
        )
    return tuple(
        " ".join(devices[start : start + gpus_per_eval]) for start in range(0, len(devices), gpus_per_eval)
    )


def device_variables(devices: str) -> dict[str, str]:
    """Return the variables that give a job its devices. UUIDs mean nothing but to CUDA itself."""
    is_uuid = _UUID.match(devices) is not None
    visible = {"CUDA_VISIBLE_DEVICES": devices.replace(" ", ",")} if is_uuid else {}
    return {"CUDA_LIST": devices, **visible}


def describe_missing(devices: Sequence[str], gpus: Optional[Sequence[Gpu]]) -> Optional[str]:
    """Return which of these devices are not there, in a sentence; None if none is known to be missing."""
    asked = [device for device in devices if device.isdecimal() or _UUID.fullmatch(device)]
    if gpus is None or not asked:
        return None
    flag = f"--cuda-list {' '.join(devices)}"
    if not gpus:
        return f"{flag}: nvidia-smi shows no GPU: evaluations run on the CPU, or fail"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = _count(gpus) or 0
    missing = [device for device in asked if not _is_there(device, count, gpus)]
    if not missing:
        return None
    shown = f"nvidia-smi shows {_numbered(gpus)}"
    if hidden is not None and not all(map(_UUID.fullmatch, missing)):
        shown = f"CUDA_VISIBLE_DEVICES={hidden} leaves {count}"
    return f"{flag}: GPU {', '.join(missing)} not found ({shown})"


def _is_there(device: str, count: int, gpus: Iterable[Gpu]) -> bool:
    if not device.isdecimal():
        return any(gpu.uuid.startswith(device) for gpu in gpus)
    # Either a place among those that are visible, or a number that is itself listed as visible.
    return int(device) < count or device in _visible()


def _count(gpus: Optional[Iterable[Gpu]]) -> Optional[int]:
    """Return how many GPUs a program sees; None if that is not known."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len(_visible())
    return None if gpus is None else sum(gpu.number is not None for gpu in gpus)


def _visible() -> list[str]:
    words = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(",", " ").split()
    return words[: words.index("-1")] if "-1" in words else words


def _numbered(gpus: Sequence[Gpu]) -> str:
    numbers = [gpu.number for gpu in gpus if gpu.number is not None]
    return f"{len(numbers)}: {', '.join(map(str, numbers))}"
