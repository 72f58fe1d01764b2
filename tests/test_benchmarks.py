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


@pytest.mark.genrec
def test_products_are_counted_by_shape_and_tokens(monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    count_products = importlib.import_module("evaluator_limit").count_products
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))

    def search():
        model(torch.zeros(2, 3, 4))
        model(torch.zeros(5, 1, 4))

    products = count_products(model, search)
    found = {(tuple(layer.weight.shape), n): times for (layer, n), times in products.items()}
    assert found == {((4, 4), 6): 2, ((9, 4), 6): 1, ((4, 4), 5): 2, ((9, 4), 5): 1}
    assert count_products(model, lambda: None) == {}
