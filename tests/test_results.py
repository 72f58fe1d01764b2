"""``metrics.json``: which numbers count, and what every kind of bad file is called."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_sidecar.best import best_step
from eval_sidecar.errors import ResultError
from eval_sidecar.ledger.results import digest, read_result
from eval_sidecar.ledger.stamps import stamp
from eval_sidecar.paths import ResultPaths

METRICS = st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), min_size=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.json"


def test_results_lie_below_the_models_and_the_checkpoints_name(tmp_path):
    assert (
        ResultPaths(tmp_path).metrics("my-model", 495)
        == tmp_path / "my-model" / "checkpoint-495" / "metrics.json"
    )


def test_every_number_of_the_file_is_a_metric(path):
    path.write_text('{"HR@10": 0.25, "n": 3, "loss": -1e-3}')
    assert dict(read_result(path).metrics) == {"HR@10": 0.25, "n": 3.0, "loss": -0.001}


def test_a_result_knows_its_file_and_the_stamp_of_what_was_read(path):
    path.write_text('{"HR@10": 0.25}')
    os.utime(path, ns=(5, 5))
    result = read_result(path)
    assert (result.path, result.stamp) == (str(path), (15, 5, path.stat().st_ctime_ns))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b" \n", "is empty (2 bytes)"),
        (b'{"HR@10": 0.2', "is not valid JSON"),
        (b"\xef\xbb\xbf", "is empty (3 bytes)"),
        ('{"HR@10": 0.2}'.encode("utf-16")[:-3], "cannot be read"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[1, 2]", "holds a JSON list, not an object of numbers"),
        (b"0.5", "holds a JSON float, not an object of numbers"),
        (b"null", "holds a JSON NoneType, not an object of numbers"),
        (b"{}", "has no number in it"),
        (b'{"model": "a", "done": true}', "has no number in it: model (text), done (true)"),
        (b'{"HR@10": NaN}', "HR@10 (nan, not finite); did the training diverge?"),
        (b'{"loss": -Infinity}', "loss (-inf, not finite)"),
        (b'{"count": 1' + b"0" * 400 + b"}", "count (inf, not finite)"),
        (b'{"HR@10": ' + b"9" * 5000 + b"}", "HR@10 (inf, not finite)"),
    ],
    ids=range(16),
)
def test_a_bad_file_is_an_error_that_names_the_file_and_what_is_wrong(path, content, said):
    path.write_bytes(content)
    with pytest.raises(ResultError) as error:
        read_result(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_missing_file_is_an_error_that_says_so(path):
    with pytest.raises(ResultError, match="is missing"):
        read_result(path)


def test_a_folder_in_the_place_of_the_file_is_an_error(path):
    path.mkdir()
    with pytest.raises(ResultError, match="cannot be read"):
        read_result(path)


def test_a_file_in_the_place_of_the_folder_is_a_missing_result(path):
    path.write_text("{}")
    assert stamp(path / "metrics.json") is None
    with pytest.raises(ResultError, match="is missing"):
        read_result(path / "metrics.json")


def test_the_stamp_of_a_missing_file_is_none(path):
    assert stamp(path) is None


@given(METRICS, st.randoms())
def test_a_digest_depends_on_the_numbers_and_not_on_their_order(metrics, random):
    items = list(metrics.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(metrics)


@given(METRICS, st.data())
def test_a_digest_changes_with_any_number(metrics, data):
    name = data.draw(st.sampled_from(sorted(metrics)))
    other = data.draw(st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != metrics[name]))
    assert digest({**metrics, name: other}) != digest(metrics)


def test_rewriting_the_same_numbers_in_another_form_keeps_the_digest(path):
    path.write_text('{"HR@10": 0.25, "n": 3}')
    first = read_result(path)
    path.write_text(json.dumps({"n": 3.0, "note": "again", "HR@10": 0.25}, indent=4))
    assert read_result(path).digest == first.digest


def test_the_best_step_is_the_one_with_the_highest_value():
    assert best_step({10: {"HR@10": 0.1}, 20: {"HR@10": 0.3}, 30: {"HR@10": 0.2}}, "HR@10") == 20


def test_the_earliest_of_equally_good_steps_is_the_best():
    assert best_step({30: {"HR@10": 0.3}, 20: {"HR@10": 0.3}, 10: {"HR@10": 0.1}}, "HR@10") == 20


def test_steps_without_the_metric_are_passed_by():
    assert best_step({10: {"loss": 9.0}, 20: {"HR@10": -1.0}}, "HR@10") == 20


def test_a_value_that_is_not_finite_is_never_the_best():
    assert (
        best_step({10: {"HR@10": float("nan")}, 20: {"HR@10": 0.1}, 30: {"HR@10": float("inf")}}, "HR@10")
        == 20
    )


def test_there_is_no_best_step_where_none_has_the_metric():
    assert best_step({10: {"loss": 9.0}}, "HR@10") is None
