"""Transitions of the ledger: values in, values out, no file anywhere."""

from __future__ import annotations

import pytest

from eval_sidecar.ledger.ledger import CARRIED, Delivery, Entry, Failure, Ledger, Running
from eval_sidecar.types import DeliveryStatus, Result, digest

PENDING, SENT, CONFIRMED = DeliveryStatus

EMPTY = Ledger("my-model", "eval-1", "my-model-eval")
RUNNING = Running({"token": "t"}, 0.0, "x.log", "/checkpoint-10", ())


def result(**metrics: float) -> Result:
    return Result(metrics, "metrics.json", digest(metrics), (1, 1, 1))


def confirmed(ledger: Ledger, step: int) -> Ledger:
    return ledger.with_entry(step, delivery=Delivery(CONFIRMED, digest=ledger.entry(step).result.digest))


def test_a_transition_leaves_the_ledger_that_it_came_from_as_it_was():
    EMPTY.evaluated(10, result(a=1.0))
    assert EMPTY.entries == {}


def test_a_step_that_nobody_has_seen_is_an_empty_entry():
    assert EMPTY.entry(10) == Entry(10)


def test_entries_and_points_come_by_step_however_late_they_arrive():
    ledger = EMPTY.evaluated(30, result(a=3.0)).evaluated(10, result(a=1.0)).with_entry(20, verdict="partial")
    assert [entry.step for entry in ledger.steps()] == [10, 20, 30]
    assert [(point.step, point.checkpoint_name) for point in ledger.points()] == [
        (10, "checkpoint-10"),
        (30, "checkpoint-30"),
    ]


# -- what is pending -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [None, "settling", "partial", "complete", "quiet"])
def test_a_checkpoint_without_a_result_is_pending(verdict):
    assert Entry(10, verdict=verdict).is_pending


@pytest.mark.parametrize("verdict", ["gone", "abandoned"])
def test_a_checkpoint_that_will_never_be_ready_is_not_pending(verdict):
    assert not Entry(10, verdict=verdict).is_pending


def test_what_is_being_evaluated_is_pending_whatever_is_known_of_it():
    assert Entry(10, verdict="gone", result=result(a=1.0), running=RUNNING).is_pending


def test_a_failure_that_is_not_final_leaves_it_pending():
    ledger = EMPTY.started(10, RUNNING).failed(10, Failure("t", "oom"))
    assert (ledger.entry(10).is_pending, ledger.entry(10).has_failed, ledger.entry(10).attempts) == (
        True,
        False,
        1,
    )


def test_a_final_failure_does_not():
    ledger = EMPTY.failed(10, Failure("t", "oom", final=True))
    assert (ledger.entry(10).is_pending, ledger.entry(10).has_failed) == (False, True)


def test_an_interruption_is_as_if_it_was_never_tried():
    before = EMPTY.with_entry(10, verdict="complete")
    assert before.started(10, RUNNING).interrupted(10) == before


# -- clearing --------------------------------------------------------------------------------------------


def test_clearing_forgets_failures_and_attempts_of_the_chosen_steps_alone():
    final = Failure("t", "oom", final=True)
    ledger = EMPTY.failed(10, final).failed(20, final).cleared([10])
    assert ledger.entry(10) == Entry(10)
    assert ledger.entry(20).has_failed


def test_clearing_without_steps_forgets_all():
    final = Failure("t", "oom", final=True)
    ledger = EMPTY.failed(10, final).failed(20, final).cleared()
    assert not any(entry.failure for entry in ledger.steps())


def test_clearing_makes_no_entry_for_a_step_that_nobody_has_seen():
    assert EMPTY.cleared([10]).entries == {}


def test_clearing_keeps_the_result_and_its_delivery():
    ledger = confirmed(EMPTY.evaluated(10, result(a=1.0)), 10)
    assert ledger.cleared() == ledger


# -- what is due -----------------------------------------------------------------------------------------


def test_a_result_is_due_until_it_is_confirmed():
    ledger = EMPTY.evaluated(10, result(a=1.0))
    assert ledger.entry(10).due() == Delivery(PENDING)
    sent = Delivery(SENT, digest=result(a=1.0).digest)
    assert ledger.with_entry(10, delivery=sent).entry(10).due() == sent
    assert confirmed(ledger, 10).due() == []


def test_other_numbers_are_due_as_the_next_revision():
    ledger = confirmed(EMPTY.evaluated(10, result(a=1.0)), 10).evaluated(10, result(a=2.0))
    assert ledger.entry(10).due() == Delivery(PENDING, revision=1)


def test_the_same_numbers_again_are_not_due():
    assert confirmed(EMPTY.evaluated(10, result(a=1.0)), 10).evaluated(10, result(a=1.0)).due() == []


def test_what_is_confirmed_without_a_digest_is_not_due():
    ledger = EMPTY.evaluated(10, result(a=1.0)).with_entry(10, delivery=Delivery(CONFIRMED))
    assert ledger.due() == []


def test_nothing_is_due_of_a_checkpoint_without_a_result():
    assert EMPTY.with_entry(10, delivery=Delivery(SENT)).due() == []


CARRIED_ON = EMPTY.with_entry(10, listed=True, delivery=Delivery(CONFIRMED, via=CARRIED))


def test_numbers_found_for_what_an_older_script_delivered_are_not_due():
    assert CARRIED_ON.evaluated(10, result(a=1.0, b=2.0)).due() == []


def test_more_metrics_than_an_older_script_kept_are_not_due_where_its_own_agree():
    old = Delivery(CONFIRMED, digest=result(a=1.0).digest, via=CARRIED)
    carried = EMPTY.with_entry(10, result=result(a=1.0), delivery=old).evaluated(10, result(a=1.0, b=2.0))
    assert carried.due() == []
    assert carried.entry(10).result.metrics == {"a": 1.0, "b": 2.0}


def test_other_numbers_than_an_older_script_delivered_are_due():
    old = Delivery(CONFIRMED, digest=result(a=1.0).digest, via=CARRIED)
    carried = EMPTY.with_entry(10, result=result(a=1.0), delivery=old)
    assert carried.evaluated(10, result(a=9.0, b=2.0)).entry(10).due() == Delivery(PENDING, revision=1)


# -- an evaluation under way -----------------------------------------------------------------------------


def test_an_evaluation_under_way_keeps_what_it_was_started_with():
    ledger = EMPTY.started(10, RUNNING).submitted(10, {"pid": 7}).followed(10, started_at=5.0, state="runs")
    ended = ledger.ending(10, "took too long", evicted=True).entry(10).running
    assert ended == Running(
        {"pid": 7}, 5.0, "x.log", "/checkpoint-10", (), state="runs", ending="took too long", evicted=True
    )


def test_a_failure_with_weights_that_are_gone_costs_no_attempt():
    ledger = EMPTY.started(10, RUNNING).failed_with_other_weights(10, Failure("", "no"))
    entry = ledger.entry(10)
    assert (entry.running, entry.attempts, entry.failure) == (None, 0, Failure("", "no"))
