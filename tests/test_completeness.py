"""What the verdicts rest on: bytes as trainers write them, whole and in pieces."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_files import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    named_safetensors,
    safetensors,
    torch_zip,
    trainer_files,
    trainer_state,
    write_checkpoint,
    write_files,
)
from eval_sidecar.checkpoints.completeness import (
    ABANDONED_SECONDS,
    Verdict,
    changed_at,
    companions,
    fingerprint,
    judge,
)
from eval_sidecar.types import Checkpoint, Completeness

COMPLETE, SETTLING, QUIET, PARTIAL, ABANDONED, GONE = Completeness

QUIET_SECONDS = 120.0
#: Long enough for everything that only needs patience, too short to be given up.
LONG = ABANDONED_SECONDS - 1
STEP = 495


def look(
    checkpoint: Checkpoint,
    unchanged: float = 0.0,
    *,
    expects_state: bool = False,
    usual: Optional[Collection[str]] = None,
) -> Verdict:
    return judge(
        checkpoint,
        quiet_seconds=QUIET_SECONDS,
        unchanged_seconds=unchanged,
        trainer_state_expected=expects_state,
        usual=usual,
    )


def with_files(folder: Path, **changes: object) -> Checkpoint:
    """A complete checkpoint in which some files are other bytes, or missing (None)."""
    files = {**trainer_files(STEP), **changes}
    return write_checkpoint(folder, STEP, {name: data for name, data in files.items() if data is not None})


def other_trainer(folder: Path, **changes: bytes) -> Checkpoint:
    """What a trainer leaves that is not Hugging Face's: nothing in it proves that it is the last file."""
    return write_checkpoint(
        folder, STEP, {"config.json": b"{}", "model.safetensors": safetensors(8), **changes}
    )


# -- proved ----------------------------------------------------------------------------------------------


def test_a_whole_trainer_checkpoint_is_complete_without_any_waiting(tmp_path):
    verdict = look(write_checkpoint(tmp_path, STEP), unchanged=0.0)
    assert verdict.name == COMPLETE
    assert verdict.ready


def test_the_evidence_names_the_weights_with_their_length_and_the_step(tmp_path):
    size = f"{len(trainer_files(STEP)['model.safetensors']):,}"
    evidence = look(write_checkpoint(tmp_path, STEP)).evidence
    assert f"model.safetensors is whole ({size} bytes)" in evidence
    assert "trainer_state.json says step 495" in evidence


def test_shards_that_an_index_lists_are_complete_once_all_are_whole(tmp_path):
    assert look(sharded(tmp_path)).name == COMPLETE


def test_a_zip_bin_is_complete_with_its_directory(tmp_path):
    checkpoint = with_files(tmp_path, **{"model.safetensors": None, "pytorch_model.bin": torch_zip()})
    assert look(checkpoint).name == COMPLETE


@pytest.mark.parametrize(
    "weights", [{"adapter_model.safetensors": safetensors(8)}, {"adapter_model.bin": torch_zip()}]
)
def test_an_adapter_needs_no_config_and_no_weights_of_its_base(tmp_path, weights):
    adapter = {"config.json": None, "model.safetensors": None, "adapter_config.json": b"{}"}
    assert look(with_files(tmp_path, **adapter, **weights)).name == COMPLETE


# -- written in pieces -----------------------------------------------------------------------------------


