"""What the release before this layout of the code wrote is read by this one, and means the same.

The files in ``fixtures/before`` were written by that release itself; never make them again.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from eval_sidecar.delivery.unchanged import UnchangedModels
from eval_sidecar.ledger.ledger import Delivery, Failure, Ledger, Running
from eval_sidecar.ledger.provenance import read_provenance
from eval_sidecar.ledger.store import LedgerStore, load
from eval_sidecar.manifest.manifest import load_manifest
from eval_sidecar.manifest.receipt import read_parts, read_receipt
from eval_sidecar.transfer import PackPlan, find_bundle, pack, unpack
from eval_sidecar.transfer.brought import read_brought
from eval_sidecar.types import Content, Forced, Origin, Place, digest
from eval_sidecar.types import DeliveryStatus as Status
from transfer_files import read_tree

BEFORE = Path(__file__).parent / "fixtures" / "before"
MODEL, RUN = "Games-grec-sft-qwen4B-4-256-dsz0", "eval-b7617f0919dff467a6e8"
SETTINGS = {"command": "python3 eval.py", "num_beams": 20, "seed": 42}
PLACE = Place("gpu-7", f"/data/sft/{MODEL}", "0123abcd")
STEPS = (100, 200, 300, 400, 500)


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    found = load(BEFORE / "ledger.json")
    assert found is not None
    return found


def made_of(letter: str) -> Origin:
    return Origin(letter * 64, "3ee3dab4", "2026-11-01T10:00:00+00:00")


def test_a_ledger_of_before_says_the_same_of_its_model(ledger):
    assert (ledger.model_dir, ledger.run_id, ledger.run_name) == (MODEL, RUN, f"{MODEL}-eval")
    assert (ledger.provable, ledger.session_open, ledger.table_due, ledger.moved) == (True, True, True, False)
    assert (ledger.problem, ledger.busy) == ("x: the server did not answer", "no GPU is free")
    assert (ledger.where, ledger.places) == ("https://wandb.example/run", (PLACE,))
    assert ledger.settings == {"3ee3dab4": SETTINGS}
    assert ledger.forced == Forced(1, "3ee3dab4", True)
    assert ledger.writer is not None
    assert (ledger.writer["pid"], ledger.writer["host"], ledger.writer["command"]) == (4321, "gpu-7", "run")
    assert ledger.extra == {"note": "of a user"}
    assert sorted(ledger.entries) == [100, 200, 300, 400, 600, 700, 800, 900]


@pytest.mark.parametrize(
    ("step", "letter", "metrics", "delivery"),
    [
        (
            100,
            "a",
            (0.1, 0.05),
            Delivery(Status.CONFIRMED, 1, "ca55db75d564977f", 7, 1_700_000_000.5, "read back"),
        ),
        (200, "b", (0.2, 0.1), Delivery(Status.SENT, 0, "089e9cac8e4e01e1", None, 1_700_000_100.0)),
        (300, "c", (0.3, 0.15), Delivery(Status.PENDING)),
        (400, "d", (0.4, 0.2), Delivery(Status.CONFIRMED, 0, "b7d9e6472e935dad", 9, 1_700_000_200.0)),
    ],
)
def test_a_result_of_before_keeps_its_numbers_its_weights_and_its_delivery(
    ledger, step, letter, metrics, delivery
):
    entry = ledger.entries[step]
    assert entry.result is not None
    assert entry.result.metrics == dict(zip(("HR@10", "NDCG@10"), metrics))
    assert entry.result.path == f"results/{MODEL}/checkpoint-{step}/metrics.json"
    assert entry.result.digest == digest(entry.result.metrics)
    assert entry.result.stamp[1] == 1_700_000_000_000_000_000 + step
    assert entry.origin == made_of(letter)
    assert entry.delivery == delivery


def test_what_is_due_in_a_ledger_of_before_is_due_still(ledger):
    assert {entry.step: entry.due().status for entry in ledger.due()} == {
        200: Status.SENT,
        300: Status.PENDING,
    }
    assert [entry.step for entry in ledger.steps() if entry.processed] == [100, 200, 300]
    assert [entry.step for entry in ledger.steps() if entry.is_superseded] == [400]
    assert [entry.step for entry in ledger.steps() if entry.is_pending] == [400, 600, 800]
    assert [entry.step for entry in ledger.steps() if entry.has_failed] == [700]


def test_evidence_and_weights_of_before_are_kept(ledger):
    first, waiting = ledger.entries[100], ledger.entries[800]
    assert (first.verdict, first.evidence) == ("complete", ("trainer_state.json says step 100",))
    assert (first.first_seen, first.round) == ("2026-11-01T09:00:00+00:00", 1)
    assert first.content == Content("a" * 64, (11, 22, 33), "w" * 40, "2026-11-01T09:00:00+00:00")
    assert ledger.entries[300].result.left_out == ("revision (the sidecar's own name)",)
    assert (waiting.verdict, waiting.first_seen) == ("settling", "2026-11-01T12:00:00+00:00")
    assert waiting.evidence == ("model-00002-of-00002.safetensors is missing",)
    assert [ledger.entries[step].verdict for step in (200, 600, 700, 900)] == [
        "quiet",
        "complete",
        "complete",
        "gone",
    ]


def test_an_evaluation_that_was_running_is_found_again(ledger):
    entry = ledger.entries[600]
    assert (entry.pinned, entry.attempts, entry.evictions) == (True, 0, ("preempted on gpu-7",))
    assert entry.running == Running(
        handle={"kind": "local", "pid": 99, "started": "12.5"},
        started_at=1_700_000_300.0,
        log="logs/600.log",
        path=f"/data/sft/{MODEL}/checkpoint-600",
        fingerprint=(("model.safetensors", 1024, 5),),
        before=(10, 20),
        metrics="results/m.json",
        state="RUNNING",
        log_size=17,
        origin=made_of("f"),
    )


def test_a_failure_of_before_is_not_tried_again(ledger):
    entry = ledger.entries[700]
    error = "the evaluation ended with exit code 1"
    assert entry.failure == Failure("2026-11-01T11:00:00+00:00", error, "logs/700.log", True)
    assert entry.attempts == 3


def test_a_ledger_of_before_is_the_same_after_it_is_saved(ledger, tmp_path):
    path = tmp_path / "ledger.json"
    LedgerStore(path, Ledger(MODEL, RUN, "")).update(lambda _: ledger)
    again = load(path)
    assert again is not None
    assert again.entries == ledger.entries


def test_a_ledger_of_the_first_scripts_says_the_same():
    ledger = load(BEFORE / "ledger_v1.json")
    assert ledger is not None
    assert (ledger.model_dir, ledger.run_id) == ("my-model", "eval-0123456789abcdef0123")
    assert ledger.extra == {"model_config_key": "0123"}
    entry = ledger.entries[495]
    assert entry.result.metrics == {"HR@1": 0.1, "HR@10": 0.25, "NDCG@10": 0.2}
    assert (entry.delivery.status, entry.due()) == (Status.CONFIRMED, None)
    assert ledger.entries[990].processed
    failed = ledger.entries[1485]
    assert (failed.failure.error, failed.attempts, failed.has_failed) == ("exit code 1", 0, False)


def test_a_manifest_of_before_names_the_same_run():
    (spec,) = load_manifest(BEFORE / "manifest.json")
    assert (spec.model_dir, spec.run_id, spec.run_name) == (MODEL, RUN, f"{MODEL}-eval")
    assert (spec.dataset, spec.cb_setting, spec.eval_split) == ("Games_grec", "cb256", "test")
    assert (spec.project, spec.entity) == ("MIMIGenRec-Eval", None)
    assert (spec.seed, spec.num_beams, spec.sid_levels) == (42, 50, -1)


def test_a_receipt_of_before_confirms_the_same():
    path = BEFORE / "receipt.json"
    confirmed = read_receipt(path).models[MODEL]
    assert confirmed.run_id == RUN
    assert confirmed.digests == {"100": "ca55db75d564977f", "400": "b7d9e6472e935dad"}
    assert read_parts(path)[MODEL]["confirmed"]["100"] == {"digest": "ca55db75d564977f", "revision": 1}


def test_the_provenance_of_before_is_that_of_its_numbers():
    found = read_provenance(BEFORE / "metrics.json")
    assert found is not None
    assert (found.model, found.step, found.origin) == (MODEL, 100, made_of("a"))
    assert (found.places, found.settings) == ((PLACE,), SETTINGS)


def test_what_the_last_pass_of_before_saw_is_known(tmp_path):
    path = shutil.copy(BEFORE / "seen.json", tmp_path / ".seen")
    seen = UnchangedModels(Path(path))
    state_file = tmp_path / f"{MODEL}_5bac4fb5fe2e.json"
    assert list(seen.waiting(state_file, tmp_path / "not looked into")) == [1000]


@pytest.mark.parametrize("name", ["bundle.tar.gz", "parts.tar.gz"])
def test_a_bundle_of_before_whole_or_in_parts_brings_the_same_files(name, tmp_path):
    report = unpack(find_bundle([str(BEFORE / name)], []), tmp_path / "results")
    files = read_tree(tmp_path / "results")
    assert sorted(files) == sorted(
        [
            ".wandb_eval_manifest.json",
            f"{MODEL}/checkpoint-100/provenance.json",
            *(f"{MODEL}/checkpoint-{step}/metrics.json" for step in STEPS),
        ]
    )
    assert files[f"{MODEL}/checkpoint-100/metrics.json"] == (BEFORE / "metrics.json").read_bytes()
    assert files[".wandb_eval_manifest.json"] == (BEFORE / "manifest.json").read_bytes()
    assert (len(report.new), report.same, report.index.kind) == (7, 0, "full")
    time = (tmp_path / "results" / MODEL / "checkpoint-200" / "metrics.json").stat().st_mtime_ns
    assert time == 1_700_000_000_000_000_200


def test_an_incremental_bundle_of_before_brings_what_its_receipt_did_not_confirm(tmp_path):
    report = unpack(find_bundle([str(BEFORE / "incremental.tar.gz")], []), tmp_path)
    expected = [f"{MODEL}/checkpoint-{step}/metrics.json" for step in (200, 300, 500)]
    assert sorted(report.new) == [".wandb_eval_manifest.json", *expected]
    assert report.index.kind == "incremental"


def test_results_that_were_unpacked_before_know_where_they_came_from(tmp_path):
    shutil.copy(BEFORE / "unpacked.json", tmp_path / ".unpacked.json")
    brought = read_brought(tmp_path)
    metrics = f"{MODEL}/checkpoint-100/metrics.json"
    assert brought.is_own(metrics, hashlib.sha256((BEFORE / "metrics.json").read_bytes()).hexdigest())
    assert not brought.is_own(metrics, "0" * 64)
    assert (brought.full.id, brought.full.newest_ns) == ("22d44686c7d0fe0e", 1_700_000_000_000_000_500)
    assert len(brought.files) == 7


def test_an_archive_that_is_packed_now_is_newer_than_those_of_before(tmp_path):
    root, out = tmp_path / "results", tmp_path / "out"
    unpack(find_bundle([str(BEFORE / "bundle.tar.gz")], []), root)
    shutil.copy(BEFORE / "pack_history.json", root / ".pack_history.json")
    (root / MODEL / "checkpoint-100" / "metrics.json").write_text('{"HR@10": 0.9}')
    out.mkdir()
    (archive,) = pack(PackPlan(root, root / ".wandb_eval_manifest.json", out)).archive
    other = tmp_path / "other"
    unpack(find_bundle([str(archive)], []), other)
    report = unpack(find_bundle([str(BEFORE / "bundle.tar.gz")], []), other)
    assert report.kept == [f"{MODEL}/checkpoint-100/metrics.json"]
    assert read_tree(other)[f"{MODEL}/checkpoint-100/metrics.json"] == b'{"HR@10": 0.9}'
