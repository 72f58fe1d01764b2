"""What a run shows of a model, checked against the documents word by word; no W&B client needed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_sidecar.trackers.wandb_content import (
    TABLE_COLUMNS,
    config_of,
    index_of,
    latest_of,
    row_of,
    server_row_of,
    summary_of,
    table_rows_of,
)
from eval_sidecar.types import Point
from tracking import METRICS, point_of, points_of, spec_of


def test_the_config_has_the_seven_documented_keys() -> None:
    keys = ["model_name", "dataset", "cb_setting", "seed", "num_beams", "sid_levels", "eval_split"]
    assert list(config_of(spec_of("eval-a"))) == keys


def test_every_number_of_a_result_is_a_metric_of_the_row() -> None:
    row = row_of(Point(5, "checkpoint-5", {"HR@10": 0.5, "MRR": 0.25, "samples": 8}, "/m.json"))
    assert row == {
        "checkpoint_step": 5,
        "eval/HR@10": 0.5,
        "eval/MRR": 0.25,
        "eval/samples": 8,
        "eval/checkpoint_name": "checkpoint-5",
        "eval/metrics_path": "/m.json",
    }


def test_a_number_that_is_called_like_one_of_our_own_keys_does_not_replace_it() -> None:
    row = row_of(
        Point(5, "checkpoint-5", {"revision": 9, "metrics_path": 1.0, "checkpoint_name": 2.0}, "/m.json")
    )
    assert row == {
        "checkpoint_step": 5,
        "eval/checkpoint_name": "checkpoint-5",
        "eval/metrics_path": "/m.json",
    }


def test_the_summary_of_nothing_is_empty() -> None:
    assert summary_of([]) == {}


def test_the_earliest_of_equally_good_checkpoints_is_the_best() -> None:
    summary = summary_of([point_of(300, hr=0.5), point_of(100, hr=0.5), point_of(200, hr=0.4)])
    assert summary["best_step_for_hr@10"] == 100
    assert summary["last_step"] == 300


def test_a_model_without_a_metric_lacks_its_keys() -> None:
    summary = summary_of([Point(5, "checkpoint-5", {"NDCG@10": 0.5}, "/m.json")])
    assert summary == {"best_ndcg@10": 0.5, "best_step_for_ndcg@10": 5, "last_ndcg@10": 0.5, "last_step": 5}


def test_a_last_checkpoint_without_the_metric_has_no_last_value_of_an_earlier_one() -> None:
    summary = summary_of([point_of(100), Point(200, "checkpoint-200", {"loss": 1.0}, "/m.json")])
    assert "last_hr@10" not in summary
    assert summary["best_step_for_hr@10"] == 100
    assert summary["last_step"] == 200


def test_a_revision_replaces_what_it_revises_in_summary_and_table() -> None:
    points = [point_of(100, hr=0.1, revision=1), point_of(100, hr=0.9), point_of(200, hr=0.5)]
    assert summary_of(points)["best_hr@10"] == 0.5
    assert [(row[0], row[5]) for row in table_rows_of(points)] == [(100, 0.1), (200, 0.5)]


def test_the_table_has_the_documented_columns_in_order_and_none_for_what_is_missing() -> None:
    names = ["HR@1", "HR@3", "HR@5", "HR@10", "NDCG@1", "NDCG@3", "NDCG@5", "NDCG@10"]
    assert list(TABLE_COLUMNS) == ["checkpoint_step", "checkpoint_name", *names, "metrics_path"]
    (row,) = table_rows_of([Point(5, "checkpoint-5", {"HR@10": 0.5}, "/m.json")])
    assert row == [5, "checkpoint-5", None, None, None, 0.5, None, None, None, None, "/m.json"]


@pytest.mark.parametrize(
    "row",
    [
        {"_step": 5, "loss": 0.5},
        {"_step": 5, "checkpoint_step": None, "eval/HR@10": 0.5},
        {"_step": 5, "checkpoint_step": 2.5, "eval/HR@10": 0.5},
        {"_step": 5, "checkpoint_step": "5", "eval/HR@10": 0.5},
        {"_step": 5, "checkpoint_step": math.nan, "eval/HR@10": 0.5},
        {"_step": 5, "checkpoint_step": 5, "train/loss": 0.5},
        {"checkpoint_step": 5, "eval/HR@10": 0.5},
    ],
)
def test_a_row_that_is_no_point_is_none(row: dict[str, object]) -> None:
    assert server_row_of(row) is None


def test_a_row_without_a_step_of_its_own_has_index_minus_one() -> None:
    assert index_of({"checkpoint_step": 5}) == -1


def test_values_that_are_no_finite_numbers_are_left_out() -> None:
    values = {"a": math.nan, "b": math.inf, "c": "NaN", "d": True, "e": None, "f": {"_type": "x"}, "g": 1}
    row = {"_step": 5, "checkpoint_step": 5, **{f"eval/{name}": value for name, value in values.items()}}
    found = server_row_of(row)
    assert found is not None
    assert dict(found.metrics) == {"g": 1.0}


finite = st.floats(allow_nan=False, allow_infinity=False)
points = st.builds(
    lambda step, revision, metrics: Point(step, f"checkpoint-{step}", metrics, "/m.json", revision),
    st.integers(0, 10**9),
    st.integers(0, 5),
    st.dictionaries(st.sampled_from((*METRICS, "MRR", "a/b", "c.d")), finite),
)


@given(points, st.integers(0, 10**9))
def test_a_row_reads_back_as_the_point_it_came_from(point: Point, index: int) -> None:
    found = server_row_of({"_step": index, **row_of(point)})
    assert found is not None
    assert (found.index, found.step, found.revision) == (index, point.step, point.revision)
    assert dict(found.metrics) == dict(point.metrics)


@given(st.lists(points))
def test_best_is_at_least_as_good_as_every_checkpoint_and_belongs_to_the_step_it_names(
    given_points: list[Point],
) -> None:
    latest = {point.step: point for point in latest_of(given_points)}
    summary = summary_of(given_points)
    for name in ("HR@10", "NDCG@10"):
        values = [point.metrics[name] for point in latest.values() if name in point.metrics]
        if values:
            best_step = int(summary[f"best_step_for_{name.lower()}"])
            assert summary[f"best_{name.lower()}"] == max(values) == latest[best_step].metrics[name]
        else:
            assert f"best_{name.lower()}" not in summary


def test_latest_is_ordered_by_step_however_the_points_come() -> None:
    assert [point.step for point in latest_of(points_of(300, 100, 200))] == [100, 200, 300]
