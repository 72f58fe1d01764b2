"""One way from disk into the ledger: watching and uploading make the same of the same files."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from eval_sidecar.delivery.uploading import Uploader
from eval_sidecar.errors import ResultError
from eval_sidecar.ledger.entry import Entry, Failure
from eval_sidecar.ledger.intake import is_news, take_in
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.provenance import Provenance, write_provenance
from eval_sidecar.ledger.results import read_result
from eval_sidecar.ledger.settings import key_of
from eval_sidecar.ledger.store import load
from eval_sidecar.types import UNKNOWN, ModelSpec, Origin
from watching import MODEL, RUN, World

STEP = 495
SPEC = ModelSpec(MODEL, "d", "cb64", "test", 42, 50, -1, "p", None, RUN, "name")
SETTINGS = {"num_beams": 50}
ORIGIN = Origin("1" * 16, key_of(SETTINGS), "2026-01-01T00:00:00+00:00")
STAMP = (1, 1, 1)


class Watching:
    """A sidecar looks at every result in each pass."""

    def __init__(self, root: Path) -> None:
        self.world = World(root)

    @property
    def path(self) -> Path:
        return self.world.metrics_file(STEP)

    def take(self) -> Entry:
        self.world.tick(after=3600)
        return self.world.entry(STEP)


class Uploading:
    """An uploader without a tracker only takes results."""

    def __init__(self, root: Path) -> None:
        self.uploader = Uploader(root / "results", root / "state", None, confirms=False)

    @property
    def path(self) -> Path:
        return self.uploader.results_root / MODEL / f"checkpoint-{STEP}" / "metrics.json"

    def take(self) -> Entry:
        self.uploader.run_pass([SPEC], threading.Event())
        return load(self.uploader.state_file(SPEC)).entry(STEP)


@pytest.fixture(params=[Watching, Uploading])
def taker(request, tmp_path):
    return request.param(tmp_path)


def write(path: Path, text: str, *, at: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (at, at))


def describe(path: Path) -> None:
    write_provenance(path, Provenance(MODEL, STEP, ORIGIN, (), SETTINGS))


def test_a_result_is_taken_with_what_is_written_down_of_it(taker):
    write(taker.path, '{"HR@10": 0.5}', at=1000)
    describe(taker.path)
    entry = taker.take()
    assert (entry.result.metrics, entry.origin, entry.delivery.status) == ({"HR@10": 0.5}, ORIGIN, "pending")


def test_the_same_numbers_written_again_keep_what_is_known_of_them(taker):
    write(taker.path, '{"HR@10": 0.5}', at=1000)
    describe(taker.path)
    first = taker.take()
    for path in taker.path.parent.iterdir():
        path.unlink()
    write(taker.path, '{"HR@10":   0.5}', at=2000)
    entry = taker.take()
    assert entry == replace(first, result=entry.result)
    assert entry.result.stamp != first.result.stamp


def test_a_broken_result_is_a_failure_until_it_is_fixed(taker):
    write(taker.path, '{"HR@10"', at=1000)
    broken = taker.take()
    assert "is no valid JSON" in broken.failure.error or "is not valid JSON" in broken.failure.error
    assert broken.failure.final
    write(taker.path, '{"HR@10": 0.5}', at=2000)
    assert (taker.take().failure, taker.take().result.metrics) == (None, {"HR@10": 0.5})


# -- what is news ----------------------------------------------------------------------------------------


def known(tmp_path: Path) -> Entry:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"HR@10": 0.5}))
    return Entry(STEP).evaluated(read_result(path), ORIGIN)


def test_the_file_that_is_known_is_no_news(tmp_path):
    entry = known(tmp_path)
    assert [is_news(entry, found) for found in (None, entry.result.stamp, STAMP)] == [False, False, True]


def test_a_failed_evaluation_makes_no_news_of_the_result_before_it(tmp_path):
    entry = known(tmp_path)
    failed = replace(entry, failure=Failure("", "out of memory", "x.log", final=True))
    assert not is_news(failed, entry.result.stamp)


def test_a_file_that_could_not_be_read_is_news_until_it_can(tmp_path):
    entry = known(tmp_path)
    assert is_news(entry.unreadable("permission denied", ""), entry.result.stamp)


def test_the_same_reason_again_is_the_same_failure():
    entry = Entry(STEP).unreadable("is empty", "monday")
    assert entry.unreadable("is empty", "tuesday") is entry


def test_numbers_of_another_checkpoint_are_not_taken(tmp_path):
    known(tmp_path)
    assert take_in(Entry(STEP), tmp_path / "metrics.json", lambda _result: None) is None


def test_a_file_that_has_gone_is_not_taken(tmp_path):
    assert take_in(Entry(STEP), tmp_path / "metrics.json", lambda _result: UNKNOWN) is None


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "metrics.json").write_text("")
    with pytest.raises(ResultError, match="is empty"):
        take_in(Entry(STEP), tmp_path / "metrics.json", lambda _result: UNKNOWN)


def test_what_was_learnt_of_the_model_comes_with_its_results():
    ledger = Ledger(MODEL, RUN, "").with_unreadable_result(10, "is empty", "")
    learnt = ledger.with_settings("cafe0123", {"num_beams": 50})
    taken = ledger.taking([Entry(20, listed=True)], learnt, unread=[10])
    assert (list(taken.entries), taken.settings) == ([20], {"cafe0123": {"num_beams": 50}})
