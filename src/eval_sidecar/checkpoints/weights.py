"""Files that hold weights: is each of them whole, and is there anything in it?

The checks come from the formats: a safetensors file says in its header how long it must be, and a
torch file since 1.6 is a zip whose directory stands at its end.
"""

from __future__ import annotations

import functools
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.checkpoints.listing import walk_files

#: State of the training that no evaluation reads, and that makes up most of a checkpoint.
_TRAINING_STATE = re.compile(
    r"optimizer.*|scheduler.*|rng_state.*|scaler\.pt|random_states_.*|sampler.*\.bin|.*_optim_states\.pt"
    r"|pytorch_model_fsdp_\d+_optim.*"
)
#: What DeepSpeed leaves beside the weights, or instead of them.
_SHARDED_STATE = re.compile(r"global_step\d+|zero_to_fp32\.py|latest|pytorch_model_fsdp\.bin")
_SHARDS = re.compile(r"global_step\d+")
#: Names that nothing but weights has; others may be weights.
WEIGHTS_NAME = re.compile(
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors|(pytorch|adapter)_model(-\d+-of-\d+)?\.bin"
)
#: Suffixes of files that hold tensors, by which they are linked and not copied.
CONTAINERS = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".gguf", ".h5", ".msgpack", ".npz", ".onnx")
)
#: A safetensors header may not be longer than this, by its format's own rule.
_MAX_HEADER = 100_000_000
#: Tensors of no elements that a model may have for reasons of its own, as a share of all of its tensors.
_FEW = 0.25

#: What to do about weights that a sharded training has not gathered.
GATHER = (
    "saved by ZeRO-3 without gathering? set stage3_gather_16bit_weights_on_model_save (in accelerate's"
    " configuration zero3_save_16bit_model) to true"
)


@dataclass(frozen=True)
class Container:
    """What one file of tensors says of itself.

    Attributes:
        problem: Why it is not whole, or None.
        is_known: Whether its format tells its length.
        tensors: How many tensors (of a torch file: storages) it holds.
        empty: How many of them have no elements.
        lacks_weight: Whether a tensor that is called a weight has no elements.
    """

    problem: Optional[str] = None
    is_known: bool = True
    tensors: int = 0
    empty: int = 0
    lacks_weight: bool = False


def is_training_state(name: str) -> bool:
    """Return whether no evaluation reads a file or folder of this name, directly in a checkpoint."""
    return bool(_TRAINING_STATE.fullmatch(name))


def is_weights_elsewhere(name: str) -> bool:
    """Return whether a name stands for weights that an evaluation needs only if there are no others."""
    return bool(_SHARDED_STATE.fullmatch(name))


def container_names(folder: Path) -> list[str]:
    """Return the files of tensors in a checkpoint, relative to it, without state of the training.

    Raises:
        OSError: if a folder in it cannot be listed.
    """
    return sorted(name for name, _ in walk_files(folder, _is_left_out) if _may_hold_tensors(name))


def _may_hold_tensors(name: str) -> bool:
    base = name.rpartition("/")[2]
    return Path(base).suffix in CONTAINERS and not base.startswith((".", "tmp-"))


def _is_left_out(name: str) -> bool:
    return bool(
        _TRAINING_STATE.fullmatch(name) or _SHARDED_STATE.fullmatch(name) or name == "training_args.bin"
    )


