"""The facts about a model that every screen shows, and the models that there are to report on."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from eval_sidecar.errors import UsageError
from eval_sidecar.ledger.codec import to_text
from eval_sidecar.ledger.ledger import Delivery, Failure, Ledger, Running
from eval_sidecar.ledger.provenance import Provenance, write_provenance
from eval_sidecar.ledger.settings import key_of
from eval_sidecar.report.export import csv_rows, model_json, unreadable_json
from eval_sidecar.report.facts import ModelFacts, model_facts
from eval_sidecar.report.find import find_models
from eval_sidecar.types import Content, DeliveryStatus, Origin, Result, digest

EMPTY = Ledger("my-model", "eval-1", "my-model-eval")
OOM = Failure("2026-01-02", "out of memory", "x.log", final=True)
NOW = 1_800_000_000.0


def evaluated(ledger: Ledger, step: int, status: str = DeliveryStatus.CONFIRMED, **metrics: float) -> Ledger:
    numbers = metrics or {"HR@10": step / 1000}
    ledger = ledger.evaluated(step, Result(numbers, "metrics.json", digest(numbers), (1, 1, 1)))
    return ledger.with_entry(step, delivery=Delivery(status, digest=digest(numbers)))


def facts(ledger: Ledger) -> ModelFacts:
    return model_facts(ledger, Path("state.json"), NOW)


def described(ledger: Ledger) -> dict[str, Any]:
    return model_json(facts(ledger))


# -- counts --------------------------------------------------------------------------------------------


def test_every_checkpoint_is_counted_where_it_stands():
    ledger = evaluated(evaluated(EMPTY, 10), 20, DeliveryStatus.SENT)
    ledger = evaluated(ledger, 30, "pending").failed(40, OOM).with_entry(50, verdict="gone")
    ledger = ledger.with_entry(60, verdict="abandoned").with_entry(70, verdict="partial")
    ledger = ledger.started(80, Running({"token": "t", "pid": 5, "devices": "0"}, 7.0, "80.log", "p", ()))
    shown = described(ledger)
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
    (shown,) = described(EMPTY.with_entry(10, evictions=reasons))["waiting"]
    assert shown["evictions"] == list(reasons)


def test_a_description_is_plain_json_and_of_an_empty_ledger_too():
    assert json.loads(json.dumps(described(EMPTY)))["best"] == {}


def test_each_headline_metric_has_a_best_of_its_own():
    ledger = evaluated(EMPTY, 10, **{"HR@10": 0.5, "NDCG@10": 0.1})
    ledger = evaluated(ledger, 20, **{"HR@10": 0.4, "NDCG@10": 0.2})
    best = described(ledger)["best"]
    assert best == {"HR@10": {"step": 10, "value": 0.5}, "NDCG@10": {"step": 20, "value": 0.2}}


def test_the_last_error_is_the_newest_failure_with_its_log():
    older = Failure("2026-01-01", "older", None)
    ledger = EMPTY.failed(10, older).failed(20, OOM).failed(30, older)
    assert described(ledger)["last_error"] == "checkpoint-20: out of memory; log: x.log"


def test_a_delivery_that_failed_is_the_last_error_where_no_evaluation_has():
    assert (
        described(Ledger("m", "r", "n", problem="no connection"))["last_error"] == "delivery: no connection"
    )


def test_there_is_no_last_error_once_it_is_fixed():
    assert described(evaluated(EMPTY.failed(10, OOM), 10))["last_error"] is None


# -- where a checkpoint stands -------------------------------------------------------------------------


def stages(ledger: Ledger) -> dict[int, str]:
    return {one.entry.step: one.stage for one in facts(ledger).checkpoints}


def running(started_at: float, state: str | None = None) -> Running:
    return Running({}, started_at, "x.log", "p", (), state=state)


def test_every_checkpoint_has_one_stage():
    ledger = evaluated(EMPTY, 10).failed(20, OOM).started(30, running(NOW))
    ledger = ledger.with_entry(40, verdict="partial").with_entry(50, verdict="gone")
    ledger = ledger.with_entry(60, verdict="abandoned")
    assert stages(ledger) == {
        **{10: "evaluated", 20: "failed", 30: "running", 40: "waiting", 50: "deleted", 60: "abandoned"}
    }


def test_results_carry_the_mark_that_says_what_they_are_not():
    old, new = {"num_beams": 50}, {"num_beams": 5}
    ledger = Ledger("m", "r", "n", settings={"a": old, "b": new}, writer={"settings": "b"})
    for step, origin in (
        (10, Origin("w", "b")),
        (20, Origin("w", "a")),
        (30, Origin()),
        (40, Origin("w", "b")),
    ):
        ledger = evaluated(ledger, step).with_entry(step, origin=origin)
    ledger = ledger.with_entry(40, content=Content("other", (0, 0, 0), "", ""))
    found = facts(ledger)
    assert [one.mark for one in found.checkpoints] == ["", "*", "?", "!"]
    assert found.checkpoints[1].changes == ("num_beams 50 → 5",)
    assert found.best == {"HR@10": 30}, "the number of replaced weights is not the best"


# -- time ----------------------------------------------------------------------------------------------


def took(ledger: Ledger, step: int, seconds: float, *, first_seen: str | None = "2026-01-01") -> Ledger:
    began = datetime.fromtimestamp(NOW - 10_000, timezone.utc).isoformat(timespec="seconds")
    numbers = {"HR@10": 0.5}
    written = int((NOW - 10_000 + seconds) * 1e9)
    result = Result(numbers, "metrics.json", digest(numbers), (1, written, written))
    return ledger.evaluated(step, result, Origin("w", "s", began)).with_entry(step, first_seen=first_seen)


def test_a_running_evaluation_is_estimated_by_how_long_the_last_ones_took():
    ledger = took(took(took(EMPTY, 10, 100), 20, 300), 30, 200).started(40, running(NOW - 60))
    (one,) = facts(ledger).running
    assert (one.elapsed, one.estimated) == (60, 200)


def test_results_that_came_from_elsewhere_say_nothing_about_time():
    ledger = took(EMPTY, 10, 9000, first_seen=None).started(40, running(NOW - 60))
    assert facts(ledger).running[0].estimated is None


def test_a_job_that_waits_in_a_queue_is_not_estimated():
    ledger = took(EMPTY, 10, 100).started(40, running(NOW - 60, "Slurm job 7: PENDING (Priority)"))
    assert facts(ledger).running[0].estimated is None


# -- problems ------------------------------------------------------------------------------------------


def test_every_problem_is_told_and_delivery_first():
    ledger = evaluated(Ledger("m", "r", "n", problem="no connection"), 10, "pending")
    ledger = ledger.failed(20, OOM).with_entry(30, verdict="gone")
    assert [str(problem) for problem in facts(ledger).problems] == [
        "delivery: no connection",
        "checkpoint-20: out of memory",
        "checkpoint-30: was deleted before it could be evaluated",
    ]


def test_checkpoints_that_fail_for_one_reason_are_one_problem_with_the_newest_log():
    ledger = EMPTY.failed(10, Failure("2026-01-01", "out of memory", "old.log", final=True)).failed(20, OOM)
    (problem,) = facts(ledger).problems
    assert (problem.checkpoints, problem.log) == (("checkpoint-10", "checkpoint-20"), "x.log")


# -- one form ------------------------------------------------------------------------------------------


def test_a_ledger_that_cannot_be_read_has_the_same_keys_as_others():
    unreadable = unreadable_json(Path("m_1.json"), "is corrupt")
    assert unreadable.keys() == described(EMPTY).keys()
    assert unreadable["problem"] == "is corrupt" and described(EMPTY)["problem"] is None


def test_rows_lose_no_digit_and_hold_checkpoints_without_a_result():
    ledger = evaluated(EMPTY, 10, **{"HR@10": 0.1234567890123}).failed(20, OOM)
    heading, first, second = csv_rows([facts(ledger)], ["HR@10"])
    assert dict(zip(heading, first))["HR@10"] == "0.1234567890123"
    assert second[heading.index("HR@10")] == "" and second[heading.index("problem")] == "out of memory"


# -- finding models ------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A ledger of two checkpoints, and results of these and one more, and of a model without a ledger."""
    state, results = tmp_path / "state", tmp_path / "results"
    state.mkdir()
    for model, step in (("my-model", 10), ("my-model", 30), ("other", 5)):
        path = results / model / f"checkpoint-{step}" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"HR@10": step / 100}))
    numbers = {"HR@10": 0.1}
    result = Result(numbers, str(results / "my-model/checkpoint-10/metrics.json"), digest(numbers), (1, 1, 1))
    ledger = EMPTY.evaluated(10, result).failed(20, OOM)
    (state / "my-model_000000000000.json").write_text(to_text(ledger))
    return state, results


