"""Checkpoints built by hand, byte for byte as trainers leave them; no torch, no safetensors."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from eval_sidecar.types import Checkpoint

CONFIG = json.dumps({"model_type": "qwen2", "transformers_version": "5.23.0"}).encode()
TOKENIZER = json.dumps({"version": "1.0", "model": {"vocab": {"a": 0}}}).encode()
TOKENIZER_CONFIG = json.dumps({"tokenizer_class": "Qwen2Tokenizer"}).encode()


def safetensors(*sizes: int) -> bytes:
    """A safetensors file with one tensor of each size in bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for number, size in enumerate(sizes):
        header[f"layer.{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(end)


def torch_zip(*sizes: int) -> bytes:
    """A ``.bin`` in torch's format since 1.6: a zip with one record a storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        for number, size in enumerate(sizes or (64,)):
            file.writestr(f"archive/data/{number}", bytes(size))
    return buffer.getvalue()


def named_safetensors(**shapes: int) -> bytes:
    """A safetensors file with one tensor of so many bytes under each name (``__`` stands for a dot)."""
    header: dict[str, object] = {}
    end = 0
    for name, size in shapes.items():
        header[name.replace("__", ".")] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def trainer_state(step: int) -> bytes:
    return json.dumps({"global_step": step, "log_history": []}).encode()


def trainer_files(step: int) -> dict[str, bytes]:
    """What Hugging Face Trainer leaves in a checkpoint, in the order in which it writes it."""
    return {
        "config.json": CONFIG,
        "generation_config.json": b"{}",
        "model.safetensors": safetensors(48, 16),
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "tokenizer.json": TOKENIZER,
        "training_args.bin": torch_zip(),
        "optimizer.pt": torch_zip(512),
        "rng_state.pth": torch_zip(),
        "scheduler.pt": torch_zip(),
        "trainer_state.json": trainer_state(step),
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_checkpoint(model_dir: Path, step: int, files: Optional[Mapping[str, bytes]] = None) -> Checkpoint:
    """Write a checkpoint, by default a complete one of Hugging Face Trainer's."""
    checkpoint = Checkpoint(step, model_dir / f"checkpoint-{step}")
    write_files(checkpoint.path, trainer_files(step) if files is None else files)
    return checkpoint
