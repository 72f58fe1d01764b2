"""An archive in parts: any of them leads to all, and a missing or damaged one is named."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval_sidecar.errors import BundleError
from eval_sidecar.transfer import find_bundle, unpack
from eval_sidecar.transfer.index import INDEX_NAME
from transfer_files import NOW, bundle, make, members_of, read_tree, write, write_tree

CHUNK = 64 * 1024


@pytest.fixture
def root(tmp_path) -> Path:
    root = write_tree(tmp_path / "re sults")
    write(root / "noise.bin", random.Random(0).randbytes(150_000))
    return root


@pytest.fixture
def parts(root, tmp_path) -> list[Path]:
    found = make(root, tmp_path / "out put", chunk_size=CHUNK).archive
    assert len(found) == 3
    return found


def test_no_part_is_larger_than_was_asked_for(parts):
    assert all(part.stat().st_size <= CHUNK for part in parts)


def test_parts_are_named_after_the_archive_and_numbered(parts, root, tmp_path):
    whole = bundle(root, tmp_path / "whole")
    assert [part.name for part in parts] == [f"{whole.name}.part-00{number}-of-003" for number in (1, 2, 3)]


def test_an_archive_that_fits_is_not_cut(tmp_path):
    (path,) = make(write_tree(tmp_path / "r"), tmp_path / "out", chunk_size=CHUNK).archive
    assert path.name.endswith(".tar.gz")


def test_packing_again_makes_the_same_parts(parts, root, tmp_path):
    again = make(root, tmp_path / "again", chunk_size=CHUNK).archive
    assert [part.read_bytes() for part in again] == [part.read_bytes() for part in parts]


def test_put_together_by_hand_they_are_an_archive(parts, tmp_path, root):
    whole = tmp_path / "whole.tar.gz"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    listed = subprocess.run(["tar", "tzf", str(whole)], check=True, capture_output=True, text=True).stdout
    assert listed.splitlines()[0] == f"results/{INDEX_NAME}"
    unpack(find_bundle([str(whole)], []), tmp_path / "there")
    assert read_tree(tmp_path / "there") == read_tree(root)
    assert len(members_of(whole)) == 7


@pytest.mark.parametrize("order", [[0], [1], [2], [2, 0, 1], [1, 2]])
def test_any_of_them_in_any_order_leads_to_all(parts, root, tmp_path, order):
    found = find_bundle([str(parts[number]) for number in order], [])
    assert found.paths == tuple(parts) and found.passed_over == 0
    unpack(found, tmp_path / "there")
    assert read_tree(tmp_path / "there") == read_tree(root)


def test_parts_that_were_renamed_or_lie_apart_are_recognised(parts, tmp_path, root):
    apart = [write(tmp_path / f"{number}/carried", part.read_bytes()) for number, part in enumerate(parts)]
    for part in parts:
        part.unlink()
    unpack(find_bundle(list(map(str, apart)), []), tmp_path / "there")
    assert read_tree(tmp_path / "there") == read_tree(root)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_part_is_named(parts, lost):
    parts[lost].unlink()
    name = parts[lost].name
    with pytest.raises(
        BundleError, match=rf"part {lost + 1} of 3 is missing: there is no {name} in .*out put"
    ):
        find_bundle([str(parts[(lost + 1) % 3])], [])


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("given_", [0, 2])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_part_is_named(parts, damaged, given_, data):
    path = parts[damaged]
    before = path.read_bytes()
    where = data.draw(st.integers(0, 300) | st.integers(0, len(before) - 1))
    path.write_bytes(before[:where] + bytes([before[where] ^ 1]) + before[where + 1 :])
    try:
        with pytest.raises(BundleError, match=rf"part {damaged + 1} of 3 .*{path.name}.*(again|is missing)"):
            find_bundle([str(parts[given_])], [])
    finally:
        path.write_bytes(before)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_part_that_is_cut_short_is_named(parts, data):
    path = parts[1]
    before = path.read_bytes()
    path.write_bytes(before[: data.draw(st.integers(0, 300) | st.integers(0, len(before) - 1))])
    try:
        with pytest.raises(BundleError, match=rf"part 2 of 3 .*{path.name}.*again"):
            find_bundle([str(parts[0])], [])
    finally:
        path.write_bytes(before)


def test_an_intact_copy_beside_a_damaged_part_is_taken(parts):
    copy = write(parts[1].with_name(f"copy of {parts[1].name}"), parts[1].read_bytes())
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    assert find_bundle([str(parts[0])], []).paths == (parts[0], copy, parts[2])


def test_a_part_of_other_results_is_not_taken_for_the_missing_one(parts, root, tmp_path):
    write(root / "noise.bin", random.Random(1).randbytes(150_000))
    others = make(root, tmp_path / "others", chunk_size=CHUNK).archive
    parts[1].write_bytes(others[1].read_bytes())
    with pytest.raises(BundleError, match=r"part 2 of 3 .*belongs to another archive"):
        find_bundle([str(parts[0])], [])


def test_parts_that_were_cut_at_other_places_do_not_mix(root, tmp_path):
    first = make(root, tmp_path / "a", chunk_size=CHUNK, name="x").archive
    second = make(root, tmp_path / "b", chunk_size=CHUNK + 4000, name="x").archive
    assert len(first) == len(second) == 3
    first[2].write_bytes(second[2].read_bytes())
    with pytest.raises(BundleError, match=r"part 3 of 3 .*belongs to another archive"):
        find_bundle([str(first[0])], [])


def test_the_newest_of_whole_archives_and_parts_is_taken(parts, root, tmp_path):
    whole = bundle(root, parts[0].parent)
    for path in parts:
        os.utime(path, ns=(NOW, NOW))
    os.utime(whole, ns=(NOW + 1, NOW + 1))
    assert find_bundle([], [whole.parent]).paths == (whole,)
    os.utime(parts[2], ns=(NOW + 2, NOW + 2))
    assert find_bundle([], [whole.parent]) == (tuple(parts), f"{whole.name} in 3 parts", 1)
