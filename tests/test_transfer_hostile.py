"""Archives that are damaged or mean harm: one line names what, and nothing is touched."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eval_sidecar.errors import BundleError
from eval_sidecar.transfer import opening
from eval_sidecar.transfer.index import INDEX_NAME, parse_index, shown, why_unsafe
from transfer_files import (
    MODEL,
    NOW,
    TREE,
    bring,
    bundle,
    index_of,
    member,
    members_of,
    metrics,
    read_tree,
    repacked,
    result,
    with_index,
    write,
    write_tar,
    write_tree,
)

OLD = {result(100): b"old", "mine": b"mine"}
MANY = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def root(tmp_path) -> Path:
    return write_tree(tmp_path / "results", OLD, NOW - 1)


@pytest.fixture
def archive(tmp_path) -> Path:
    return bundle(write_tree(tmp_path / "source"), tmp_path / "out")


def refused(archive: Path, root: Path, **changes: object) -> str:
    """What is said of an archive that must not change anything."""
    around = set(root.parent.iterdir())
    with pytest.raises(BundleError) as caught:
        bring(archive, root, **changes)
    assert read_tree(root) == OLD
    assert {path.name for path in root.iterdir()} <= {"mine", MODEL, ".unpack.lock"}
    assert set(root.parent.iterdir()) == around
    message = str(caught.value)
    assert message.isprintable() and str(archive) in message and message.endswith("; nothing was changed")
    return message


# -- names -----------------------------------------------------------------------------------------------

HOSTILE_NAMES = {
    "/etc/passwd": "is absolute",
    "/results/a": "is absolute",
    "../a": "climbs out",
    "results/../a": "climbs out",
    "results/a/../../../b": "climbs out",
    "results/..": "climbs out",
    "GenRec/results/../../a": "climbs out",
    "results//a": "no file has",
    "results/a/./b": "no file has",
    "results/" + "a" * 256: "too long",
    "results/" + "a/" * 2500 + "a": "too long",
    "a": "is not below results/",
    "resultsX/a": "is not below results/",
    "GenRec/a": "is not below results/",
    "other/results/a": "is not below results/",
    "results": "is not below results/",
}


@pytest.mark.parametrize(("name", "reason"), HOSTILE_NAMES.items(), ids=[name[:30] for name in HOSTILE_NAMES])
def test_a_member_that_leaves_the_results_is_refused(tmp_path, root, name, reason):
    path = write_tar(tmp_path / "x.tar.gz", [member("results/good/b"), member(name)])
    assert reason in refused(path, root) and shown(name) in refused(path, root)


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../../b", "a//b", ".", "..", ".unpack.lock", "a/.b", "", "a\0b"]
)
def test_a_list_that_leaves_the_results_is_refused(tmp_path, root, archive, name):
    def add(listing):
        listing["members"][name] = listing["members"][result(100)]

    message = refused(with_index(archive, tmp_path / "x.tar.gz", add), root)
    assert f"member {shown(name)} " in message and "missing" not in message


PARTS = st.sampled_from(
    ["..", ".", "", "a", "results", "GenRec", "~", "\n", "\\", "…", "\x1b[0m", "CON", "a" * 300]
)


@MANY
@example(name="results/a\n/b")
@given(name=st.lists(PARTS, min_size=1, max_size=5).map("/".join))
def test_whatever_a_member_is_called_nothing_outside_the_results_is_written(tmp_path_factory, name):
    base = tmp_path_factory.mktemp("hostile")
    root = write_tree(base / "deep/er/results", OLD)
    path = write_tar(base / "x.tar.gz", [member("results/good"), member(name)])
    try:
        bring(path, root)
    except BundleError as error:
        assert str(error).isprintable()
        assert read_tree(root) == OLD
    else:
        assert set(read_tree(root)) > set(OLD)
    outside = {path for path in read_tree(base) if not path.startswith("deep/er/results/")}
    assert outside == {"x.tar.gz"}


@given(name=st.text(max_size=20) | st.lists(PARTS).map("/".join))
def test_a_safe_name_stays_below_its_folder(name):
    if why_unsafe(name) is None:
        assert os.path.normpath(f"/r/{name}") == f"/r/{name}"


# -- kinds -----------------------------------------------------------------------------------------------

KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a fifo",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    b"D": "of the unknown type 'D'",
}


@pytest.mark.parametrize(("kind", "words"), KINDS.items(), ids=KINDS.values())
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@pytest.mark.parametrize("target", ["/etc/passwd", "../" * 50])
def test_what_is_neither_file_nor_folder_is_refused(tmp_path, root, kind, words, form, target):
    path = write_tar(
        tmp_path / "x.tar.gz",
        [member("results/good/b"), member("results/bad", b"", kind, linkname=target)],
        form,
    )
    assert f"member results/bad is {words}" in refused(path, root)


def test_a_file_through_a_link_of_the_archive_is_refused(tmp_path, root):
    path = write_tar(
        tmp_path / "x.tar.gz",
        [member("results/a", b"", tarfile.SYMTYPE, linkname=str(tmp_path)), member("results/a/b")],
    )
    assert "is a symbolic link" in refused(path, root)


def test_sparse_files_of_the_newer_kind_are_refused(tmp_path, root):
    info, data = member("results/a", b"x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "../b"}
    assert "is a sparse file" in refused(write_tar(tmp_path / "x.tar.gz", [(info, data)]), root)


# -- what the list and the members must agree on ------------------------------------------------------------


@pytest.mark.parametrize("top", ["results", "GenRec/results"])
def test_a_member_that_is_there_twice_is_refused(tmp_path, root, top):
    path = write_tar(tmp_path / "x.tar.gz", [member(f"{top}/a"), member(f"{top}/a")])
    assert f"member {top}/a appears twice" in refused(path, root)


def test_a_listed_member_that_is_there_twice_is_refused(tmp_path, root, archive):
    members = members_of(archive)
    assert "appears twice" in refused(write_tar(tmp_path / "x.tar.gz", [*members, members[-1]]), root)


def test_a_file_below_a_file_is_refused(tmp_path, root):
    path = write_tar(tmp_path / "x.tar.gz", [member("results/a/b"), member("results/a")])
    assert "member a/b is below another member that is a file" in refused(path, root)


def test_a_member_that_is_not_listed_is_refused(tmp_path, root, archive):
    path = write_tar(tmp_path / "x.tar.gz", [*members_of(archive), member("results/more")])
    assert "member results/more is not in the archive's list" in refused(path, root)


def test_a_listed_member_of_the_older_top_is_refused(tmp_path, root, archive):
    path = write_tar(tmp_path / "x.tar.gz", [*members_of(archive), member("GenRec/results/more")])
    assert "is not below results/" in refused(path, root)


def test_a_member_that_is_missing_is_named(tmp_path, root, archive):
    path = write_tar(tmp_path / "x.tar.gz", members_of(archive)[:-1])
    assert f"members are missing (1), such as {result(200)}" in refused(path, root)


@pytest.mark.parametrize("data", [metrics(0.7), b"", b"longer than it was before, by far"])
def test_a_member_with_other_content_is_named(tmp_path, root, archive, data):
    members = [entry for entry in members_of(archive) if entry[0].name != f"results/{result(100)}"]
    path = write_tar(tmp_path / "x.tar.gz", [*members, member(f"results/{result(100)}", data)])
    message = refused(path, root)
    assert f"member results/{result(100)} " in message
    assert ("does not match its SHA-256" if data == metrics(0.7) else "another size") in message


BAD_LISTS = {
    "no object": lambda listing: [],
    "nothing": lambda listing: {},
    "no version": lambda listing: listing.pop("version") and None,
    "odd version": lambda listing: listing.update(version="1"),
    "old version": lambda listing: listing.update(version=0),
    "odd kind": lambda listing: listing.update(kind="some"),
    "odd base": lambda listing: listing.update(base=5),
    "odd limit": lambda listing: listing["left_out"].update(larger_than="10M"),
    "odd names": lambda listing: listing["left_out"].update(names=[5]),
    "odd skipped": lambda listing: listing.update(skipped=[[]]),
    "members a list": lambda listing: listing.update(members=[]),
    "no hash": lambda listing: listing["members"].update({result(100): [31, NOW]}),
    "short hash": lambda listing: listing["members"].update({result(100): [31, NOW, "abc"]}),
    "odd hash": lambda listing: listing["members"].update({result(100): [31, NOW, 5]}),
    "odd size": lambda listing: listing["members"].update({result(100): [-1, NOW, "a" * 64]}),
    "odd time": lambda listing: listing["members"].update({result(100): [31, 0.5, "a" * 64]}),
    "member a number": lambda listing: listing["members"].update({result(100): 5}),
}


@pytest.mark.parametrize("change", BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_list_that_is_none_is_refused(tmp_path, root, archive, change):
    message = refused(with_index(archive, tmp_path / "x.tar.gz", change), root)
    assert f"{INDEX_NAME} is damaged" in message or "is listed with" in message


def test_a_list_of_a_newer_version_is_refused(tmp_path, root, archive):
    path = with_index(archive, tmp_path / "x.tar.gz", lambda listing: listing.update(version=2))
    assert "is of version 2, this eval-sidecar knows 1" in refused(path, root)


@given(data=st.binary(max_size=40) | st.text('{}[]",:01enull ', max_size=40).map(str.encode))
def test_whatever_a_list_holds_is_read_or_refused(data):
    with pytest.raises(BundleError):
        parse_index(data)


# -- damage ----------------------------------------------------------------------------------------------


@MANY
@given(data=st.data())
def test_cut_short_at_any_byte_it_is_refused(root, archive, data):
    whole = archive.read_bytes()
    path = archive.with_name("x.tar.gz")
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(path, root)


@MANY
@given(data=st.data())
def test_with_any_bit_flipped_the_old_results_or_the_right_new_ones_are_there(
    tmp_path_factory, archive, data
):
    root = write_tree(tmp_path_factory.mktemp("flip") / "results", OLD, NOW - 1)
    whole = bytearray(archive.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = archive.with_name("x.tar.gz")
    path.write_bytes(whole)
    try:
        bring(path, root)
    except BundleError as error:
        assert str(error).isprintable() and read_tree(root) == OLD
    else:  # a time or name in a gzip header is nobody's content
        assert read_tree(root) == {**OLD, **TREE}


@MANY
@given(data=st.data())
def test_with_any_byte_of_the_tar_changed_the_old_results_or_the_right_new_ones_are_there(
    tmp_path_factory, archive, data
):
    """What gzip's checksum cannot see, as it was computed over the damage."""
    root = write_tree(tmp_path_factory.mktemp("flip") / "results", OLD, NOW - 1)

    def damage(tar: bytes) -> bytes:
        where = data.draw(st.integers(0, len(tar) - 1))
        return tar[:where] + data.draw(st.binary(min_size=1, max_size=2)) + tar[where + 1 :]

    path = repacked(archive, damage)
    try:
        bring(path, root)
    except BundleError as error:
        assert str(error).isprintable() and read_tree(root) == OLD
    else:
        new = read_tree(root)
        assert {name: new.pop(name) for name in TREE} == TREE and new == {"mine": b"mine"}
    finally:
        bundle(path.parent.parent / "source", path.parent)


