"""The state file: what older scripts wrote is carried on, and nothing that was known is ever lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from eval_sidecar.errors import StateError
from eval_sidecar.ledger.codec import from_json, to_text
from eval_sidecar.ledger.ledger import Delivery, Entry, Failure, Ledger, Running
from eval_sidecar.ledger.store import LedgerStore, load, open_store
from eval_sidecar.paths import StatePaths
from eval_sidecar.types import Content, DeliveryStatus, Forced, Origin, Place, Result, digest

_, _, CONFIRMED = DeliveryStatus

MODEL, RUN = "my-model", "eval-0123456789abcdef0123"
METRICS = {"HR@1": 0.1, "HR@10": 0.25, "NDCG@10": 0.2}


@pytest.fixture
def path(tmp_path) -> Path:
    return StatePaths(tmp_path / "state").ledger(MODEL, RUN)


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def first_version(**changes: object) -> dict[str, object]:
    """A state file as the first scripts wrote it."""
    row = {"checkpoint_step": 495, "checkpoint_name": "checkpoint-495", "metrics_path": "m.json", **METRICS}
    return {
        "model_dir": MODEL,
        "run_id": RUN,
        "run_name": "my-model-eval",
        "processed_steps": [495],
        "failed_steps": {},
        "table_rows": [row],
        "last_seen_step": 495,
        "last_update_time": "2026-04-28T06:18:11+00:00",
        **changes,
    }


def result(metrics: dict[str, float]) -> Result:
    return Result(metrics, "m.json", digest(metrics), (10, 20, 20))


def opened(path: Path):
    return open_store(path, MODEL, RUN, "my-model-eval")


def save(path: Path, ledger: Ledger) -> LedgerStore:
    store = LedgerStore(path, Ledger(MODEL, RUN, ""))
    store.update(lambda _: ledger)
    return store


# -- names -----------------------------------------------------------------------------------------------


def test_a_state_file_is_named_after_the_model_and_a_hash_that_is_the_same_everywhere(tmp_path):
    assert StatePaths(tmp_path).ledger("m", "eval-1") == tmp_path / "m_0cd663b7598a.json"


# -- older scripts' files --------------------------------------------------------------------------------


def test_what_an_older_file_calls_processed_is_delivered_and_never_due(path):
    ledger = load(put(path, first_version()))
    assert ledger.entry(495).result.metrics == METRICS
    assert ledger.entry(495).delivery.status == CONFIRMED
    assert ledger.due() == []


ROW = {"checkpoint_step": 495, "metrics_path": "m.json"}


@pytest.mark.parametrize(
    "rows",
    [
        [{**ROW, **{f"eval/{name}": value for name, value in METRICS.items()}}],
        [{**ROW, **METRICS, "HR@3": None, "note": "text"}],
        [[495, "checkpoint-495", 0.1, None, None, 0.25, None, None, None, 0.2, "m.json"]],
        {"495": {**ROW, **METRICS}},
    ],
    ids=["prefixed names", "nulls and text", "lists in the table's order", "by step"],
)
def test_rows_of_every_shape_that_was_in_use_give_the_same_numbers(path, rows):
    ledger = load(put(path, first_version(table_rows=rows)))
    assert ledger.entry(495).result.metrics == METRICS
    assert sorted(ledger.entries) == [495]


def test_processed_steps_may_be_text_in_an_older_file(path):
    assert load(put(path, first_version(processed_steps=["495"]))).entry(495).processed


def test_a_processed_step_without_numbers_is_not_evaluated_again(path):
    entry = load(put(path, first_version(table_rows=[]))).entry(495)
    assert (entry.processed, entry.is_pending, entry.result) == (True, False, None)


def test_a_row_of_a_step_that_is_not_processed_is_still_to_be_evaluated(path):
    entry = load(put(path, first_version(processed_steps=[]))).entry(495)
    assert (entry.is_pending, entry.delivery) == (True, None)


@pytest.mark.parametrize(
    "failed",
    [
        {"330": {"time": "t", "error": "out of memory"}},
        {"330": {"failed_at": "t", "reason": "out of memory"}},
        [{"step": 330, "timestamp": "t", "error": "out of memory"}],
        [{"checkpoint_step": 330, "time": "t", "error": "out of memory"}],
    ],
)
def test_failures_of_every_shape_keep_their_reason_and_are_tried_again(path, failed):
    entry = load(put(path, first_version(failed_steps=failed))).entry(330)
    assert entry.failure == Failure("t", "out of memory")
    assert (entry.attempts, entry.is_pending) == (0, True)


@pytest.mark.parametrize(
    ("failed", "error"), [({"330": "oom"}, "oom"), ([330], "no reason was written down")]
)
def test_failures_without_details_are_failures(path, failed, error):
    assert load(put(path, first_version(failed_steps=failed))).entry(330).failure.error == error


def test_an_older_file_without_its_optional_keys_is_read(path):
    ledger = load(put(path, {"version": 1, "run_id": RUN, "processed_steps": [495]}))
    assert (ledger.model_dir, ledger.run_id) == (MODEL, RUN)
    assert ledger.entry(495).processed


def test_an_older_file_with_null_in_its_lists_is_read(path):
    assert (
        load(put(path, first_version(processed_steps=None, failed_steps=None, table_rows=None))).entries == {}
    )


def test_numbers_in_an_older_file_that_no_curve_can_show_do_not_keep_it_from_being_carried_on(path):
    rows = [{**ROW, **METRICS, "loss": float("nan"), "ppl": float("inf")}]
    with opened(put(path, first_version(table_rows=rows, best=float("-inf")))) as store:
        store.update(lambda ledger: ledger.with_entry(500, verdict="partial"))
    assert load(path).entry(495).result.metrics == METRICS


def test_an_older_file_is_carried_on_in_the_new_form_with_what_it_knew(path):
    with opened(put(path, first_version())) as store:
        store.update(lambda ledger: ledger.with_entry(500, verdict="partial"))
    saved = json.loads(path.read_text())
    assert (saved["version"], saved["processed_steps"]) == (2, [495])
    assert load(path).entry(495).delivery.status == CONFIRMED


def test_opening_alone_does_not_touch_the_file(path):
    before = put(path, first_version()).read_bytes()
    with opened(path):
        pass
    assert path.read_bytes() == before


# -- what is kept ----------------------------------------------------------------------------------------


def test_keys_that_this_version_does_not_know_are_kept(path):
    with opened(put(path, first_version(notes={"a": [1]}, model_config_key="0123"))) as store:
        store.update(lambda ledger: ledger.with_entry(500, verdict="partial"))
    saved = json.loads(path.read_text())
    assert (saved["notes"], saved["model_config_key"]) == ({"a": [1]}, "0123")


def test_the_keys_of_the_first_scripts_are_still_written(path):
    ledger = Ledger(MODEL, RUN, "my-model-eval").evaluated(495, result(METRICS))
    ledger = ledger.failed(500, Failure("t", "oom", "x.log"))
    saved = json.loads(to_text(ledger, {}))
    assert saved["processed_steps"] == [495]
    assert saved["failed_steps"] == {
        "500": {"time": "t", "error": "oom", "log": "x.log", "final": False, "attempts": 1}
    }
    assert saved["table_rows"] == [
        {"checkpoint_step": 495, "checkpoint_name": "checkpoint-495", "metrics_path": "m.json", **METRICS}
    ]
    assert (saved["run_id"], saved["run_name"], saved["last_seen_step"]) == (RUN, "my-model-eval", 500)


def test_a_step_taken_out_of_processed_steps_is_evaluated_again_and_what_was_sent_is_remembered(path):
    sent = Delivery(CONFIRMED, digest=digest(METRICS), index=495)
    save(path, Ledger(MODEL, RUN, "").evaluated(495, result(METRICS)).with_entry(495, delivery=sent))
    put(path, {**json.loads(path.read_text()), "processed_steps": []})
    entry = load(path).entry(495)
    assert (entry.is_pending, entry.result, entry.delivery) == (True, None, sent)


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            "[" * 100_000,
            '{"processed_steps": [1]}',
            '{"run_id": "r", "version": "new"}',
        ),
        *('{"run_id": "r", "processed_steps": ["x"]}', '{"run_id": "r", "checkpoints": [1]}'),
        '{"run_id": "r", "processed_steps": [1], "table_rows": [[1, "", 1%s]]}' % ("0" * 400),
    ],
    ids=range(10),
)
def test_a_corrupt_file_is_kept_under_another_name_and_the_message_says_which(path, content):
    put(path, content)
    with pytest.raises(StateError, match=r"the state file is corrupt .* kept as .*\.json\.corrupt"):
        load(path)
    assert not path.exists()
    assert path.with_name(path.name + ".corrupt").read_text() == content


def test_a_second_corrupt_file_does_not_overwrite_the_first(path):
    for content in ("first", "second"):
        put(path, content)
        with pytest.raises(StateError):
            load(path)
    kept = sorted(file.name for file in path.parent.iterdir())
    assert kept == [f"{path.name}.corrupt", f"{path.name}.corrupt-2"]
    assert (path.parent / kept[0]).read_text() == "first"


def test_after_a_corrupt_file_the_next_start_begins_anew(path):
    put(path, "corrupt")
    with pytest.raises(StateError), opened(path):
        pass
    with opened(path) as store:
        assert store.ledger.entries == {}


def test_a_reader_that_only_looks_leaves_a_corrupt_file_where_it_is(path):
    put(path, "corrupt")
    with pytest.raises(StateError, match="corrupt"):
        load(path, keep_corrupt=True)
    assert path.read_text() == "corrupt"


def test_a_corrupt_file_that_cannot_be_renamed_is_one_clear_error(path, monkeypatch):
    put(path, "corrupt")

    def refuse(self, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StateError, match="Read-only file system"):
        load(path)
    assert path.read_text() == "corrupt"


def test_a_file_of_a_newer_version_is_refused_and_untouched(path):
    before = put(path, {**first_version(), "version": 3, "new": {}}).read_bytes()
    with pytest.raises(StateError, match="is of version 3, this program supports up to 2"), opened(path):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("key", ["model_dir", "run_id"])
def test_a_file_about_another_model_or_run_is_refused_and_untouched(path, key):
    before = put(path, first_version(**{key: "other"})).read_bytes()
    with pytest.raises(StateError, match="was it copied"), opened(path):
        pass
    assert path.read_bytes() == before


def test_a_state_file_that_is_a_folder_is_one_clear_error(path):
    path.mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be read"):
        load(path)


def test_a_missing_file_is_no_ledger(path):
    assert load(path) is None


# -- weights, places, settings --------------------------------------------------------------------------


def full_ledger() -> Ledger:
    """One that has everything that tells what its numbers belong to."""
    old, new = (Origin(name * 16, "12345678", "2026-11-22T10:00:00+00:00") for name in "ab")
    content = Content("b" * 16, (1, 2, 3), "c" * 16, "2026-11-22T11:00:00+00:00")
    result = Result({"HR@10": 0.5}, "/r/metrics.json", digest({"HR@10": 0.5}), (1, 2, 3))
    running = Running({"pid": 1}, 1.0, "/log", "/checkpoint", (("a", 1, 2),), origin=new)
    return Ledger(
        "my-model",
        "run",
        "name",
        entries={
            100: Entry(100, result=result, origin=old, content=content, running=running, round=2),
            200: Entry(200, result=result, origin=new, content=content),
        },
        places=(Place("here", "/new", "m"), Place("there", "/old")),
        moved=True,
        settings={"12345678": {"num_beams": 50}},
        forced=Forced(2, "12345678", True),
    )


def test_what_numbers_belong_to_survives_the_file(tmp_path):
    ledger = full_ledger()
    assert from_json(json.loads(to_text(ledger)), tmp_path / "x.json") == ledger


def test_a_result_of_weights_that_are_gone_is_not_processed_for_older_versions_either():
    assert json.loads(to_text(full_ledger()))["processed_steps"] == [200]


def test_older_versions_find_no_key_in_an_evaluation_under_way_that_they_would_stumble_over():
    running = json.loads(to_text(full_ledger()))["checkpoints"]["100"]["running"]
    assert set(running) == {"handle", "started_at", "log", "path", "fingerprint", "evicted", "log_size"}
