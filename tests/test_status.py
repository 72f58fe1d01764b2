"""What keeps a pass from counting as done."""

from __future__ import annotations

from eval_sidecar.ledger.ledger import Delivery, Failure, Ledger
from eval_sidecar.ledger.status import unfinished
from eval_sidecar.types import DeliveryStatus, Result, digest

EMPTY = Ledger("my-model", "eval-1", "my-model-eval")
OOM = Failure("2026-01-02", "out of memory", "x.log", final=True)


def evaluated(ledger: Ledger, step: int, status: str = DeliveryStatus.CONFIRMED, **metrics: float) -> Ledger:
    numbers = metrics or {"HR@10": step / 1000}
    ledger = ledger.evaluated(step, Result(numbers, "metrics.json", digest(numbers), (1, 1)))
    return ledger.with_entry(step, delivery=Delivery(status, digest=digest(numbers)))


def left(ledger: Ledger, *, delivery: bool = True, confirmation: bool = True) -> list[str]:
    return unfinished(ledger, expects_delivery=delivery, expects_confirmation=confirmation)


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
    ledger = evaluated(EMPTY, 10, DeliveryStatus.SENT)
    assert left(ledger) == ["1 points sent, but not confirmed: checkpoint-10"]
    assert left(ledger, confirmation=False) == []
