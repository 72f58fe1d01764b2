"""What a checkpoint's weights are: the same for a copy, another of another training, and cheap."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from checkpoint_files import CONFIG, safetensors, torch_zip, trainer_files, write_files
from eval_sidecar.checkpoints.identity import look_at_weights, read_content, read_identity
from eval_sidecar.ledger.stamps import folder_stamp

LARGE = 12 << 20


def folder_of(root: Path, name: str, files: Mapping[str, bytes]) -> Path:
    write_files(root / name, files)
    return root / name


def changed_at(content: bytes, place: int) -> bytes:
    """The same bytes but for one."""
    place %= len(content)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def zipped(size: int, flip: int = -1) -> bytes:
    buffer = io.BytesIO()
    data = bytearray(size)
    if flip >= 0:
        data[flip] = 1
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data/0", bytes(data))
        file.writestr("archive/data/1", bytes(64))
    return buffer.getvalue()


def losses(*values: float) -> bytes:
    lines = [{"step": step, "loss": loss, "epoch": 1.0} for step, loss in enumerate(values, 1)]
    return json.dumps({"global_step": 100, "log_history": [*lines, {"train_runtime": time.time()}]}).encode()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return folder_of(tmp_path, "checkpoint-100", trainer_files(100))


def test_a_copy_elsewhere_is_the_same(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "elsewhere" / "checkpoint-100", copy_function=shutil.copy)
    assert read_identity(tmp_path / "elsewhere" / "checkpoint-100") == read_identity(checkpoint)


def test_another_time_another_mode_and_another_inode_change_nothing(checkpoint):
    before = read_identity(checkpoint)
    weights = checkpoint / "model.safetensors"
    os.utime(weights, (1, 1))
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes())
    shutil.move(weights, checkpoint / "moved")
    shutil.copy(checkpoint / "moved", weights)
    (checkpoint / "moved").unlink()
    assert read_identity(checkpoint) == before


def test_links_to_the_weights_alone_are_the_same(checkpoint, tmp_path):
    """As a pin has them."""
    pin = tmp_path / "pin"
    pin.mkdir()
    for name in ("config.json", "model.safetensors", "trainer_state.json"):
        os.link(checkpoint / name, pin / name)
    assert read_identity(pin) == read_identity(checkpoint)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"])
def test_other_training_state_beside_the_same_weights_changes_nothing(checkpoint, name):
    before = read_identity(checkpoint)
    (checkpoint / name).write_bytes(torch_zip(1024))
    assert read_identity(checkpoint) == before


@pytest.mark.parametrize("place", [-1, -40, -64])
def test_one_bit_of_small_weights_makes_another(checkpoint, place):
    before = read_identity(checkpoint)
    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(changed_at(content, place))
    assert read_identity(checkpoint) != before


def test_one_shard_of_several_makes_another(tmp_path):
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    files = {name: safetensors(64) for name in names}
    one = folder_of(tmp_path, "one", files)
    other = folder_of(tmp_path, "other", {**files, names[2]: changed_at(files[names[2]], -1)})
    assert read_identity(one) != read_identity(other)


def test_an_adapter_in_a_folder_of_its_own_counts(tmp_path):
    adapter = safetensors(64)
    one = folder_of(tmp_path, "one/policy", {"adapter_model.safetensors": adapter}).parent
    files = {"adapter_model.safetensors": changed_at(adapter, -1)}
    other = folder_of(tmp_path, "other/policy", files).parent
    assert read_identity(one) != read_identity(other)


@pytest.mark.parametrize(
    "name", ["global_step100/zero_pp_rank_0_optim_states.pt", "pytorch_model_fsdp_0/__0_0.distcp"]
)
def test_weights_that_were_not_gathered_count_where_they_lie(tmp_path, name):
    """`model.safetensors` then has a header and nothing else."""
    found = []
    for number in (1, 2):
        folder = folder_of(
            tmp_path, f"{number}", {"config.json": CONFIG, "model.safetensors": safetensors(0)}
        )
        write_files((folder / name).parent, {Path(name).name: torch_zip(number)})
        found.append(read_identity(folder))
    assert found[0] != found[1]


def test_a_folder_without_weights_under_a_known_name_is_told_by_all_its_files(tmp_path):
    one = folder_of(tmp_path, "one", {"weights.custom": b"1"})
    other = folder_of(tmp_path, "other", {"weights.custom": b"2"})
    assert read_identity(one) != read_identity(other)


# -- large ones ------------------------------------------------------------------------------------------


def large_safetensors(sizes: list[int], flips: tuple[int, ...] = ()) -> bytes:
    content = bytearray(safetensors(*sizes))
    for place in flips:
        content[place] ^= 1
    return bytes(content)


def test_the_rows_at_the_end_of_one_tensor_make_another(tmp_path):
    """New tokens of an embedding, where all else is frozen."""
    sizes = [LARGE // 2, 4096, LARGE // 2]
    whole = large_safetensors(sizes)
    end_of_first = len(whole) - LARGE // 2 - 4096
    one = folder_of(tmp_path, "one", {"model.safetensors": whole})
    other = folder_of(tmp_path, "two", {"model.safetensors": large_safetensors(sizes, (end_of_first - 9,))})
    assert read_identity(one) != read_identity(other)


def test_two_trainings_of_one_architecture_are_told_apart(tmp_path):
    header_and_first = large_safetensors([LARGE])
    chance = random.Random(1)
    found = set()
    for name in ("one", "two"):
        content = header_and_first[: len(header_and_first) - LARGE] + chance.randbytes(LARGE)
        found.add(read_identity(folder_of(tmp_path, name, {"model.safetensors": content})))
    assert len(found) == 2


def test_one_byte_anywhere_in_a_large_torch_file_makes_another(tmp_path):
    """Its directory has a checksum of each tensor."""
    one = folder_of(tmp_path, "one", {"pytorch_model.bin": zipped(LARGE)})
    other = folder_of(tmp_path, "two", {"pytorch_model.bin": zipped(LARGE, LARGE // 2 + 12_345)})
    assert read_identity(one) != read_identity(other)


def test_the_losses_tell_apart_what_blocks_of_large_weights_do_not(tmp_path):
    weights = {"model.safetensors": large_safetensors([LARGE])}
    found = [
        read_identity(folder_of(tmp_path, name, {**weights, "trainer_state.json": state}))
        for name, state in (("one", losses(2.5, 1.5)), ("two", losses(2.5, 1.4)), ("again", losses(2.5, 1.5)))
    ]
    assert found[0] != found[1]
    assert found[0] == found[2], "how long a training took says nothing about its weights"


def test_a_checkpoint_of_6_gb_costs_less_than_a_megabyte(tmp_path, monkeypatch):
    tensors = 400
    size = 6 * 10**9 // tensors
    header = json.dumps(
        {
            f"layer.{number}": {
                "dtype": "U8",
                "shape": [size],
                "data_offsets": [number * size, (number + 1) * size],
            }
            for number in range(tensors)
        }
    ).encode()
    (tmp_path / "one").mkdir()
    with (tmp_path / "one" / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + tensors * size)
    read = []
    opened = Path.open

    def counting(path, mode="r", **options):
        file = opened(path, mode, buffering=0, **options)
        reads = file.readinto

        class Counting(io.RawIOBase):
            def readable(self):
                return True

            def seekable(self):
                return True

            def seek(self, *where):
                return file.seek(*where)

            def readinto(self, buffer):
                read.append(reads(buffer))
                return read[-1]

        return io.BufferedReader(Counting(), 1024)

    monkeypatch.setattr(Path, "open", counting)
    read_identity(tmp_path / "one")
    assert 100_000 < sum(read) < 1_000_000


# -- looks -----------------------------------------------------------------------------------------------


def test_a_look_shows_weights_that_were_replaced_by_others_of_the_same_size_and_time(checkpoint):
    weights = checkpoint / "model.safetensors"
    before, time_before = look_at_weights(checkpoint)[0], weights.stat().st_mtime_ns
    weights.write_bytes(changed_at(weights.read_bytes(), -1))
    os.utime(weights, ns=(time_before, time_before))
    assert look_at_weights(checkpoint)[0] != before


def test_a_look_shows_nothing_of_what_is_no_weights(checkpoint):
    before = look_at_weights(checkpoint)[0]
    (checkpoint / "optimizer.pt").write_bytes(b"other")
    (checkpoint / "predictions.json").write_text("[]")
    assert look_at_weights(checkpoint)[0] == before


def test_a_folder_that_was_made_anew_has_another_stamp(checkpoint):
    before = folder_stamp(checkpoint)
    shutil.rmtree(checkpoint)
    write_files(checkpoint, trainer_files(100))
    assert folder_stamp(checkpoint) != before


def test_nothing_is_said_of_weights_that_change_while_they_are_read(checkpoint, monkeypatch):
    def read_and_write(folder):
        (folder / "model.safetensors").write_bytes(safetensors(64, 8))
        return "0" * 16

    monkeypatch.setattr("eval_sidecar.checkpoints.identity.read_identity", read_and_write)
    assert read_content(checkpoint) is None
