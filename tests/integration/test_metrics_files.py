"""What people's ``metrics.json`` hold, on the real command line: what is read, and how the rest is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox import Repository

pytest.importorskip("wandb")
from wandb_server import WandbServer

pytestmark = pytest.mark.wandb
MODEL = "Instruments-grec-sft-qwen4B-4-256-dsz0"
VERIFY = ("python", "eval_wandb_sidecar.py", "verify")


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture
def local(tmp_path: Path, server: WandbServer) -> Iterator[Repository]:
    """The machine with internet, and a manifest of one model."""
    made = Repository(tmp_path / "GenRec", model=MODEL)
    made.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    yield made
    made.clean_up()


def write(repository: Repository, step: int, content: bytes) -> None:
    path = repository.metrics(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def upload(repository: Repository) -> str:
    assert repository.execute("python", "eval_wandb_sidecar.py", "prepare-manifest").returncode == 0
    done = repository.sidecar("once", "--results-root", "results")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(server: WandbServer) -> dict[int, dict[str, float]]:
    (run,) = server.runs.values()
    own = ("eval/checkpoint_name", "eval/metrics_path", "eval/checkpoint_table")
    return {
        row["checkpoint_step"]: {
            key: value for key, value in row.items() if key.startswith("eval/") and key not in own
        }
        for row in run.rows
    }


def test_every_number_that_can_be_read_is_delivered_and_the_rest_is_named_once(
    local: Repository, server: WandbServer
) -> None:
    write(local, 100, '{"HR@10": 0.25, "model": "a"}'.encode("utf-16"))
    write(local, 200, b'\xef\xbb\xbf{"HR@10": "0.5", "test": {"NDCG@10": 0.125}, "model": "a"}')
    write(local, 300, b'{"HR@10": 0.75, "loss": NaN, "date": 1700000000.5}')
    said = upload(local)
    assert rows(server) == {
        100: {"eval/HR@10": 0.25},
        200: {"eval/HR@10": 0.5, "eval/test/NDCG@10": 0.125},
        300: {"eval/HR@10": 0.75},
    }
    assert said.count("not taken as metrics: model (text)") == 1
    assert said.count("checkpoint-300: not taken as metrics: loss (nan, not finite), date (a timestamp)") == 1
    assert "not taken" not in upload(local)
    assert local.execute(*VERIFY).returncode == 0


def test_a_metric_with_the_name_of_a_key_of_ours_costs_neither_its_point_nor_verify(
    local: Repository, server: WandbServer
) -> None:
    ours = ("checkpoint_step", "checkpoint_name", "metrics_path", "revision", "checkpoint_table")
    other = ("checkpoint_index", "epoch_progress", "delivered_points", "_step", "_timestamp", "last_step")
    write(local, 100, json.dumps({"HR@10": 0.25, **dict.fromkeys((*ours, *other), 7)}).encode())
    said = upload(local)
    assert rows(server) == {100: {"eval/HR@10": 0.25, **{f"eval/{name}": 7 for name in other}}}
    assert all(f"{name} (the sidecar's own name)" in said for name in ours)
    assert local.execute(*VERIFY).returncode == 0
    assert local.execute(*VERIFY).stdout.count("1 confirmed") == 1
    upload(local)
    assert list(rows(server)) == [100]


def test_a_ledger_of_before_that_counted_such_a_metric_is_verified_too(
    local: Repository, server: WandbServer
) -> None:
    write(local, 100, b'{"HR@10": 0.25, "checkpoint_step": 100}')
    upload(local)
    (path,) = (local.root / "state/wandb_eval_uploader").glob("*.json")
    old = path.read_text()
    wrong = json.loads(old)["checkpoints"]["100"]["digest"]
    path.write_text(old.replace(wrong, "0123456789abcdef"))
    done = local.execute(*VERIFY)
    assert done.returncode == 0, done.stdout


def test_a_diverged_loss_beside_good_numbers_costs_no_evaluation_and_explain_names_it(
    repository: Repository,
) -> None:
    repository.checkpoint(100)
    content = '{"HR@10": 0.25, "loss": NaN, "note": "x"}'
    repository.hook(f'mkdir -p "$result"; printf \'{content}\' >"$result/metrics.json"; exit 0')
    done = repository.once()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checkpoint-100: not taken as metrics: loss (nan, not finite), note (text)" in done.stderr
    assert repository.calls == ["checkpoint-100"]
    explained = repository.sidecar("explain", "--sft-root", str(repository.model_dir), "100").stdout
    assert "HR@10 0.25" in explained
    assert "left out     loss (nan, not finite)" in explained
    assert "left out     note (text)" in explained