@pytest.mark.parametrize("where", [0, 110, 140, 156, 300])
def test_a_header_that_does_not_match_its_checksum_is_refused(tmp_path, root, where):
    path = write_tar(tmp_path / "x.tar.gz", [member("results/a/b")])
    repacked(path, lambda tar: tar[:where] + bytes([tar[where] ^ 1]) + tar[where + 1 :])
    assert "a header does not match its checksum" in refused(path, root)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x1f\x8b", b"plain text", gzip.compress(b"no tar" * 200, mtime=0)]
)
def test_what_is_no_archive_is_refused(tmp_path, root, content):
    refused(write(tmp_path / "x.tar.gz", content), root)


def test_an_archive_without_results_is_refused(tmp_path, root):
    empty = write_tar(tmp_path / "x.tar.gz", [member("results", b"", tarfile.DIRTYPE)])
    assert "holds no files below results/" in refused(empty, root)


def test_what_follows_the_end_is_refused(root, archive):
    assert "data after its end" in refused(repacked(archive, lambda tar: tar + tar), root)


# -- too much ----------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, root, monkeypatch):
    monkeypatch.setattr(opening, "_ALWAYS_ALLOWED", 1 << 20)
    path = write_tar(tmp_path / "x.tar.gz", [member("results/a", bytes(20 << 20))])
    assert "far more than its size" in refused(path, root)


