"""What a person is told of a ledger, and what keeps a pass from counting as done."""

from __future__ import annotations

import json
from pathlib import Path

from eval_sidecar.ledger.ledger import Delivery, Failure, Ledger, Running
from eval_sidecar.ledger.status import describe, last_error, unfinished
from eval_sidecar.types import DeliveryStatus, Result, digest

_, SENT, CONFIRMED = DeliveryStatus

EMPTY = Ledger("my-model", "eval-1", "my-model-eval")
OOM = Failure("2026-01-02", "out of memory", "x.log", final=True)


def evaluated(ledger: Ledger, step: int, status: str = CONFIRMED, **metrics: float) -> Ledger:
    numbers = metrics or {"HR@10": step / 1000}
    ledger = ledger.evaluated(step, Result(numbers, "metrics.json", digest(numbers), (1, 1)))
    return ledger.with_entry(step, delivery=Delivery(status, digest=digest(numbers)))


def left(ledger: Ledger, *, delivery: bool = True, confirmation: bool = True) -> list[str]:
    return unfinished(ledger, expects_delivery=delivery, expects_confirmation=confirmation)


def test_every_checkpoint_is_counted_where_it_stands():
    ledger = evaluated(evaluated(EMPTY, 10), 20, SENT)
    ledger = evaluated(ledger, 30, "pending").failed(40, OOM).with_entry(50, verdict="gone")
    ledger = ledger.with_entry(60, verdict="abandoned").with_entry(70, verdict="partial")
    ledger = ledger.started(80, Running({"token": "t", "pid": 5, "devices": "0"}, 7.0, "80.log", "p", ()))
    shown = describe(ledger, Path("state.json"))
    names = ("evaluated", "pending", "failed", "gone", "abandoned", "undelivered", "unconfirmed")
    assert [shown[name] for name in names] == [3, 2, 1, 1, 1, 1, 1]
    assert shown["waiting"] == [
        {
            **{"checkpoint": "checkpoint-70", "step": 70, "verdict": "partial", "pinned": False},
            "evictions": [],
        }
    ]
    assert shown["running"][0]["job"] == {"pid": 5, "devices": "0"}


def test_a_checkpoint_that_waits_after_evictions_tells_their_reasons():
    reasons = ("2026-01-01 Slurm job 7: NODE_FAIL", "2026-01-02 Slurm job 8: PREEMPTED")
    (shown,) = describe(EMPTY.with_entry(10, evictions=reasons), Path("state.json"))["waiting"]
    assert shown["evictions"] == list(reasons)


def test_a_description_is_plain_json_and_of_an_empty_ledger_too():
    assert json.loads(json.dumps(describe(EMPTY, Path("state.json"))))["best"] == {}


def test_each_headline_metric_has_a_best_of_its_own():
    ledger = evaluated(EMPTY, 10, **{"HR@10": 0.5, "NDCG@10": 0.1})
    ledger = evaluated(ledger, 20, **{"HR@10": 0.4, "NDCG@10": 0.2})
    best = describe(ledger, Path("state.json"))["best"]
    assert best == {"HR@10": {"step": 10, "value": 0.5}, "NDCG@10": {"step": 20, "value": 0.2}}


def test_the_last_error_is_the_newest_failure_with_its_log():
    older = Failure("2026-01-01", "older", None)
    ledger = EMPTY.failed(10, older).failed(20, OOM).failed(30, older)
    assert last_error(ledger) == "checkpoint-20: out of memory; log: x.log"


def test_a_delivery_that_failed_is_the_last_error_where_no_evaluation_has():
    assert last_error(Ledger("m", "r", "n", problem="no connection")) == "delivery: no connection"


def test_there_is_no_last_error_once_it_is_mended():
    assert last_error(evaluated(EMPTY.failed(10, OOM), 10)) is None


def test_a_pass_is_done_where_everything_is_evaluated_and_confirmed():
    assert left(evaluated(EMPTY, 10)) == []


def test_a_checkpoint_that_is_still_written_does_not_keep_a_pass_from_being_done():
    assert left(EMPTY.with_entry(10, verdict="partial")) == []


def test_a_failed_evaluation_is_named_with_its_reason_and_its_log():
    assert left(EMPTY.failed(10, OOM)) == ["checkpoint-10: evaluation failed: out of memory; log: x.log"]


def test_a_checkpoint_that_was_lost_is_named():
    assert left(EMPTY.with_entry(10, verdict="gone")) == [
        "checkpoint-10: was deleted before it could be evaluated"
    ]


def test_undelivered_points_are_named_where_they_were_to_be_delivered():
    ledger = evaluated(evaluated(EMPTY, 10, "pending"), 20, "pending")
    assert left(ledger) == ["2 points not delivered: checkpoint-10, checkpoint-20"]
    assert left(ledger, delivery=False) == []


def test_unconfirmed_points_are_named_where_they_could_have_been_read_back():
    ledger = evaluated(EMPTY, 10, SENT)
    assert left(ledger) == ["1 points sent, but not confirmed: checkpoint-10"]
    assert left(ledger, confirmation=False) == []
