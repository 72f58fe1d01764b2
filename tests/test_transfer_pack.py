"""`pack`: the same bytes for the same results, what is left out, and what happens to files that move."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from eval_sidecar.errors import BundleError, UsageError
from eval_sidecar.paths import MANIFEST
from eval_sidecar.transfer import PackPlan, Rules, pack, scan
from eval_sidecar.transfer.index import parse_size
from transfer_files import (
    MODEL,
    NOW,
    SECOND,
    TREE,
    bundle,
    index_of,
    make,
    members_of,
    metrics,
    result,
    write,
    write_tree,
)


@pytest.fixture
def root(tmp_path) -> Path:
    return write_tree(tmp_path / "re sults")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out put"


def test_the_same_results_make_the_same_name_and_bytes(root, out, tmp_path):
    first = bundle(root, out)
    before = first.read_bytes()
    first.unlink()
    second = bundle(write_tree(tmp_path / "elsewhere"), out)
    assert (second.name, second.read_bytes()) == (first.name, before)


def test_other_results_make_another_name(root, out):
    first = bundle(root, out)
    write(root / result(200), metrics(0.9))
    assert bundle(root, out).name != first.name


def test_names_sort_as_their_content_ages(root, out):
    first = bundle(root, out)
    write(root / result(300), metrics(0.9), NOW + 5 * SECOND)
    second = bundle(root, out)
    assert first.name.startswith("results_sync_20231114T221320Z_")
    assert sorted([second.name, first.name]) == [first.name, second.name]


def test_every_member_is_listed_first_with_its_hash(root, out):
    path = bundle(root, out)
    members = members_of(path)
    assert members[0][0].name == "results/.bundle.json"
    listed = index_of(path)["members"]
    assert {info.name: [len(data), NOW, hashlib.sha256(data).hexdigest()] for info, data in members[1:]} == {
        f"results/{name}": entry for name, entry in listed.items()
    }
    assert {info.name[len("results/") :]: data for info, data in members[1:]} == TREE


def test_members_say_nothing_of_who_packed_them(root, out):
    for info, _ in members_of(bundle(root, out)):
        assert (info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, "", "", 0o644)


def test_other_programs_can_unpack_it(root, out, tmp_path):
    long = f"{'long' * 25}/checkpoint-100/{'name' * 40}.json"
    write(root / long, b"{}")
    write(root / "Größe 模型/checkpoint-1/metrics.json", b"{}")
    (tmp_path / "there").mkdir()
    subprocess.run(["tar", "xzf", str(bundle(root, out)), "-C", str(tmp_path / "there")], check=True)
    assert (tmp_path / "there/results" / long).read_bytes() == b"{}"
    assert (tmp_path / "there/results/Größe 模型/checkpoint-1/metrics.json").exists()
    with tarfile.open(bundle(root, out)) as archive:
        assert f"results/{long}" in archive.getnames()


def test_what_nobody_uploads_is_left_out_and_counted(root, out):
    folder = root / MODEL / "checkpoint-100"
    for name in ("final_result.json", "rollout.json", "metrics.json.tmp", ".hidden", "old~"):
        write(folder / name, b"x")
    write(folder / "large.bin", bytes(2000))
    write(root / ".cache" / "x", b"x")
    write(root / "results_sync_1.tar.gz", b"x")
    (folder / "link.json").symlink_to("metrics.json")
    (root / "linked-model").symlink_to(root / MODEL)
    os.mkfifo(folder / "fifo")
    report = make(root, out, rules=Rules(max_file_size=1000))
    assert set(index_of(report.archive[0])["members"]) == set(TREE)
    assert dict(report.left_out.counts) == {
        "name": 2,
        "temporary": 2,
        "size": 1,
        "bundle": 1,
        "link": 2,
        "special": 1,
    }
    assert sorted(report.left_out.links) == [f"{MODEL}/checkpoint-100/link.json", "linked-model"]
    assert (report.files, report.results, report.models) == (5, 3, 2)


def test_other_names_can_be_left_out(root, out):
    report = make(root, out, rules=Rules(exclude_names=("metrics.tsv",)))
    assert report.files == 4 and report.left_out.counts == {"name": 1}


def test_the_manifest_is_made_first_and_carried_from_wherever_it_is(root, out, tmp_path):
    (root / MANIFEST).unlink()
    manifest = tmp_path / "manifest.json"
    out.mkdir()
    report = pack(PackPlan(root, manifest, out), lambda: write(manifest, b"{}"))
    assert report.has_manifest
    assert [info.name for info, _ in members_of(report.archive[0])][1] == f"results/{MANIFEST}"


def test_an_archive_without_manifest_says_so(root, out):
    (root / MANIFEST).unlink()
    assert not make(root, out).has_manifest


def test_nothing_is_made_where_there_are_no_results(tmp_path, out):
    root = write_tree(tmp_path / "results", {MANIFEST: b"{}"})
    with pytest.raises(BundleError, match="nothing to pack"):
        make(root, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"results_root": "nowhere"}, "results_root nowhere: there is no such folder"),
        ({"output_dir": "nowhere"}, "output_dir nowhere: there is no such folder"),
        ({"chunk_size": 10}, "chunk_size 10"),
        ({"rules": Rules(max_file_size=2 << 30)}, "max_file_size 2147483648"),
        ({"name": "../x"}, "name ../x"),
        ({"name": ".x"}, "name .x"),
        ({"name": ""}, "name '': give a file name"),
        ({"name": "x" * 250}, "is too long: at most 220 bytes"),
    ],
)
def test_a_wrong_plan_is_named(root, out, changes, words):
    out.mkdir()
    values = {"results_root": root, "manifest": root / "m", "output_dir": out, **changes}
    for key in ("results_root", "output_dir"):
        values[key] = Path(values[key])
    with pytest.raises(UsageError) as wrong:
        pack(PackPlan(**values))
    assert words in f"{wrong.value.setting} {wrong.value}"


def test_a_name_that_is_given_is_taken(root, out):
    assert bundle(root, out, name="mine").name == "mine.tar.gz"
    assert bundle(root, out, name="yours.tar.gz").name == "yours.tar.gz"


def grow_after_reading(monkeypatch, path: Path, times: int) -> list[int]:
    """Let a file become longer each time that it has been read, so many times."""
    read, done = os.read, []

    def reading(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        if os.path.sameopenfile(descriptor, watched) and len(done) < times:
            done.append(1)
            with path.open("ab") as file:
                file.write(b" ")
        return data

    watched = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(scan.os, "read", reading)
    return done


def test_a_file_that_changes_while_it_is_read_is_read_again(root, out, monkeypatch):
    path = root / result(100)
    grow_after_reading(monkeypatch, path, 1)
    report = make(root, out)
    assert report.skipped == {}
    data = {info.name: data for info, data in members_of(report.archive[0])}
    assert data[f"results/{result(100)}"] == path.read_bytes()


def test_a_file_that_never_rests_is_left_out_and_named(root, out, monkeypatch):
    grow_after_reading(monkeypatch, root / result(100), 100)
    report = make(root, out)
    assert report.skipped == {result(100): "changed while it was read"}
    listing = index_of(report.archive[0])
    assert listing["skipped"] == [result(100)] and result(100) not in listing["members"]


def refuse_to_open(monkeypatch, end: str | tuple[str, ...], code: int) -> None:
    opening = os.open

    def refusing(path, *arguments, **named):
        if str(path).endswith(end):
            raise OSError(code, os.strerror(code), str(path))
        return opening(path, *arguments, **named)

    monkeypatch.setattr(scan.os, "open", refusing)


def test_a_file_that_may_not_be_read_is_left_out_and_named(root, out, monkeypatch):
    refuse_to_open(monkeypatch, result(200), errno.EACCES)
    report = make(root, out)
    assert report.skipped == {result(200): "Permission denied"} and report.files == 4


def test_a_file_that_vanishes_is_no_loss(root, out, monkeypatch):
    refuse_to_open(monkeypatch, result(200), errno.ENOENT)
    report = make(root, out)
    assert report.skipped == {} and report.files == 4


def test_a_folder_that_may_not_be_listed_is_named(root, out, monkeypatch):
    listing = os.scandir

    def refusing(path):
        if str(path).endswith(f"{MODEL}/"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(scan.os, "scandir", refusing)
    report = make(root, out)
    assert report.skipped == {f"{MODEL}/": "Permission denied"} and report.results == 1


def test_where_nothing_can_be_read_there_is_no_archive(root, out, monkeypatch):
    refuse_to_open(monkeypatch, ("metrics.json", "metrics.tsv"), errno.EIO)
    with pytest.raises(BundleError, match=r"nothing in it can be packed.*Input/output error"):
        make(root, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("chunk_size", [0, 64 * 1024])
def test_a_full_disk_leaves_no_archive_and_no_rest(root, out, monkeypatch, chunk_size):
    write(root / "noise", os.urandom(200_000))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="No space left on device; no archive was made"):
        make(root, out, chunk_size=chunk_size)
    assert list(out.iterdir()) == []


def test_progress_counts_to_the_end(root, out):
    out.mkdir()
    seen: list[tuple[int, int]] = []
    pack(PackPlan(root, root / MANIFEST, out), None, lambda *counts: seen.append(counts))
    assert seen[-1] == (5, 5)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("100", 100),
        ("64K", 65536),
        ("10M", 10 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("7MB", 7 << 20),
    ],
)
def test_sizes_have_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "ten", "-1", "1e9", "1..2", "10X", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError):
        parse_size(text)