def test_a_member_larger_than_any_result_is_refused(tmp_path, root):
    head = tarfile.TarInfo("results/a")
    head.size = 5 << 30
    path = write(tmp_path / "x.tar.gz", gzip.compress(head.tobuf()))
    assert "has 5368709120 bytes, more than any result" in refused(path, root)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_an_endless_header_is_refused_before_it_fills_the_memory(tmp_path, root, kind):
    head = tarfile.TarInfo("x")
    head.type, head.size = kind, 8 << 30
    path = write(tmp_path / "x.tar.gz", gzip.compress(head.tobuf(tarfile.GNU_FORMAT)))
    assert "extended header of 8589934592 bytes" in refused(path, root)


@pytest.mark.parametrize(
    "record", [b"", b"x", b"0 a=b\n", b"-5 a=b\n", b"99 a=b\n", b"7 a=b\nx", b"6 ab\n", b" =\n"]
)
def test_an_extended_header_without_sense_is_refused(tmp_path, root, record):
    record += b"path=results/x\n"
    path = write_tar(tmp_path / "x.tar.gz", [member("x", record, tarfile.XHDTYPE), member("results/a")])
    assert "no valid length" in refused(path, root)


@pytest.mark.parametrize("value", ["x", "-1", "nan", "", "9" * 30, "1e400"])
@pytest.mark.parametrize("key", ["size", "mtime"])
def test_an_extended_number_without_sense_is_refused_or_harmless(tmp_path, key, value):
    length = len(f" {key}={value}\n") + 2
    record = f"{length} {key}={value}\n".encode()
    path = write_tar(tmp_path / "x.tar.gz", [member("x", record, tarfile.XHDTYPE), member("results/a")])
    root = tmp_path / "results"
    try:
        bring(path, root)
    except BundleError as error:
        assert str(error).isprintable() and not root.exists()
    else:
        assert key == "mtime" and read_tree(root) == {"a": b"x"}


def test_a_list_is_what_other_programs_see_too(archive):
    assert set(index_of(archive)["members"]) == set(TREE)