def found(places: tuple[Path, Path], *wanted: str) -> dict[str, dict[int, Any]]:
    models = find_models([places[0]], places[1], wanted, NOW).models
    return {model.name: {one.entry.step: one.metrics for one in model.checkpoints} for model in models}


def test_ledgers_and_results_without_one_are_found_together(places):
    assert found(places) == {
        "my-model": {10: {"HR@10": 0.1}, 20: {}, 30: {"HR@10": 0.3}},
        "other": {5: {"HR@10": 0.05}},
    }


@pytest.mark.parametrize("wanted", ["other", "oth*", "saves/other/", "/data/other"])
def test_a_model_is_chosen_by_name_pattern_or_path(places, wanted):
    assert list(found(places, wanted)) == ["other"]


def test_a_model_that_there_is_not_is_refused_with_those_that_there_are(places):
    with pytest.raises(UsageError, match=r"nobody: no such model in .* there are: my-model, other"):
        found(places, "nobody")


def test_results_of_another_folder_are_not_mixed_into_a_ledger(places, tmp_path):
    state, results = places
    elsewhere = tmp_path / "elsewhere"
    results.rename(elsewhere)
    assert list(found((state, elsewhere))["my-model"]) == [10, 20]


def test_results_found_without_a_ledger_are_not_called_delivered(places):
    (model,) = find_models([places[0]], places[1], ["other"], NOW).models
    assert model.checkpoints[0].delivery is None


def test_results_found_without_a_ledger_say_what_they_were_made_with(places):
    metrics = places[1] / "other/checkpoint-5/metrics.json"
    origin = Origin("w", key_of({"num_beams": 50}), "2026-01-01T00:00:00+00:00")
    write_provenance(metrics, Provenance("other", 5, origin, settings={"num_beams": 50}))
    (model,) = find_models([places[0]], places[1], ["other"], NOW).models
    assert model.checkpoints[0].settings == {"num_beams": 50}
    assert model.checkpoints[0].entry.origin == origin


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(places):
    state, results = places
    (state / "broken_111111111111.json").write_text("{")
    (results / "other/checkpoint-5/metrics.json").write_text("")
    shown = find_models([state], results, [], NOW)
    assert [model.name for model in shown.models] == ["my-model", "other"]
    assert len(shown.unreadable) == 2
    assert "broken" in shown.unreadable[0] and "checkpoint-5" in shown.unreadable[1]
