"""Saving a ledger: it comes back as it was, for one process at a time, whole whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_sidecar.errors import LockedError, StateError
from eval_sidecar.ledger.codec import from_json, to_text
from eval_sidecar.ledger.ledger import Delivery, Entry, Failure, Ledger, Running
from eval_sidecar.ledger.store import LedgerStore, load, open_store
from eval_sidecar.paths import StatePaths
from eval_sidecar.types import DeliveryStatus, Result, digest

PENDING, SENT, CONFIRMED = DeliveryStatus
MODEL, RUN = "my-model", "eval-0123456789abcdef0123"


@pytest.fixture
def path(tmp_path) -> Path:
    return StatePaths(tmp_path / "state").ledger(MODEL, RUN)


def opened(path: Path):
    return open_store(path, MODEL, RUN, "my-model-eval")


def save(path: Path, ledger: Ledger) -> LedgerStore:
    store = LedgerStore(path, Ledger(MODEL, RUN, ""))
    store.update(lambda _: ledger)
    return store


# -- round trip ------------------------------------------------------------------------------------------


numbers = st.floats(allow_nan=False, allow_infinity=False)
names = (st.text(min_size=1) | st.sampled_from(["HR@10", "eval/HR@10"])).filter(
    lambda name: name not in ("checkpoint_step", "checkpoint_name", "metrics_path")
)
words = st.text(max_size=8)
maybe_words = st.none() | words
times = st.floats(0, 1e12)
results = st.dictionaries(names, numbers, min_size=1).map(
    lambda metrics: Result(metrics, "m.json", digest(metrics), (10, 20, 30))
)
failures = st.builds(Failure, words, words.filter(bool), maybe_words, st.booleans())
running = st.builds(
    Running,
    handle=st.fixed_dictionaries({"token": words}, optional={"pid": st.integers(1, 9999)}),
    started_at=times,
    log=words,
    path=words,
    fingerprint=st.lists(st.tuples(words, st.integers(0), st.integers(0)), max_size=3).map(tuple),
    before=st.none() | st.tuples(st.integers(0), st.integers(0)),
)
deliveries = st.builds(
    Delivery,
    status=st.sampled_from([PENDING, SENT, CONFIRMED]),
    revision=st.integers(0, 9),
    digest=maybe_words,
    index=st.none() | st.integers(0),
    sent_at=st.none() | times,
    via=maybe_words,
)
entries = st.builds(
    Entry,
    step=st.integers(0, 10**9),
    verdict=st.none() | st.sampled_from(["complete", "partial", "gone"]),
    evidence=st.lists(words, max_size=3).map(tuple),
    first_seen=maybe_words,
    pinned=st.booleans(),
    running=st.none() | running,
    result=st.none() | results,
    delivery=st.none() | deliveries,
    listed=st.just(False),
)
ledgers = st.builds(
    Ledger,
    model_dir=words.filter(bool),
    run_id=words,
    run_name=words,
    entries=st.lists(entries, max_size=4).map(lambda found: {entry.step: entry for entry in found}),
    provable=st.booleans(),
    session_open=st.booleans(),
    problem=maybe_words,
    where=maybe_words,
    writer=st.none() | st.dictionaries(words, st.integers() | words, max_size=2),
    updated=maybe_words,
    extra=st.dictionaries(words.map(lambda key: "x" + key), st.integers() | words, max_size=2),
)


@given(ledgers, st.lists(st.tuples(failures.filter(lambda f: f.time), st.integers(0, 5)), max_size=4))
def test_a_ledger_comes_back_from_its_file_as_it_was(ledger, failed):
    steps = sorted(ledger.entries)
    for step, (failure, attempts) in zip(steps, failed):
        ledger = ledger.with_entry(step, failure=failure, attempts=attempts)
    assert from_json(json.loads(to_text(ledger, {})), Path("x.json")) == ledger


@given(st.lists(ledgers, max_size=5))
def test_what_is_kept_of_the_last_text_changes_nothing_about_the_next(versions):
    known = {}
    for ledger in versions:
        changed = ledger.with_entries(replace(entry, pinned=not entry.pinned) for entry in ledger.steps()[:1])
        for version in (ledger, changed):
            assert to_text(version, known) == to_text(version, {})


# -- one at a time ---------------------------------------------------------------------------------------

HOLDER = """
import sys
from dataclasses import replace
from pathlib import Path
from eval_sidecar.ledger.store import open_store
with open_store(Path(sys.argv[1]), *sys.argv[2:5]) as store:
    writer = {"pid": 4711, "host": "node7", "command": "instance cb64"}
    store.update(lambda ledger: replace(ledger, writer=writer))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_told_who_holds_the_ledger(path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), MODEL, RUN, "name"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=r"\(pid 4711 on node7, instance cb64\)"), opened(path):
            pass
        holder.kill()
        holder.wait()
    with opened(path) as store:
        assert store.ledger.writer["pid"] == 4711


# -- saving ----------------------------------------------------------------------------------------------


def test_a_change_is_in_the_file_when_it_returns(path):
    with opened(path) as store:
        store.update(lambda ledger: ledger.with_entry(495, verdict="partial"))
        assert load(path).entry(495).verdict == "partial"


def test_a_change_that_changes_nothing_writes_nothing(path):
    with opened(path) as store:
        store.update(replace)
    assert not path.exists()


def fail_with(code: int):
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("where", "name", "code"),
    [(os, "fsync", errno.ENOSPC), (Path, "open", errno.EROFS), (Path, "replace", errno.EACCES)],
)
def test_a_save_that_fails_is_an_error_and_the_old_content_stays_whole(path, monkeypatch, where, name, code):
    store = save(path, Ledger(MODEL, RUN, "").with_entry(495, verdict="partial"))
    before = path.read_bytes(), store.ledger
    monkeypatch.setattr(where, name, fail_with(code))
    with pytest.raises(StateError, match=f"{path.name}: cannot be written \\({os.strerror(code)}\\)"):
        store.update(lambda ledger: ledger.with_entry(495, verdict="complete"))
    monkeypatch.undo()
    assert (path.read_bytes(), store.ledger) == before
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_takes_only_the_first_bytes_leaves_the_old_content_whole(path):
    store = save(path, Ledger(MODEL, RUN, "").with_entry(495, verdict="partial"))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StateError, match="cannot be written"):
            store.update(lambda ledger: ledger.with_entry(495, verdict="complete"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_after_a_failed_save_the_next_one_succeeds(path, monkeypatch):
    store = save(path, Ledger(MODEL, RUN, ""))
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(StateError):
        store.update(lambda ledger: ledger.with_entry(495, verdict="complete"))
    monkeypatch.undo()
    store.update(lambda ledger: ledger.with_entry(495, verdict="complete"))
    assert load(path).entry(495).verdict == "complete"


def test_a_state_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "state").write_text("a file")
    with (
        pytest.raises(StateError, match="the lock file cannot be made"),
        opened(tmp_path / "state" / "x.json"),
    ):
        pass