def pieces(step: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every state of Trainer's folder on the way to the last file: files half written, then whole."""
    done: dict[str, bytes] = {}
    for name, content in trainer_files(step).items():
        for length in (0, 1, len(content) // 2, len(content) - 1):
            yield f"{name}[:{length}]", {**done, name: content[:length]}
        done[name] = content
        if name != "trainer_state.json":
            yield name, dict(done)


TRAINER_ONLY = {"training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
PIECES = dict(pieces(STEP))
WITH_TRAINER_FILES = {name: files for name, files in PIECES.items() if TRAINER_ONLY & set(files)}
WITHOUT_TRAINER_FILES = {name: files for name, files in PIECES.items() if not TRAINER_ONLY & set(files)}


@pytest.mark.parametrize("files", WITH_TRAINER_FILES.values(), ids=WITH_TRAINER_FILES)
def test_no_rest_makes_a_checkpoint_ready_between_trainers_first_file_and_its_last(tmp_path, files):
    assert look(write_checkpoint(tmp_path, STEP, files), LONG).name == PARTIAL


@pytest.mark.parametrize("files", WITHOUT_TRAINER_FILES.values(), ids=WITHOUT_TRAINER_FILES)
def test_a_pause_longer_than_the_quiet_period_makes_no_checkpoint_ready_before_the_tokenizer_is_whole(
    tmp_path, files
):
    whole = files.get("tokenizer.json") == TOKENIZER
    assert look(write_checkpoint(tmp_path, STEP, files), QUIET_SECONDS * 2).ready is whole


@pytest.mark.parametrize("files", PIECES.values(), ids=PIECES)
def test_no_piece_is_ready_after_the_quiet_period_where_the_trainer_is_known_to_write_its_state(
    tmp_path, files
):
    assert not look(write_checkpoint(tmp_path, STEP, files), QUIET_SECONDS * 2, expects_state=True).ready


def test_weights_under_a_temporary_name_are_not_weights(tmp_path):
    files = {"config.json": CONFIG, ".tmpX1b2c3": safetensors(64)}
    verdict = look(write_checkpoint(tmp_path, STEP, files), LONG)
    assert verdict == Verdict(PARTIAL, ("a config is there, but no weights are",))


@pytest.mark.parametrize(
    "temporary", ["tmp-model.safetensors", "model.safetensors.tmp", "model.safetensors~"]
)
def test_a_half_written_temporary_file_beside_the_config_is_partial(tmp_path, temporary):
    files = {"config.json": CONFIG, temporary: safetensors(64)[:-1]}
    assert look(write_checkpoint(tmp_path, STEP, files), LONG).name == PARTIAL


def test_shards_that_precede_their_index_are_partial(tmp_path):
    files = {"config.json": CONFIG, "model-00001-of-00002.safetensors": safetensors(8)}
    verdict = look(write_checkpoint(tmp_path, STEP, files), LONG)
    assert verdict.name == PARTIAL
    assert "model-00001-of-00002.safetensors is one of 2 shards, but their index does not exist yet" in (
        verdict.evidence
    )


# -- proved incomplete -----------------------------------------------------------------------------------


def sharded(folder: Path, suffix: str = "safetensors", **changes: object) -> Checkpoint:
    content = safetensors(16) if suffix == "safetensors" else torch_zip()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    index = json.dumps({"metadata": {}, "weight_map": {"a": names[0], "b": names[1]}}).encode()
    files = {"model.safetensors": None, f"{stem}.{suffix}.index.json": index, **dict.fromkeys(names, content)}
    return with_files(folder, **{**files, **changes})


@pytest.mark.parametrize(
    ("suffix", "shard"),
    [("safetensors", "model-00002-of-00002.safetensors"), ("bin", "pytorch_model-00002-of-00002.bin")],
)
def test_a_shard_that_the_index_lists_and_nobody_wrote_is_named(tmp_path, suffix, shard):
    verdict = look(sharded(tmp_path, suffix, **{shard: None}), LONG)
    assert verdict == Verdict(PARTIAL, (f"{shard} is missing",))


def test_a_truncated_shard_is_named_with_both_lengths(tmp_path):
    content = safetensors(1000)
    name = "model-00001-of-00002.safetensors"
    verdict = look(sharded(tmp_path, **{name: content[:-7]}), LONG)
    said = f"{name} ends at byte {len(content) - 7}, its header says {len(content)} (still being written?)"
    assert verdict == Verdict(PARTIAL, (said,))


def test_a_weights_file_that_is_longer_than_its_header_says_is_partial(tmp_path):
    assert look(with_files(tmp_path, **{"model.safetensors": safetensors(8) + b"x"}), LONG).name == PARTIAL


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        b"\x10" + bytes(7) + b"not json not js!",
        b"\x02" + bytes(7) + b"[]",
        b"\x08" + bytes(7) + b'{"a":{}}',
    ],
    ids=["length beyond all bounds", "header is no JSON", "header is a list", "tensor without offsets"],
)
def test_weights_whose_header_makes_no_sense_are_partial(tmp_path, content):
    assert look(with_files(tmp_path, **{"model.safetensors": content}), LONG).name == PARTIAL


@pytest.mark.parametrize(
    "index", [b"", b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}']
)
def test_an_index_that_lists_nothing_is_partial(tmp_path, index):
    assert look(sharded(tmp_path, **{"model.safetensors.index.json": index}), LONG).name == PARTIAL


@pytest.mark.parametrize(
    "name", ["config.json", "trainer_state.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("content", [b"", b'{"global_step": 4', b"[1]", b"\xff\xfe"])
def test_a_file_that_should_be_a_json_object_and_is_not_is_partial_and_named(tmp_path, name, content):
    verdict = look(with_files(tmp_path, **{name: content}), LONG)
    assert verdict == Verdict(PARTIAL, (f"{name} is not a JSON object (still being written?)",))


def test_an_empty_folder_is_partial(tmp_path):
    assert look(write_checkpoint(tmp_path, STEP, {}), LONG) == Verdict(PARTIAL, ("the folder is empty",))


def test_a_bin_without_its_zip_directory_is_partial(tmp_path):
    checkpoint = with_files(tmp_path, **{"model.safetensors": None, "pytorch_model.bin": torch_zip()[:-10]})
    verdict = look(checkpoint, LONG)
    assert verdict.name == PARTIAL
    assert "pytorch_model.bin is a zip without its directory (still being written?)" in verdict.evidence


@pytest.mark.parametrize("age", [0.0, QUIET_SECONDS, LONG])
def test_waiting_never_makes_a_proved_partial_checkpoint_ready(tmp_path, age):
    checkpoint = with_files(tmp_path, **{"model.safetensors": safetensors(64)[:-1]})
    assert look(checkpoint, age).name == PARTIAL


def test_a_partial_checkpoint_that_nothing_touched_for_hours_is_abandoned(tmp_path):
    checkpoint = with_files(tmp_path, **{"model.safetensors": safetensors(64)[:-1]})
    verdict = look(checkpoint, ABANDONED_SECONDS)
    assert verdict.name == ABANDONED
    assert verdict.evidence[-1] == "nothing has changed in it for 6 h"


def test_a_folder_that_is_not_there_is_gone(tmp_path):
    assert look(Checkpoint(STEP, tmp_path / "checkpoint-495"), LONG).name == GONE


def test_a_file_that_vanishes_between_listing_and_reading_is_partial_and_not_an_error(tmp_path, monkeypatch):
    checkpoint = with_files(tmp_path)
    read = Path.read_bytes

    def read_too_late(path: Path) -> bytes:
        if path.name == "config.json":
            path.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_too_late)
    verdict = look(checkpoint, LONG)
    assert verdict.name == PARTIAL
    assert "config.json cannot be read" in verdict.evidence[0]


# -- not provable ----------------------------------------------------------------------------------------


def test_without_trainer_state_a_checkpoint_settles_until_the_quiet_period_is_over(tmp_path):
    checkpoint = other_trainer(tmp_path)
    assert look(checkpoint, QUIET_SECONDS - 0.1).name == SETTLING
    assert look(checkpoint, QUIET_SECONDS).name == QUIET


def test_a_quiet_verdict_says_what_is_not_proved_and_how_long_it_was_waited(tmp_path):
    evidence = look(other_trainer(tmp_path), 300.0).evidence
    assert evidence[-2:] == (
        "no trainer_state.json",
        "unchanged for 300 s of the 120 s that it must be left alone",
    )


def test_a_trainer_state_of_another_step_proves_nothing_and_says_both_steps(tmp_path):
    checkpoint = with_files(tmp_path, **{"trainer_state.json": trainer_state(330)})
    verdict = look(checkpoint, 0.0)
    assert verdict.name == SETTLING
    assert "trainer_state.json says step 330, the folder 495" in verdict.evidence


def test_weights_in_torchs_old_format_are_judged_by_quiet(tmp_path):
    checkpoint = with_files(
        tmp_path, **{"model.safetensors": None, "pytorch_model.bin": pickle.dumps({"a": 1}, protocol=2)}
    )
    assert look(checkpoint, 0.0).name == SETTLING
    assert look(checkpoint, QUIET_SECONDS).name == QUIET


def test_weights_under_unknown_names_are_judged_by_quiet(tmp_path):
    checkpoint = write_checkpoint(tmp_path, STEP, {"weights.pt": b"anything"})
    assert look(checkpoint, 0.0).name == SETTLING
    assert look(checkpoint, QUIET_SECONDS).name == QUIET


def test_a_trainer_known_to_write_its_state_is_given_ten_quiet_periods(tmp_path):
    checkpoint = other_trainer(tmp_path)
    assert look(checkpoint, QUIET_SECONDS * 10 - 1, expects_state=True).name == SETTLING
    assert look(checkpoint, QUIET_SECONDS * 10, expects_state=True).name == QUIET


@pytest.mark.parametrize("vocabulary", ["vocab.txt", "spiece.model", "tokenizer.model", "vocab.json"])
def test_a_tokenizer_of_any_kind_counts_as_one(tmp_path, vocabulary):
    files = {"config.json": CONFIG, "tokenizer_config.json": TOKENIZER_CONFIG, vocabulary: b"{}"}
    checkpoint = other_trainer(tmp_path, **files)
    assert look(checkpoint, QUIET_SECONDS).name == QUIET


@pytest.mark.parametrize("size", range(0, 3))
def test_a_bin_of_a_few_bytes_is_never_ready(tmp_path, size):
    checkpoint = with_files(tmp_path, **{"model.safetensors": None, "pytorch_model.bin": torch_zip()[:size]})
    assert look(checkpoint, LONG).name == PARTIAL


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    return write_checkpoint(folder, STEP, {**trainer_files(STEP), "pytorch_model.bin": torch_zip()})


@given(
    name=st.sampled_from(["model.safetensors", "pytorch_model.bin"]),
    share=st.floats(0, 1, exclude_max=True),
    age=st.floats(0, ABANDONED_SECONDS * 2),
    has_state=st.booleans(),
)
def test_weights_cut_at_any_byte_are_never_ready(whole, name, share, age, has_state):
    content = {"model.safetensors": safetensors(48, 16), "pytorch_model.bin": torch_zip()}
    write_files(whole.path, {**content, name: content[name][: int(share * len(content[name]))]})
    if has_state:
        write_files(whole.path, {"trainer_state.json": trainer_state(STEP)})
    else:
        (whole.path / "trainer_state.json").unlink(missing_ok=True)
    assert not look(whole, age).ready


# -- trainer_state.json is the proof ---------------------------------------------------------------------


def written(folder: Path, files: dict[str, bytes], *, state: bool = True) -> Checkpoint:
    """A checkpoint of these files, below folders too, and by default ``trainer_state.json``."""
    checkpoint = write_checkpoint(folder, STEP, {"trainer_state.json": trainer_state(STEP)} if state else {})
    for name, content in files.items():
        write_files((checkpoint.path / name).parent, {Path(name).name: content})
    return checkpoint


PLAIN = {
    "a plain module": {"model.safetensors": safetensors(8)},
    "a plain module in torch's format": {"pytorch_model.bin": torch_zip()},
    "a named adapter": {
        "policy/adapter_model.safetensors": safetensors(8),
        "policy/adapter_config.json": b"{}",
    },
    "two named adapters": {
        "policy/adapter_model.safetensors": safetensors(8),
        "critic/adapter_model.bin": torch_zip(),
    },
    "FSDP shards": {"pytorch_model_fsdp_0/.metadata": b"x", "pytorch_model_fsdp_0/__0_0.distcp": b"x"},
    "FSDP in one file": {"pytorch_model_fsdp.bin": torch_zip()},
    "weights under a name of one's own": {"policy_net.safetensors": safetensors(8)},
    "weights that no format tells of": {"weights.pt": b"anything"},
}


@pytest.mark.parametrize("files", PLAIN.values(), ids=PLAIN)
def test_trainer_state_proves_whatever_the_weights_are_called_without_a_config(tmp_path, files):
    assert look(written(tmp_path, files)).name == COMPLETE


@pytest.mark.parametrize("files", PLAIN.values(), ids=PLAIN)
def test_without_trainer_state_the_same_has_to_settle(tmp_path, files):
    checkpoint = written(tmp_path, files, state=False)
    assert look(checkpoint, QUIET_SECONDS - 1).name == SETTLING
    assert look(checkpoint, QUIET_SECONDS).name == QUIET


CUT = {
    "a named adapter": "policy/adapter_model.safetensors",
    "deep below": "a/b/c/model.safetensors",
    "beside whole weights": "value_head.safetensors",
}


@pytest.mark.parametrize("name", CUT.values(), ids=CUT)
def test_each_container_of_weights_must_be_whole_wherever_it_is(tmp_path, name):
    checkpoint = written(tmp_path, {"model.safetensors": safetensors(8), name: safetensors(64)[:-1]})
    verdict = look(checkpoint, LONG)
    assert verdict.name == PARTIAL
    assert name in verdict.evidence[0]


def test_a_torch_file_below_a_folder_must_have_its_directory(tmp_path):
    verdict = look(written(tmp_path, {"critic/adapter_model.bin": torch_zip()[:-10]}), LONG)
    assert verdict == Verdict(
        PARTIAL, ("critic/adapter_model.bin is a zip without its directory (still being written?)",)
    )


def test_fsdp_shards_without_their_metadata_are_partial(tmp_path):
    verdict = look(written(tmp_path, {"pytorch_model_fsdp_0/__0_0.distcp": b"x"}), LONG)
    assert verdict == Verdict(PARTIAL, ("pytorch_model_fsdp_0/.metadata, written last, is missing",))


def test_with_a_proof_and_no_weights_at_all_a_checkpoint_settles(tmp_path):
    checkpoint = written(tmp_path, {"config.json": CONFIG})
    assert look(checkpoint, 0).name == SETTLING
    assert look(checkpoint, QUIET_SECONDS).name == QUIET


def test_the_state_of_the_training_is_not_weights(tmp_path):
    half = {"optimizer.bin": b"PK", "optimizer_0/__0_0.distcp": b"x", "rng_state_0.pth": b"PK"}
    assert look(written(tmp_path, {"model.safetensors": safetensors(8), **half})).name == COMPLETE


def test_the_marker_of_a_job_that_is_being_ended_proves_that_a_checkpoint_is_incomplete(tmp_path):
    checkpoint = with_files(tmp_path, **{"checkpoint-is-incomplete.txt": b""})
    verdict = look(checkpoint, LONG)
    assert verdict.name == PARTIAL
    assert "checkpoint-is-incomplete.txt is there" in verdict.evidence[0]


# -- weights that hold nothing ---------------------------------------------------------------------------

HOLLOW = {
    "no tensors": {"model.safetensors": safetensors()},
    "all tensors empty": {"model.safetensors": safetensors(0, 0, 0)},
    "an adapter": {"adapter_model.safetensors": safetensors(0, 0), "adapter_config.json": b"{}"},
    "a named adapter": {"policy/adapter_model.safetensors": safetensors(0, 0)},
    "a torch file": {"pytorch_model.bin": torch_zip(0, 0, 0)},
    "an adapter in torch's format": {"adapter_model.bin": torch_zip(0)},
    "norms and biases whole": {
        "model.safetensors": named_safetensors(norm=64, bias=8, up__weight=0, down__weight=0)
    },
    "few of many": {
        "model.safetensors": named_safetensors(**{f"bias{n}": 8 for n in range(40)}, embed__weight=0)
    },
}


@pytest.mark.parametrize("files", HOLLOW.values(), ids=HOLLOW)
@pytest.mark.parametrize("state", [True, False])
def test_weights_that_were_not_gathered_are_partial_with_the_setting_that_gathers_them(
    tmp_path, files, state
):
    verdict = look(written(tmp_path, {"config.json": b"{}", **files}, state=state), LONG)
    assert verdict.name == PARTIAL
    (said,) = [fact for fact in verdict.evidence if "stage3_gather_16bit_weights_on_model_save" in fact]
    assert "zero3_save_16bit_model" in said
    assert "model" in said.partition(" ")[0]


def test_the_reason_counts_the_tensors(tmp_path):
    said = look(written(tmp_path, {"model.safetensors": safetensors(0, 0, 0)})).evidence
    assert any(
        fact.startswith("model.safetensors holds no weights: 3 of 3 tensors are empty") for fact in said
    )


def index_of(*names: str) -> bytes:
    return json.dumps({"weight_map": {str(place): name for place, name in enumerate(names)}}).encode()


def test_shards_that_are_all_empty_are_partial(tmp_path):
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files = {"model.safetensors.index.json": index_of(*shards), **dict.fromkeys(shards, safetensors(0))}
    assert look(written(tmp_path, files), LONG).name == PARTIAL


def test_one_shard_without_a_tensor_of_its_own_is_no_fault(tmp_path):
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files = {"model.safetensors.index.json": index_of(*shards), shards[0]: safetensors(8, 8)}
    assert look(written(tmp_path, {**files, shards[1]: safetensors()})).name == COMPLETE


def test_a_few_empty_buffers_among_weights_are_no_fault(tmp_path):
    content = named_safetensors(a__weight=8, b__weight=8, c__weight=8, d__weight=8, cache=0)
    assert look(written(tmp_path, {"model.safetensors": content})).name == COMPLETE


def test_a_torch_file_that_holds_no_tensors_and_no_weights_by_its_name_is_no_fault(tmp_path):
    files = {"model.safetensors": safetensors(8), "extra/progress.pt": torch_zip(0)}
    assert look(written(tmp_path, files)).name == COMPLETE


SHARDS = {
    "config.json": b"{}",
    "latest": b"global_step495",
    "zero_to_fp32.py": b"",
    "rng_state_0.pth": torch_zip(),
    "rng_state_1.pth": torch_zip(),
    "global_step495/zero_pp_rank_0_mp_rank_00_model_states.pt": torch_zip(),
    "global_step495/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": torch_zip(),
    "global_step495/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": torch_zip(),
}


@pytest.mark.parametrize("weights", [{}, {"model.safetensors": safetensors(0, 0)}], ids=["none", "empty"])
def test_deepspeeds_shards_are_the_weights_if_no_others_are_there(tmp_path, weights):
    verdict = look(written(tmp_path, {**SHARDS, **weights}))
    assert verdict.name == COMPLETE
    assert "the weights are DeepSpeed's shards in global_step495" in verdict.evidence


def without_shards() -> dict[str, bytes]:
    return {name: content for name, content in SHARDS.items() if not name.startswith("global_step")}


def test_shards_that_latest_names_and_are_gone_prove_a_checkpoint_without_weights(tmp_path):
    state = {"trainer_state.json": json.dumps({"global_step": STEP}).encode(), "training_args.bin": b"x"}
    verdict = look(written(tmp_path, {**without_shards(), **state}), LONG)
    said = "latest names global_step495, DeepSpeed's folder of the weights, which is missing"
    assert verdict == Verdict(PARTIAL, (said,))


def test_shards_that_were_removed_beside_whole_weights_are_missed_by_nobody(tmp_path):
    state = {"trainer_state.json": json.dumps({"global_step": STEP}).encode(), "training_args.bin": b"x"}
    files = {**without_shards(), **state, "model.safetensors": safetensors(8)}
    assert look(written(tmp_path, files)).name == COMPLETE


BROKEN_SHARDS = {
    "no latest": ({"latest": None}, "latest, which names the folder of the shards, is missing"),
    "latest of before": ({"latest": b"global_step330"}, "latest does not name global_step495"),
    "a rank missing": (
        {"global_step495/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": None},
        "global_step495 holds the states of 1 of 2 ranks",
    ),
    "a shard cut": (
        {"global_step495/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": torch_zip()[:-4]},
        "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt is a zip without its directory",
    ),
}


@pytest.mark.parametrize(("changes", "said"), BROKEN_SHARDS.values(), ids=BROKEN_SHARDS)
def test_shards_that_are_not_all_there_are_partial(tmp_path, changes, said):
    files = {name: content for name, content in {**SHARDS, **changes}.items() if content is not None}
    verdict = look(written(tmp_path, files), LONG)
    assert verdict.name == PARTIAL
    assert any(said in fact for fact in verdict.evidence)


def test_shards_beside_whole_weights_are_not_looked_at(tmp_path):
    files = {**SHARDS, "model.safetensors": safetensors(8), "latest": b"global_step330"}
    assert look(written(tmp_path, files)).name == COMPLETE


# -- accelerate ------------------------------------------------------------------------------------------

ACCELERATE = {
    "model.safetensors": safetensors(8),
    "optimizer.bin": torch_zip(),
    "scheduler.bin": torch_zip(),
    "random_states_0.pkl": torch_zip(),
}


def test_what_accelerates_save_state_writes_settles_and_is_then_ready(tmp_path):
    checkpoint = written(tmp_path, ACCELERATE, state=False)
    assert look(checkpoint, QUIET_SECONDS - 1).name == SETTLING
    assert look(checkpoint, QUIET_SECONDS).name == QUIET


@pytest.mark.parametrize("missing", ["random_states_0.pkl", "model.safetensors"])
def test_half_of_what_it_writes_is_never_ready(tmp_path, missing):
    files = {name: content for name, content in ACCELERATE.items() if name != missing}
    assert look(written(tmp_path, files, state=False), LONG).name == PARTIAL


# -- being deleted ---------------------------------------------------------------------------------------

USUAL = companions(trainer_files(STEP))


@pytest.mark.parametrize("missing", ["training_args.bin", "tokenizer.json", "tokenizer_config.json"])
def test_a_checkpoint_that_lacks_what_the_others_have_is_not_complete_and_settles(tmp_path, missing):
    checkpoint = with_files(tmp_path, **{missing: None})
    verdict = look(checkpoint, 0, usual=USUAL)
    assert verdict.name == SETTLING
    assert f"{missing}, which other checkpoints have, is missing (being deleted?)" in verdict.evidence
    assert look(checkpoint, QUIET_SECONDS, usual=USUAL).name == QUIET


def test_a_checkpoint_of_a_trainer_that_never_writes_it_is_complete_without_training_args(tmp_path):
    usual = companions(set(trainer_files(STEP)) - {"training_args.bin"})
    assert look(with_files(tmp_path, **{"training_args.bin": None}), usual=usual).name == COMPLETE


def test_what_only_some_checkpoints_have_of_other_kinds_is_not_missed(tmp_path):
    assert companions({"trainer_state.json", "predictions.json", "README.md", "model.safetensors"}) == set()


def test_a_checkpoint_that_is_not_finished_says_nothing_about_others(tmp_path):
    assert companions({"training_args.bin", "config.json"}) is None


def test_an_only_checkpoint_of_hugging_faces_trainer_must_have_its_training_args(tmp_path):
    state = json.dumps({"global_step": STEP, "is_world_process_zero": True}).encode()
    checkpoint = with_files(tmp_path, **{"training_args.bin": None, "trainer_state.json": state})
    assert look(checkpoint).name == SETTLING
    assert look(with_files(tmp_path / "whole", **{"trainer_state.json": state})).name == COMPLETE


# -- links and permissions -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "modeling_own.py"])
def test_a_link_that_leads_nowhere_is_named_with_its_target(tmp_path, name):
    checkpoint = with_files(tmp_path, **{name: None})
    (checkpoint.path / name).symlink_to("/nowhere/at-all")
    verdict = look(checkpoint, LONG)
    assert verdict.name == PARTIAL
    assert verdict.evidence == (
        f"{name} is a link to /nowhere/at-all, which cannot be found (No such file or directory)",
    )


def test_a_link_to_itself_is_one_that_leads_nowhere(tmp_path):
    checkpoint = with_files(tmp_path, **{"tokenizer.json": None})
    (checkpoint.path / "tokenizer.json").symlink_to("tokenizer.json")
    assert look(checkpoint, LONG).name == PARTIAL


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "notes"])
def test_a_link_that_leads_nowhere_and_that_no_evaluation_needs_does_not_matter(tmp_path, name):
    checkpoint = with_files(tmp_path, **{name: None})
    (checkpoint.path / name).symlink_to("/nowhere/at-all")
    assert look(checkpoint).name == COMPLETE


