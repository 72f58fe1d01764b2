"""What happens to archives on their way: Macs, browsers and file managers change members and names."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest

from eval_sidecar.errors import BundleError
from eval_sidecar.transfer import find_bundle, unpack
from transfer_files import (
    MODEL,
    NOW,
    TREE,
    bring,
    bundle,
    index_of,
    make,
    member,
    members_of,
    metrics,
    read_tree,
    result,
    write,
    write_tar,
    write_tree,
)


@pytest.fixture
def archive(tmp_path) -> Path:
    return bundle(write_tree(tmp_path / "source"), tmp_path / "Downloads", name="results_sync_x")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "results"


def found_in(root: Path, *arguments: object) -> dict[str, bytes]:
    unpack(find_bundle(list(map(str, arguments)), []), root)
    return read_tree(root)


MAC = [
    member("._results", b"\0\5\26\7"),
    member("./._results", b"\0\5\26\7"),
    member("results/._.bundle.json", b"\0\5\26\7"),
    member(f"results/{MODEL}/._checkpoint-100", b"\0\5\26\7"),
    member("results/.DS_Store"),
    member("__MACOSX/results/x"),
    member("results/@eaDir/x"),
    member(f"results/{MODEL}/Thumbs.db"),
    member("results/PLAIN", pax_headers={"LIBARCHIVE.xattr.com.apple.provenance": "AQIA"}),
]


@pytest.mark.parametrize("extra", MAC[:-1], ids=lambda item: item[0].name)
@pytest.mark.parametrize("first", [True, False])
def test_what_other_systems_add_to_a_bundle_is_passed_by(tmp_path, root, archive, extra, first):
    members = members_of(archive)
    packed = write_tar(tmp_path / "again.tar.gz", [extra, *members] if first else [*members, extra])
    report = bring(packed, root)
    assert read_tree(root) == TREE
    assert report.index is not None and report.ignored == 1


def test_an_archive_of_the_older_layout_that_a_mac_made_is_read(tmp_path, root):
    files = [member(f"./results/{name}", data) for name, data in TREE.items()]
    info, _ = files[0]
    info.pax_headers = {
        "LIBARCHIVE.xattr.com.apple.provenance": "AQIAAAAAAAA",
        "SCHILY.xattr.com.apple.FinderInfo": "\n=\0\x01 9 x=",
    }
    packed = write_tar(tmp_path / "result.tar.gz", [MAC[0], *files[:2], *MAC[1:-1], *files[2:]])
    bring(packed, root)
    assert read_tree(root) == TREE


def test_a_bundle_that_another_program_packed_again_is_still_checked_and_ordered(tmp_path, root, archive):
    listing, *files = members_of(archive)
    again = write_tar(tmp_path / "again.tar.gz", [*files, listing])
    assert bring(again, root).index is not None
    changed = [(info, data) for info, data in files if not info.name.endswith("200/metrics.json")]
    more = member(f"results/{result(200)}", b"other")
    report = bring(write_tar(tmp_path / "more.tar.gz", [*changed, more, listing]), tmp_path / "there")
    assert report.index is None and read_tree(tmp_path / "there")[result(200)] == b"other"


@pytest.mark.parametrize("name", ["results_sync_x.tar", "results_sync_x.tar.gz", "results_sync_x"])
def test_an_archive_that_a_browser_has_unzipped_is_read_whatever_it_is_called(tmp_path, root, archive, name):
    plain = gzip.decompress(archive.read_bytes())
    archive.unlink()
    path = write(tmp_path / "Downloads" / name, plain)
    assert found_in(root, path) == TREE


def test_an_unzipped_archive_is_found_by_folder_and_pattern_too(tmp_path, root, archive):
    write(archive.with_suffix(""), gzip.decompress(archive.read_bytes()))
    archive.unlink()
    assert found_in(root, tmp_path / "Downloads") == TREE
    assert found_in(root, tmp_path / "Downloads" / "result*") == TREE
    assert found_in(root, tmp_path / "Downloads" / "results_sync_") == TREE


def test_an_archive_that_a_server_has_zipped_twice_is_read(root, archive):
    archive.write_bytes(gzip.compress(archive.read_bytes()))
    assert bring(archive, root).new


def test_a_truncated_one_that_was_unzipped_is_refused(root, archive):
    archive.write_bytes(gzip.decompress(archive.read_bytes())[:-2000])
    with pytest.raises(BundleError, match="is cut short"):
        bring(archive, root)


COPIES = ["x (1).tar.gz", "x(1).tar.gz", "x (12).tar", "x copy.tar.gz", "x - Copy.tar.gz", "x - Copy (2).tgz"]


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("broken", ["the copy", "the first", "none"])
def test_of_several_copies_of_an_archive_a_whole_one_is_taken(tmp_path, root, archive, copy, broken):
    first = archive.rename(archive.with_name("x.tar.gz"))
    second = write(archive.with_name(copy), first.read_bytes(), NOW)
    os.utime(first, ns=(NOW - 1, NOW - 1))
    broken_file = {"the copy": second, "the first": first}.get(broken)
    if broken_file is not None:
        write(broken_file, first.read_bytes()[:-20], broken_file.stat().st_mtime_ns)
    found = find_bundle([str(first), str(second)], [])
    assert found.passed_over == 0
    unpack(found, root)
    assert read_tree(root) == TREE


def test_of_several_archives_the_newest_by_their_own_word_is_taken_whenever_they_came(tmp_path, root):
    source = write_tree(tmp_path / "source")
    old = bundle(source, tmp_path / "in", name="result_a")
    write(source / result(100), metrics(0.9), NOW - 1)
    new = bundle(source, tmp_path / "in", name="result_b")
    os.utime(new, ns=(NOW, NOW))
    os.utime(old, ns=(NOW + 1, NOW + 1))
    assert find_bundle([str(tmp_path / "in")], []).paths == (new,)


@pytest.mark.parametrize(
    "rename",
    [
        "{archive}.part-{part} (1)",
        "{archive}.part-{part}(1)",
        "{archive} (1).part-{part}",
        "{stem} (1).tar.gz.part-{part}",
        "{archive}.part-{part} (1).tar.gz",
        "{archive}.part-{part}.txt",
    ],
)
def test_parts_that_were_renamed_on_the_way_are_found(tmp_path, root, rename):
    tree = {**TREE, f"{MODEL}/noise": os.urandom(150_000)}
    report = make(
        write_tree(tmp_path / "source", tree), tmp_path / "in", name="results_x", chunk_size=64 << 10
    )
    assert len(report.archive) == 3
    for path in report.archive[1:]:
        archive, _, part = path.name.partition(".part-")
        stem = archive.rpartition(".tar")[0]
        path.rename(path.with_name(rename.format(archive=archive, stem=stem, part=part)))
    assert found_in(root, tmp_path / "in") == tree
    shutil.rmtree(root)
    (second,) = [path for path in (tmp_path / "in").iterdir() if "part-002" in path.name]
    assert found_in(root, second) == tree
    second.write_bytes(second.read_bytes()[:-5])
    with pytest.raises(BundleError, match="part 2 of 3"):
        found_in(root, tmp_path / "in")


def test_the_history_in_an_archive_is_not_believed_blindly(tmp_path, root, archive):
    from transfer_files import with_index

    for history in (5, {}, {"id": "x", "after": []}, {"id": "0" * 16, "after": ["0" * 16] * 5000}, None):
        changed = with_index(
            archive, tmp_path / "x.tar.gz", lambda listing, history=history: {**listing, "history": history}
        )
        with pytest.raises(BundleError, match="damaged"):
            bring(changed, root)
    assert index_of(archive)["history"]["after"] == []
