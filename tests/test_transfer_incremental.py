"""`pack --incremental`: what a receipt does not confirm, found without reading what has not changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_sidecar.errors import ResultError, UsageError
from eval_sidecar.ledger.results import read_result
from eval_sidecar.paths import MANIFEST, ResultPaths
from eval_sidecar.transfer import changes
from eval_sidecar.transfer.changes import Digests, digest_of
from transfer_files import (
    MODEL,
    NOW,
    TREE,
    bring,
    index_of,
    make,
    metrics,
    receipt,
    result,
    write,
    write_tree,
)

ALL = {MODEL: {100: 0.1, 200: 0.2}, "Games-grec-sft": {50: 0.3}}


@pytest.fixture
def root(tmp_path) -> Path:
    return write_tree(tmp_path / "results")


def confirm(tmp_path, values=ALL, run_id=None) -> Path:
    digests = {
        model: {step: digest_of(metrics(value)) for step, value in steps.items()}
        for model, steps in values.items()
    }
    return receipt(tmp_path / "receipt.json", digests, run_id)


def carried(report) -> set[str]:
    return set(index_of(report.archive[0])["members"])


def test_only_what_is_not_confirmed_is_carried_with_what_lies_beside_it(root, tmp_path):
    report = make(
        root, tmp_path / "out", receipt=confirm(tmp_path, {MODEL: {200: 0.2}, "Games-grec-sft": {50: 0.3}})
    )
    assert carried(report) == {result(100), f"{MODEL}/checkpoint-100/metrics.tsv", MANIFEST}
    assert report.archive[0].name.endswith("_incremental.tar.gz")


def test_a_result_that_changed_is_carried_again(root, tmp_path):
    write(root / result(200), metrics(0.9))
    report = make(root, tmp_path / "out", receipt=confirm(tmp_path))
    assert carried(report) == {result(200), MANIFEST}


def test_a_result_that_was_only_written_again_is_not(root, tmp_path):
    write(root / result(200), json.dumps(json.loads(metrics(0.2)), indent=4).encode(), NOW + 1)
    assert make(root, tmp_path / "out", receipt=confirm(tmp_path)).archive == []


def test_where_nothing_is_new_there_is_no_archive(root, tmp_path):
    assert make(root, tmp_path / "out", receipt=confirm(tmp_path)).archive == []
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_belongs_to_another_run_now_is_carried_whole(root, tmp_path):
    manifest = {"models": [{"model_dir": MODEL, "wandb_run_id": "eval-new"}]}
    write(root / MANIFEST, json.dumps(manifest).encode())
    report = make(root, tmp_path / "out", receipt=confirm(tmp_path, run_id="eval-old"))
    assert carried(report) == set(TREE) - {result(50, "Games-grec-sft")}


def test_the_archive_names_the_receipt(root, tmp_path):
    write(root / result(300), metrics(0.5))
    path = confirm(tmp_path)
    first = index_of(make(root, tmp_path / "out", receipt=path).archive[0])
    confirm(tmp_path, {MODEL: ALL[MODEL]})
    second = index_of(make(root, tmp_path / "out", receipt=path).archive[0])
    assert first["kind"] == second["kind"] == "incremental"
    assert first["base"] != second["base"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"HR@10": NaN}', b"[1]", b'{"HR@10": 0.1', b"\xff"])
def test_a_result_without_numbers_is_named_and_not_carried(root, tmp_path, content):
    write(root / result(200), content)
    report = make(root, tmp_path / "out", receipt=confirm(tmp_path))
    assert report.archive == [] and report.unusable == [f"{MODEL}/checkpoint-200"]


def test_checkpoints_without_a_result_and_other_folders_are_passed_by(root, tmp_path):
    (root / MODEL / "checkpoint-400").mkdir()
    write(root / MODEL / "checkpoint-007/metrics.json", metrics(0.5))
    write(root / MODEL / "notes.txt", b"x")
    write(root / ".unpack/checkpoint-1/metrics.json", metrics(0.5))
    assert make(root, tmp_path / "out", receipt=confirm(tmp_path)).archive == []


def test_an_incremental_archive_brings_what_was_missing(root, tmp_path):
    there = write_tree(tmp_path / "there")
    write(root / result(300), metrics(0.5))
    report = bring(make(root, tmp_path / "out", receipt=confirm(tmp_path)).archive[0], there)
    assert report.new == [result(300)] and report.same == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not a receipt"),
        ("[]", "is not a receipt"),
        ('{"version": 1}', "is not a receipt"),
        ('{"version": 1, "models": {"a": {"confirmed": {"1": {}}}}}', "is not a receipt"),
        ('{"version": 2, "models": {}}', "version 2"),
        (None, "cannot be read"),
    ],
)
def test_a_receipt_that_is_none_is_refused(root, tmp_path, content, words):
    path = tmp_path / "receipt.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=words):
        make(root, tmp_path / "out", receipt=path)


# -- the cache -------------------------------------------------------------------------------------------


def count_reads(monkeypatch) -> list[str]:
    reading, seen = changes.read_whole, []

    def counting(path, most):
        seen.append(Path(path).parent.name)
        return reading(path, most)

    monkeypatch.setattr(changes, "read_whole", counting)
    return seen


def age(root: Path) -> None:
    """Have the cache take the tree for an old one: status change times cannot be set."""
    cache = Digests(ResultPaths(root).pack_cache, now_ns=2**62)
    for model, steps in ALL.items():
        for step in steps:
            cache.of_file(model, str(step), str(root / result(step, model)))
    cache.save()


@pytest.mark.parametrize(
    "path_of_receipt", [None, "receipt.json"], ids=["after a full one", "after the same"]
)
def test_what_has_not_changed_is_not_read_again(root, tmp_path, monkeypatch, path_of_receipt):
    monkeypatch.setattr(changes.time, "time_ns", lambda: 2**62)
    confirmed = confirm(tmp_path)
    make(root, tmp_path / "out", receipt=path_of_receipt and confirmed)
    seen = count_reads(monkeypatch)
    write(root / result(300), metrics(0.5))
    assert carried(make(root, tmp_path / "out", receipt=confirmed)) == {result(300), MANIFEST}
    assert seen == ["checkpoint-300"]


def test_a_file_of_the_same_size_and_time_is_told_apart_by_its_status_change(root, tmp_path):
    age(root)
    write(root / result(200), metrics(0.4))  # sets the old time again
    report = make(root, tmp_path / "out", receipt=confirm(tmp_path))
    assert carried(report) == {result(200), MANIFEST}


def test_a_file_that_was_just_written_is_not_cached(root):
    status = (root / result(100)).stat()
    cache = Digests(ResultPaths(root).pack_cache, now_ns=status.st_ctime_ns + 10**9)
    cache.of_file(MODEL, "100", str(root / result(100)))
    cache.save()
    assert json.loads((ResultPaths(root).pack_cache).read_bytes())["models"] == {}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 9, "models": {}}', '{"version": 1, "models": 5}']
)
def test_a_cache_that_cannot_be_read_is_made_again(root, tmp_path, content):
    (ResultPaths(root).pack_cache).write_text(content)
    assert make(root, tmp_path / "out", receipt=confirm(tmp_path)).archive == []


def test_a_folder_that_cannot_keep_a_cache_can_be_packed(root, tmp_path, caplog):
    (ResultPaths(root).pack_cache).mkdir()
    (ResultPaths(root).pack_cache / "x").touch()
    assert make(root, tmp_path / "out").files == len(TREE)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(value=VALUES | st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_the_hash_is_the_one_that_the_upload_computes(tmp_path_factory, value):
    data = json.dumps(value).encode()
    path = tmp_path_factory.getbasetemp() / "metrics.json"
    path.write_bytes(data)
    try:
        expected = read_result(path).digest
    except ResultError:
        expected = None
    assert digest_of(data) == expected