def test_weights_that_this_user_may_not_read_are_partial_and_say_what_to_do(tmp_path, monkeypatch):
    checkpoint = with_files(tmp_path)
    (checkpoint.path / "model.safetensors").chmod(0o600)
    opened = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    verdict = look(checkpoint)
    assert verdict.name == PARTIAL
    (said,) = verdict.evidence
    assert said.startswith(f"permission denied: model.safetensors (mode 0600, user id {os.getuid()})")
    assert f"chmod -R a+rX {checkpoint.path}" in said


def test_a_folder_of_weights_that_this_user_may_not_list_is_told_too(tmp_path, monkeypatch):
    checkpoint = written(tmp_path, {"policy/adapter_model.safetensors": safetensors(8)})
    scandir = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("policy"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert look(checkpoint).evidence[0].startswith("permission denied: policy (mode ")


# -- changes ---------------------------------------------------------------------------------------------


def test_the_time_of_a_change_is_the_newest_of_the_folder_and_all_below_it(tmp_path):
    checkpoint = with_files(tmp_path)
    inner = checkpoint.path / "global_step495" / "state.pt"
    write_files(inner.parent, {inner.name: b"x"})
    for path in (checkpoint.path, *checkpoint.path.rglob("*")):
        os.utime(path, (1000, 1000))
    assert changed_at(checkpoint.path) == 1000
    os.utime(inner, (2000, 2000))
    assert changed_at(checkpoint.path) == 2000


def test_a_deleted_file_changes_the_time_through_the_folder(tmp_path):
    checkpoint = with_files(tmp_path)
    for path in (*checkpoint.path.iterdir(), checkpoint.path):
        os.utime(path, (1000, 1000))
    (checkpoint.path / "optimizer.pt").unlink()
    assert changed_at(checkpoint.path) > 1000


def test_a_fingerprint_differs_for_another_length_another_time_and_another_file(tmp_path):
    checkpoint = with_files(tmp_path)
    config = checkpoint.path / "config.json"
    os.utime(config, (1000, 1000))
    seen = {fingerprint(checkpoint.path)}
    os.utime(config, (2000, 2000))
    seen.add(fingerprint(checkpoint.path))
    config.write_bytes(b"{  }")
    os.utime(config, (2000, 2000))
    seen.add(fingerprint(checkpoint.path))
    write_files(checkpoint.path / "sub", {"more": b"x"})
    seen.add(fingerprint(checkpoint.path))
    assert len(seen) == 4


def test_a_fingerprint_is_the_same_for_the_same_files(tmp_path):
    checkpoint = with_files(tmp_path)
    assert fingerprint(checkpoint.path) == fingerprint(checkpoint.path)
