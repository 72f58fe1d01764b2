"""What of a ``metrics.json`` is a metric, and how the rest is named."""

from __future__ import annotations

import codecs
import json

import pytest

from eval_sidecar.errors import ResultError
from eval_sidecar.ledger.metrics import parse_metrics
from eval_sidecar.ledger.results import read_result
from eval_sidecar.transfer.changes import digest_of
from eval_sidecar.types import RESERVED


def parse(text: str):
    metrics, left_out = parse_metrics(text.encode())
    return metrics, list(left_out)


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + b'{"HR@10": 0.25}',
        '{"HR@10": 0.25}'.encode("utf-16"),
        '{"HR@10": 0.25}'.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + '{"HR@10": 0.25}'.encode("utf-16-be"),
        '{"HR@10": 0.25}'.encode("utf-32"),
        b'\r\n{"HR@10": 0.25}\r\n',
    ],
    ids=["utf-8 with a mark", "utf-16", "utf-16 without a mark", "utf-16 be", "utf-32", "windows lines"],
)
def test_every_unicode_encoding_is_read_with_a_mark_and_without(content):
    assert parse_metrics(content) == ({"HR@10": 0.25}, ())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '"nan"', '"-Inf"', "9" * 5000])
def test_one_number_that_is_not_finite_is_left_out_by_name_and_the_others_stay(number):
    metrics, left_out = parse(f'{{"HR@10": 0.25, "loss": {number}, "n": 3}}')
    assert metrics == {"HR@10": 0.25, "n": 3.0}
    assert len(left_out) == 1
    assert left_out[0].startswith("loss (")
    assert left_out[0].endswith("not finite)")


def test_names_of_nested_objects_are_joined():
    text = '{"HR@10": 0.25, "test": {"all": {"HR@10": 0.5}, "cold": {"HR@10": "0.125"}}}'
    assert parse(text) == ({"HR@10": 0.25, "test/all/HR@10": 0.5, "test/cold/HR@10": 0.125}, [])


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.5", 0.5), (" 0.5\n", 0.5), ("1e-3", 0.001), ("-2", -2.0), ("+.5", 0.5), ("5.", 5.0), ("007", 7.0)],
)
def test_a_number_in_text_is_a_metric(text, number):
    assert parse(json.dumps({"a": text})) == ({"a": number}, [])


@pytest.mark.parametrize("text", ["50%", "0,5", "1_000", "0x10", "1 2", "", "²", "٣", "0.5 (best)", "1e"])
def test_text_that_could_mean_another_number_is_left_out(text):
    assert parse(json.dumps({"HR@10": 1, "a": text})) == ({"HR@10": 1.0}, ["a (text)"])


def test_what_is_no_number_is_named_with_what_it_is():
    text = '{"HR@10": 0.25, "model": "a", "done": true, "bad": false, "none": null, "list": [1, 2], "by": {}}'
    named = ["model (text)", "done (true)", "bad (false)", "none (null)", "list (a list of 2)"]
    assert parse(text) == ({"HR@10": 0.25}, named)


@pytest.mark.parametrize(
    "name",
    [
        *("date", "Date", "timestamp", "start_time", "end_time", "results/date", "eval_date", "eval-date"),
        *("created_at", "finishedAt", "startTime", "unix_time", "time_stamp", "timestamp_ms"),
    ],
)
def test_when_it_was_evaluated_is_no_metric(name):
    text = json.dumps({"HR@10": 1, name: 1700000000.5})
    assert parse(text) == ({"HR@10": 1.0}, [f"{name} (a timestamp)"])


@pytest.mark.parametrize(
    "name", ["_timestamp", "updates", "candidates", "mandate", "eval_time", "time", "recall_at", "map_at_10"]
)
def test_what_only_sounds_like_a_moment_is_a_metric(name):
    assert parse(json.dumps({name: 0.5})) == ({name: 0.5}, [])


def test_durations_are_metrics():
    assert parse('{"total_evaluation_time_seconds": "12.5"}')[0] == {"total_evaluation_time_seconds": 12.5}


def test_settings_beside_the_results_of_a_benchmark_are_no_metrics():
    text = '{"results": {"gsm8k": {"exact_match,strict": 0.5, "alias": "g"}}, "config": {"batch_size": 8}}'
    assert parse(text) == (
        {"results/gsm8k/exact_match,strict": 0.5},
        ["config (settings)", "results/gsm8k/alias (text)"],
    )


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_number_with_the_name_of_a_key_of_ours_is_left_out_by_name(name):
    text = json.dumps({"HR@10": 1, name: 7})
    assert parse(text) == ({"HR@10": 1.0}, [f"{name} (the sidecar's own name)"])


def test_of_two_values_that_would_have_one_name_the_plain_one_counts():
    assert parse('{"a": {"b": 1}, "a/b": 2}') == ({"a/b": 2.0}, ["a/b (duplicate name)"])


def test_one_value_that_is_there_twice_is_no_news():
    assert parse('{"a": {"b": 1}, "a/b": 1, "c": 2, "c": 2}') == ({"a/b": 1.0, "c": 2.0}, [])


def test_a_key_that_is_there_twice_with_two_values_is_named():
    assert parse('{"HR@10": 0.4, "HR@10": 0.5}') == ({"HR@10": 0.5}, ["HR@10 (duplicate name)"])
    assert parse('{"test": {"a": 1}, "b": 2, "test": {"a": 3}}') == (
        {"b": 2.0, "test/a": 3.0},
        ["test (duplicate name)"],
    )


def test_text_in_another_encoding_costs_no_number_beside_it():
    content = '{"HR@10": 0.5, "model": "\u6a21\u578b", "\u6570": 1}'.encode("gb18030")
    metrics, left_out = parse_metrics(content)
    assert metrics == {"HR@10": 0.5}
    assert left_out[0] == "model (text)"
    assert left_out[1].endswith("(its name is not Unicode)")


@pytest.mark.parametrize("name", ["", " ", "/"])
def test_a_number_without_a_name_is_left_out(name):
    assert parse(json.dumps({"HR@10": 1, name: 2}))[1] == [
        f"{name if name == '/' else ascii(name)} (without a name)"
    ]


def test_a_table_of_every_user_is_no_thousand_curves():
    text = json.dumps({"HR@10": 1, "users": {f"u{n}": n for n in range(1001)}})
    assert parse(text) == ({"HR@10": 1.0}, ["users (an object of 1001 values)"])


def test_a_file_with_much_else_in_it_is_described_in_bounds_and_what_is_not_finite_comes_first():
    text = json.dumps({"HR@10": 1, **{f"t{n}": "x" for n in range(50)}, "loss": float("nan")})
    _, left_out = parse(text)
    assert (left_out[0], left_out[-1], len(left_out)) == ("loss (nan, not finite)", "31 more", 21)


def test_an_object_that_is_nested_deeper_than_calls_may_be_is_read_or_refused():
    depth = 900
    try:
        metrics, _ = parse('{"a":' * depth + "1" + "}" * depth)
    except ResultError as error:
        assert "is not valid JSON" in str(error)
    else:
        assert list(metrics.values()) == [1.0]


def test_packing_knows_a_result_by_the_same_numbers_as_uploading(tmp_path):
    path = tmp_path / "metrics.json"
    for content in ('{"a": "0.5", "b": {"c": 1}, "date": 5, "loss": NaN}'.encode("utf-16"), b'{"a": 1}'):
        path.write_bytes(content)
        assert digest_of(content) == read_result(path).digest