def inspect(path: Path) -> Container:
    """Check one file of tensors; a version of it that was checked before is not opened again.

    Raises:
        OSError: if it cannot be read.
    """
    status = path.stat()
    return _inspect(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _inspect(path: Path, size: int, _mtime: int, _ctime: int) -> Container:
    if path.suffix == ".safetensors":
        return _inspect_safetensors(path, size)
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        return _inspect_zip(path)
    if path.suffix == ".bin" and len(start) < 2:
        return Container(f"is {len(start)} bytes long (still being written?)")
    return Container(is_known=False)


def _inspect_safetensors(path: Path, size: int) -> Container:
    """Check a safetensors file by its header.

    The format (github.com/huggingface/safetensors, "Format"): 8 bytes, the header's length N as a
    little-endian integer; N bytes of JSON, each tensor with its begin and end offsets; the tensors.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return Container(f"is {size} bytes long, shorter than any header (still being written?)")
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER:
            return Container("does not begin with a safetensors header")
        if size < 8 + length:
            return Container(f"ends at byte {size} inside its header (still being written?)")
        header = _parse_json(file.read(length))
    if not isinstance(header, dict):
        return Container("has an unreadable header (still being written?)")
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    try:
        spans = {name: tensor["data_offsets"][:2] for name, tensor in tensors.items()}
        expected = 8 + length + max((end for _, end in spans.values()), default=0)
        empty = [name for name, (begin, end) in spans.items() if begin == end]
    except (KeyError, IndexError, TypeError, ValueError):
        return Container("has a header without offsets")
    if size != expected:
        return Container(f"ends at byte {size}, its header says {expected} (still being written?)")
    return Container(
        tensors=len(spans), empty=len(empty), lacks_weight=any(name.endswith("weight") for name in empty)
    )


def _parse_json(content: bytes) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _inspect_zip(path: Path) -> Container:
    """Check a torch file: one record a storage, under ``<its name>/data/``."""
    try:
        with zipfile.ZipFile(path) as file:
            sizes = [record.file_size for record in file.infolist() if "/data/" in record.filename]
    except zipfile.BadZipFile:
        return Container("is a zip without its directory (still being written?)")
    return Container(tensors=len(sizes), empty=sizes.count(0))


def emptiness(found: Iterable[tuple[str, Container]]) -> Optional[str]:
    """Say what the weights in one folder lack, if they are the shells of tensors that were never gathered.

    Small tensors may have been kept whole among them: norms and biases, below DeepSpeed's threshold.
    """
    whole = [(name, container) for name, container in found if container.is_known and not container.problem]
    named = [(name, of) for name, of in whole if WEIGHTS_NAME.fullmatch(os.path.basename(name))]  # noqa: PTH119
    known = named or [(name, container) for name, container in whole if name.endswith(".safetensors")]
    if not known:
        return None
    tensors = sum(container.tensors for _, container in known)
    empty = sum(container.empty for _, container in known)
    lacking = any(container.lacks_weight for _, container in known)
    if not tensors:
        return f"{known[0][0]} holds no tensors at all: {GATHER}"
    if empty == tensors or empty > _FEW * tensors or lacking:
        which = [name for name, container in known if container.empty]
        what = "holds no weights" if empty == tensors else "lacks weights"
        return f"{which[0]} {what}: {empty} of {tensors} tensors are empty ({GATHER})"
    return None


def shards_folder(names: Iterable[str]) -> Optional[str]:
    """Return DeepSpeed's folder of shards among a checkpoint's names, the newest."""
    found = [name for name in names if _SHARDS.fullmatch(name)]
    return max(found, key=lambda name: int(name[len("global_step") :]), default=None)


def shards_problem(folder: Path, shards: str, names: Iterable[str]) -> Optional[str]:
    """Say why DeepSpeed's shards are not all there, or None.

    Each rank writes one file of optimizer states, in which its part of the weights is; ``latest`` names the
    folder once all have.
    """
    if "latest" not in names:
        return "latest, which names the folder of the shards, is missing"
    if (folder / "latest").read_text(encoding="utf-8", errors="replace").strip() != shards:
        return f"latest does not name {shards} (still being written?)"
    files = sorted(path for path in (folder / shards).rglob("*.pt") if path.is_file())
    if not files:
        return f"{shards} holds no shards"
    for path in files:
        if problem := inspect(path).problem:
            return f"{shards}/{path.name} {problem}"
    ranks = sum(bool(re.fullmatch(r"rng_state_\d+\.pth", name)) for name in names)
    states = sum(path.name.endswith("_optim_states.pt") for path in files)
    if ranks and states and states < ranks:
        return f"{shards} holds the states of {states} of {ranks} ranks"
    return None


def has_whole_weights(folder: Path) -> bool:
    """Return whether a checkpoint that was judged complete has whole weights besides any shards."""
    found = [(name, inspect(folder / name)) for name in container_names(folder)]
    named = [(name, of) for name, of in found if WEIGHTS_NAME.fullmatch(os.path.basename(name))]  # noqa: PTH119
    return bool(named) and emptiness(named) is None
