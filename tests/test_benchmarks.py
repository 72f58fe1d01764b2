"""What the benchmarks count, so that a number they report is one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def count_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("evaluator").count_other


@pytest.mark.parametrize(
    ("lists", "other"),
    [
        ([["a", "b", "c"], ["d"]], 0),
        ([["a", "c", "b"], ["d"]], 0),  # a near tie
        ([["b", "a", "c"], ["d"]], 1),
        ([["a", "b", "b"], ["d"]], 1),
        ([["a", "b"], ["d"]], 1),
        ([[], ["d"]], 1),
        ([["a", "b", "c"]], 1),
        ([["a", "b", "c"], ["d"], ["e"]], 1),
        ([], 2),
    ],
)
def test_a_list_that_is_short_or_missing_is_another_one(count_other, lists, other):
    expected = [[("a", 3.0), ("b", 2.0), ("c", 2.0 - 1e-6)], [("d", 1.0)]]
    assert count_other(lists, expected) == other


def test_a_baseline_without_lists_proves_nothing(count_other):
    assert count_other([[]], [[]]) == 1
