"""`once`, `pack` and `verify` name what looks like a result and is not taken, and do not end with 0."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox import Repository

MODEL = "Games-sft-qwen4B-4-64-dsz0"
PACK = ("python", "eval_wandb_sidecar.py", "pack")


def put(repository: Repository, name: str, content: str = '{"HR@10": 0.5}') -> Path:
    path = repository.root / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def not_done(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("NOT DONE")]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path / "GenRec", model=MODEL)
    put(made, f"{MODEL}/checkpoint-1/metrics.json")
    yield made
    made.clean_up()


def test_a_pipe_in_the_place_of_a_result_is_not_waited_for(local: Repository) -> None:
    path = put(local, f"{MODEL}/checkpoint-2/metrics.json")
    path.unlink()
    os.mkfifo(path)
    prepare(local)
    done = local.sidecar("once", "--results-root", "results", "--disable-wandb")
    assert done.returncode == 1
    assert "checkpoint-2/metrics.json: cannot be read (not a regular file)" in done.stderr


def prepare(repository: Repository) -> None:
    assert repository.execute("python", "eval_wandb_sidecar.py", "prepare-manifest").returncode == 0


@pytest.mark.parametrize(
    "name",
    [
        "org/model/checkpoint-100/metrics.json",
        f"{MODEL}/step_100/metrics.json",
        f"{MODEL}/checkpoint-2/results.json",
    ],
)
def test_uploading_and_packing_name_it_and_do_not_end_with_0(local: Repository, name: str) -> None:
    prepare(local)
    once = ("once", "--results-root", "results", "--disable-wandb")
    assert local.sidecar(*once).returncode == 0
    path = put(local, name)
    done = local.sidecar(*once)
    assert done.returncode == 1
    (line,) = not_done(done.stderr)
    where = path.parents[1] if name.startswith("org") else path
    assert f"{where}: looks like a result and is not taken" in line
    packed = local.execute(*PACK)
    assert packed.returncode == 1 and not_done(packed.stderr) == [line]
    assert list(local.root.glob("results_sync_*")), "what is all right is packed all the same"


def test_a_model_that_the_manifest_does_not_list_is_named_by_an_upload_of_all(local: Repository) -> None:
    prepare(local)
    put(local, "Late-model/checkpoint-1/metrics.json")
    done = local.sidecar("once", "--results-root", "results", "--disable-wandb")
    assert done.returncode == 1
    assert "Late-model: not in " in done.stderr and "run prepare-manifest" in done.stderr
    chosen = local.sidecar("once", "--results-root", "results", "--disable-wandb", "--model-filter", MODEL)
    assert chosen.returncode == 0
    prepare(local)
    assert local.sidecar("once", "--results-root", "results", "--disable-wandb").returncode == 0


@pytest.mark.parametrize("incremental", [(), ("--incremental",)])
def test_a_result_that_is_too_large_to_be_packed_is_not_left_out_in_silence(
    local: Repository, incremental: tuple[str, ...]
) -> None:
    put(local, f"{MODEL}/checkpoint-2/metrics.json", '{"HR@10": 0.5, "x": "' + "x" * (13 << 20) + '"}')
    done = local.execute(*PACK, *incremental)
    assert done.returncode == 1
    (line,) = not_done(done.stderr)
    assert f"{MODEL}/checkpoint-2/metrics.json: a result of more than" in line
    assert "--max-file-size" in line
    assert local.execute(*PACK, *incremental, "--max-file-size", "20M").returncode == 0


@pytest.mark.parametrize("incremental", [(), ("--incremental",)])
@pytest.mark.parametrize("place", ["Linked", f"{MODEL}/checkpoint-2", f"{MODEL}/checkpoint-1/metrics.json"])
def test_a_result_that_is_a_link_to_elsewhere_is_not_left_out_in_silence(
    local: Repository, place: str, incremental: tuple[str, ...]
) -> None:
    (local.root / ".wandb_eval_receipt.json").write_text('{"version": 1, "models": {}}')
    incremental = (*incremental, "--receipt", ".wandb_eval_receipt.json") if incremental else ()
    elsewhere = put(local, "../disk/checkpoint-2/metrics.json")
    path = local.root / "results" / place
    path.unlink(missing_ok=True)
    depth = place.count("/")
    path.symlink_to([elsewhere.parents[1], elsewhere.parent, elsewhere][depth])
    put(local, f"{MODEL}/checkpoint-3/metrics.json")
    done = local.execute(*PACK, *incremental)
    assert done.returncode == 1
    assert f"{place}: is a link, which is not followed" in "".join(not_done(done.stderr))


def test_an_incremental_archive_without_an_unreadable_result_does_not_end_with_0(local: Repository) -> None:
    (local.root / ".wandb_eval_receipt.json").write_text('{"version": 1, "models": {}}')
    put(local, f"{MODEL}/checkpoint-2/metrics.json", "{}")
    done = local.execute(*PACK, "--incremental", "--receipt", ".wandb_eval_receipt.json")
    assert done.returncode == 1
    assert "checkpoint-2: its metrics.json holds no numbers" in "".join(not_done(done.stderr))


def test_watching_once_names_what_lies_beside_its_own_results(repository: Repository) -> None:
    repository.checkpoint(100)
    put(repository, f"{repository.model}/step_200/metrics.json")
    done = repository.once()
    assert done.returncode == 1 and repository.processed == [100]
    (line,) = not_done(done.stderr)
    assert "rename it to checkpoint-200" in line


def test_a_script_that_writes_its_numbers_under_another_name_is_told_so(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.hook('mkdir -p "$result"; echo "{}" >"$result/results.json"; exit 0')
    done = repository.once()
    assert done.returncode == 1
    assert "(there is results.json: the name must be metrics.json)" in done.stderr


def test_verify_does_not_end_with_0_and_a_running_upload_warns_once(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb_server import WandbServer

    local = Repository(tmp_path / "GenRec", model=MODEL)
    try:
        with WandbServer() as server:
            local.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
            put(local, f"{MODEL}/checkpoint-1/metrics.json")
            put(local, f"{MODEL}/step_100/metrics.json")
            prepare(local)
            assert local.sidecar("once", "--results-root", "results").returncode == 1
            done = local.execute("python", "eval_wandb_sidecar.py", "verify")
            assert done.returncode == 1
            assert "1 confirmed" in done.stdout
            assert "step_100/metrics.json: looks like a result" in done.stderr
    finally:
        local.clean_up()
