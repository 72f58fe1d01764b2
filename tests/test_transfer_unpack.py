"""`unpack`: in any order and as often as one likes, what is there in the end is the newest that came."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import tarfile
from pathlib import Path

import filelock
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval_sidecar.errors import BundleError, LockedError
from eval_sidecar.ledger.stamps import list_stamps
from eval_sidecar.paths import MANIFEST, ResultPaths
from eval_sidecar.transfer import Rules, arriving, scan
from eval_sidecar.transfer.changes import digest_of
from transfer_files import (
    MODEL,
    NOW,
    SECOND,
    TREE,
    bring,
    bundle,
    index_of,
    member,
    metrics,
    read_times,
    read_tree,
    receipt,
    result,
    with_index,
    write,
    write_tar,
    write_tree,
)

QUICK = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def archive(tmp_path) -> Path:
    return bundle(write_tree(tmp_path / "source"), tmp_path / "carried on foot")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "home of $USER" / "results"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "is a page of the web"),
        (gzip.compress(b"<html>404</html>", mtime=0), "is a page of the web"),
        (b"PK\x03\x04" + bytes(600), "is a zip file: unzip it"),
        (b"BZh91AY" + bytes(600), "run `bzip2 -d`"),
        (b"\xfd7zXZ\0" + bytes(600), "run `xz -d`"),
    ],
)
def test_a_download_that_is_something_else_is_named_as_what_it_is(tmp_path, root, content, what):
    path = tmp_path / "results_sync.tar.gz"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=what):
        bring(path, root)
    assert not root.exists() or not list(root.glob("[!.]*"))


def test_everything_arrives_with_its_time(archive, root):
    report = bring(archive, root)
    assert read_tree(root) == TREE and set(read_times(root).values()) == {NOW}
    assert sorted(report.new) == sorted(TREE) and report.files == 5 and report.has_manifest


def test_a_second_time_changes_nothing(archive, root):
    bring(archive, root)
    before = [((root / name).stat().st_ctime_ns, (root / name).stat().st_ino) for name in TREE]
    report = bring(archive, root)
    assert [((root / name).stat().st_ctime_ns, (root / name).stat().st_ino) for name in TREE] == before
    assert (report.same, report.new, report.changed, report.kept) == (5, [], [], [])


def test_what_is_identical_is_not_written_and_a_later_time_stays(archive, root):
    path = write(root / result(100), TREE[result(100)], NOW + 7)
    inode = path.stat().st_ino
    bring(archive, root)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (inode, NOW + 7)


def test_what_the_archive_does_not_have_stays(archive, root):
    write(root / "My-model/checkpoint-1/metrics.json", b"{}")
    write(root / ".wandb_eval_receipt.json", b"{}")
    bring(archive, root)
    assert set(read_tree(root)) == {*TREE, "My-model/checkpoint-1/metrics.json", ".wandb_eval_receipt.json"}


@pytest.mark.parametrize("age", [-1, 0, 1, -(10**6) * SECOND])
def test_a_file_that_no_archive_brought_gives_way_whatever_its_time_and_is_kept_beside(archive, root, age):
    path = write(root / result(100), b"mine", NOW - age)
    report = bring(archive, root)
    assert report.changed == [result(100)] and report.kept == [] and read_tree(root) == TREE
    (kept,) = path.parent.glob("metrics.json.before-unpack-*")
    assert kept.read_bytes() == b"mine" and report.beside == {result(100): kept.name}


def test_what_is_kept_beside_is_no_result_is_not_packed_and_not_mirrored_away(archive, root, tmp_path):
    path = write(root / result(100), b"mine")
    bring(archive, root)
    (kept,) = path.parent.glob("*.before-unpack-*")
    assert list_stamps(root / MODEL).keys() == {100, 200}
    assert not any("before-unpack" in name for name in index_of(bundle(root, tmp_path / "again"))["members"])
    bring(archive, root, mirror=True)
    assert kept.exists()
    assert bring(archive, root).same == 5


def test_what_an_archive_brought_gives_way_to_a_newer_one_without_a_trace(tmp_path, root):
    source = write_tree(tmp_path / "source")
    bring(bundle(source, tmp_path / "1"), root)
    write(source / result(100), b"{}", NOW - 5 * SECOND)  # from a machine whose clock went back
    report = bring(bundle(source, tmp_path / "2"), root)
    assert (report.changed, report.kept, report.beside) == ([result(100)], [], {})
    assert read_tree(root)[result(100)] == b"{}"


def test_an_old_archive_after_a_newer_one_changes_nothing_and_says_so(tmp_path, root):
    source = write_tree(tmp_path / "source", {**TREE, "Gone-model/checkpoint-1/metrics.json": b"{}"})
    old = bundle(source, tmp_path / "1")
    write(source / result(100), b"{}", NOW - 5 * SECOND)
    (source / "Gone-model/checkpoint-1/metrics.json").unlink()
    bring(bundle(source, tmp_path / "2"), root)
    before = read_tree(root)
    report = bring(old, root)
    assert read_tree(root) == before
    assert report.kept == [result(100), "Gone-model/checkpoint-1/metrics.json"][::-1]
    assert bring(old, root, force=True).changed == [result(100)]


def test_an_archive_that_arrives_late_brings_what_a_later_incremental_one_does_not_have(tmp_path, root):
    source = write_tree(tmp_path / "source")
    full = bundle(source, tmp_path / "1")
    write(source / result(300), metrics(0.3))
    write(source / result(100), metrics(0.4))
    confirmed = receipt(tmp_path / "receipt.json", {MODEL: {200: digest_of(metrics(0.2))}})
    bring(bundle(source, tmp_path / "2", receipt=confirmed), root)
    assert bring(full, root).kept == [result(100)]
    assert read_tree(root) == read_tree(source)


def test_the_archives_of_two_machines_are_each_in_their_own_order(tmp_path, root):
    a = write_tree(
        tmp_path / "a", {"A/checkpoint-1/metrics.json": b"1", "both/checkpoint-1/metrics.json": b"a"}
    )
    b = write_tree(
        tmp_path / "b", {"B/checkpoint-1/metrics.json": b"1", "both/checkpoint-1/metrics.json": b"b"}
    )
    a1, b1 = bundle(a, tmp_path / "a1"), bundle(b, tmp_path / "b1")
    write(a / "A/checkpoint-1/metrics.json", b"2", NOW - 1)
    a2 = bundle(a, tmp_path / "a2")
    for archive in (a2, b1, a1, b1):
        bring(archive, root)
    assert read_tree(root) == {
        "A/checkpoint-1/metrics.json": b"2",
        "B/checkpoint-1/metrics.json": b"1",
        "both/checkpoint-1/metrics.json": b"b",  # what was unpacked last
    }


def test_the_manifests_of_two_machines_become_one(tmp_path, root):
    for name in ("a", "b"):
        listed = json.dumps({"version": 1, "models": [{"model_dir": name}]}).encode()
        source = write_tree(tmp_path / name, {f"{name}/checkpoint-1/metrics.json": b"{}", MANIFEST: listed})
        bring(bundle(source, tmp_path / f"{name}1"), root)
    write(tmp_path / "a/a/checkpoint-2/metrics.json", b"{}")
    again = bundle(tmp_path / "a", tmp_path / "a2")
    for _ in range(2):
        report = bring(again, root)
        models = json.loads(read_tree(root)[MANIFEST])["models"]
        assert sorted(model["model_dir"] for model in models) == ["a", "b"]
    assert (report.same, report.changed, report.beside) == (3, [], {})


def without_history(path: Path, target: Path) -> Path:
    """The archive as an older version has packed it."""
    return with_index(path, target, lambda listing: {k: v for k, v in listing.items() if k != "history"})


@pytest.mark.parametrize("words", ["manifest", "result"])
def test_archives_of_before_are_ordered_by_their_manifests_time_or_else_their_newest_result(
    tmp_path, root, words
):
    source = write_tree(tmp_path / "source")
    archives = []
    for moment in (1, 2):
        time = f"2026-01-0{moment if words == 'manifest' else 1}T00:00:00+00:00"
        listed = json.dumps({"version": 1, "generated_at": time, "models": []}).encode()
        write(source / MANIFEST, listed)
        age = 1 if words == "result" else -1
        write(source / result(100), metrics(moment / 10), NOW + age * moment)
        packed = bundle(source, tmp_path / f"packed {moment}")
        archives.append(without_history(packed, tmp_path / f"{moment}.tar.gz"))
    old, new = archives
    bring(new, root)
    assert bring(old, root).kept
    assert read_tree(root) == read_tree(source)
    assert bring(new, root).changed == []


def test_an_archive_of_before_does_not_undo_one_of_now(tmp_path, root):
    source = write_tree(tmp_path / "source")
    old = without_history(bundle(source, tmp_path / "1"), tmp_path / "old.tar.gz")
    write(source / result(100), metrics(0.9), NOW + SECOND)
    new = bundle(source, tmp_path / "2")
    bring(new, root)
    assert bring(old, root).kept == [result(100)]
    assert read_tree(root) == read_tree(source)


def test_a_memory_that_cannot_be_read_is_kept_and_one_of_a_newer_version_refused(archive, root, caplog):
    bring(archive, root)
    write(root / ".unpacked.json", b"{")
    bring(archive, root)
    assert (root / ".unpacked.json.unreadable").exists() and "cannot be used" in caplog.text
    write(root / ".unpacked.json", b'{"version": 9}')
    with pytest.raises(BundleError, match="is of version 9; install a newer eval-sidecar"):
        bring(archive, root)


NAMES = st.text(
    st.characters(blacklist_categories=("Cc",), blacklist_characters="/\0") | st.sampled_from("\n\t\"'\\*"),
    min_size=1,
    max_size=12,
).filter(lambda name: not name.startswith(".") and not name.endswith(("~", ".tmp", ".swp")))
FILES = st.dictionaries(
    st.lists(
        NAMES | st.sampled_from(["a" * 120, "checkpoint-1", "metrics.json"]), min_size=2, max_size=4
    ).map("/".join),
    st.tuples(
        st.binary(max_size=60) | st.just(bytes(9000)),
        st.integers(0, 2**33).map(lambda s: s * SECOND + 123456),
    ),
    min_size=1,
    max_size=6,
).filter(lambda files: not any(f"{a}/".startswith(f"{b}/") for a in files for b in files if a != b))


@QUICK
@given(files=FILES)
def test_packed_unpacked_and_packed_again_it_is_the_same_archive(tmp_path_factory, files):
    base = tmp_path_factory.mktemp("trip")
    source = base / "source"
    try:
        for name, (data, mtime_ns) in files.items():
            write(source / name, data, mtime_ns)
    except (UnicodeEncodeError, OSError):
        return  # no file system has such a name
    first = bundle(source, base / "first")
    bring(first, base / "there")
    assert read_tree(base / "there") == read_tree(source)
    second = bundle(base / "there", base / "second")
    assert (second.name, second.read_bytes()) == (first.name, first.read_bytes())


def test_names_that_are_no_text_survive(tmp_path):
    name = os.fsdecode(b"model-\xff\xfe/checkpoint-1/" + b"\xe9" * 120)
    first = bundle(write_tree(tmp_path / "a", {name: b"x"}), tmp_path / "first")
    bring(first, tmp_path / "b")
    assert read_tree(tmp_path / "b") == {name: b"x"}
    assert bundle(tmp_path / "b", tmp_path / "second").read_bytes() == first.read_bytes()


@QUICK
@given(data=st.data())
def test_in_any_order_the_newest_of_each_file_stays(tmp_path_factory, data):
    """Versions of a few files are packed now and then; all bundles arrive, somehow, some of them twice."""
    base = tmp_path_factory.mktemp("order")
    source, newest, archives = base / "source", {}, []
    for moment in range(1, data.draw(st.integers(2, 4)) + 1):
        for name in data.draw(st.sets(st.sampled_from([result(1), result(2), MANIFEST]), min_size=1)):
            newest[name] = metrics(data.draw(st.sampled_from([0.1, 0.2])))
            write(source / name, newest[name], NOW + moment)
        if not newest.keys() - {MANIFEST}:
            newest[result(1)] = b"{}"
            write(source / result(1), b"{}", NOW + moment)
        archives.append(bundle(source, base / str(moment)))
    arrivals = data.draw(
        st.permutations(archives + data.draw(st.lists(st.sampled_from(archives), max_size=2)))
    )
    for archive in arrivals:
        bring(archive, base / "there")
    assert read_tree(base / "there") == newest
    assert read_times(base / "there") == read_times(source)


# -- mirror ----------------------------------------------------------------------------------------------


def test_mirror_removes_what_the_archive_does_not_have_and_empty_folders(archive, root):
    gone = [result(900), "Old-model/checkpoint-1/metrics.json", "Old-model/notes.txt"]
    write_tree(root, dict.fromkeys(gone, b"x"))
    report = bring(archive, root, mirror=True)
    assert report.removed == sorted(gone)
    assert read_tree(root) == TREE and not (root / "Old-model").exists()


def test_mirror_leaves_what_no_archive_would_have(tmp_path, root):
    source = write_tree(tmp_path / "source")
    archive = bundle(source, tmp_path / "out", rules=Rules(max_file_size=100))
    folder = f"{MODEL}/checkpoint-100"
    mine = [f"{folder}/final_result.json", f"{folder}/x.tmp", f"{folder}/.x", ".wandb_eval_receipt.json"]
    write_tree(root, {**dict.fromkeys(mine, b"x"), f"{folder}/large": bytes(101)})
    assert bring(archive, root, mirror=True).removed == []


def test_mirror_spares_what_packing_could_not_read(tmp_path, root, monkeypatch):
    source, opening = write_tree(tmp_path / "source"), os.open

    def refusing(path, *arguments, **named):
        if str(path).endswith(result(200)):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opening(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(scan.os, "open", refusing)
        archive = bundle(source, tmp_path / "out")
    write(root / result(200), b"x")
    assert bring(archive, root, mirror=True).removed == []


def test_mirror_refuses_an_incremental_archive(tmp_path, root):
    source = write_tree(tmp_path / "source")
    archive = bundle(source, tmp_path / "out", receipt=receipt(tmp_path / "receipt.json", {}))
    write(root / "mine", b"x")
    with pytest.raises(BundleError, match="is incremental; --mirror needs a full archive"):
        bring(archive, root, mirror=True)
    assert read_tree(root) == {"mine": b"x"}


def test_mirror_refuses_an_archive_without_a_list(tmp_path, root):
    archive = write_tar(tmp_path / "x.tar.gz", [member("results/a/b")])
    with pytest.raises(BundleError, match="does not say that it holds everything"):
        bring(archive, root, mirror=True)


def test_mirror_refuses_an_archive_that_is_older_than_what_was_unpacked(tmp_path, root):
    source = write_tree(tmp_path / "source")
    old = bundle(source, tmp_path / "1")
    write(source / result(300), metrics(0.3), NOW - 1)
    bring(bundle(source, tmp_path / "2"), root)
    with pytest.raises(
        BundleError, match=rf"older than an archive that was unpacked.*\(1\), such as {result(300)}"
    ):
        bring(old, root, mirror=True)
    assert read_tree(root) == read_tree(source)
    bring(old, root, mirror=True, force=True)
    assert read_tree(root) == TREE


def test_mirror_moves_away_what_no_archive_brought_and_removes_what_one_did(tmp_path, root):
    source = write_tree(tmp_path / "source", {**TREE, "Old-model/checkpoint-1/metrics.json": b"{}"})
    bring(bundle(source, tmp_path / "1"), root)
    (source / "Old-model/checkpoint-1/metrics.json").unlink()
    write(root / "My-model/checkpoint-1/metrics.json", b"mine", NOW + SECOND)
    report = bring(bundle(source, tmp_path / "2"), root, mirror=True)
    assert report.moved == ["My-model/checkpoint-1/metrics.json"]
    assert report.removed == ["My-model/checkpoint-1/metrics.json", "Old-model/checkpoint-1/metrics.json"]
    assert (root / ".before-unpack/My-model/checkpoint-1/metrics.json").read_bytes() == b"mine"
    assert read_tree(root) == TREE and not (root / "My-model").exists()


# -- archives of older scripts ------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["GenRec/results", "results", "./results", "./GenRec/results"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_older_layouts_are_understood(tmp_path, root, top, form):
    long = f"{'m' * 90}/checkpoint-1/{'n' * 90}"
    folders = [top.rpartition("/")[0] or ".", top, f"{top}/{MODEL}"]
    archive = write_tar(
        tmp_path / "result.tar.gz",
        [
            *(member(folder, b"", tarfile.DIRTYPE) for folder in folders),
            *(member(f"{top}/{name}", data) for name, data in TREE.items()),
            *([member(f"{top}/{long}", b"long")] if form != tarfile.USTAR_FORMAT else []),
        ],
        form,
    )
    report = bring(archive, root)
    assert report.index is None
    assert read_tree(root) == ({**TREE, long: b"long"} if form != tarfile.USTAR_FORMAT else TREE)
    assert set(read_times(root).values()) == {NOW}


def test_what_tar_itself_packs_is_understood(tmp_path, root):
    long = f"{'m' * 90}/checkpoint-1/{'n' * 90}"
    write_tree(tmp_path / "GenRec/results", {**TREE, long: b"", "Größe/x": bytes(3_000_000)})
    for form in ("gnu", "posix", "ustar", "v7"):
        names = ["GenRec/results"] if form in ("gnu", "posix") else [f"GenRec/results/{MODEL}"]
        archive = tmp_path / f"{form}.tar.gz"
        subprocess.run(["tar", "czf", str(archive), f"--format={form}", *names], cwd=tmp_path, check=True)
        there = root / form
        bring(archive, there)
        expected = read_tree(tmp_path / "GenRec/results")
        if form not in ("gnu", "posix"):
            expected = {name: data for name, data in expected.items() if name.startswith(MODEL)}
        assert read_tree(there) == expected


def test_the_times_in_headers_of_gnu_tar_are_not_taken_for_a_part_of_the_name(tmp_path, root):
    """``tar --listed-incremental`` puts them where other formats have the beginning of a long name."""
    info, data = member("results/a/b")
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[345:369] = b"14524770000\x0014524770001\0"
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * ord(" ") + sum(head[156:]))
    archive = write(tmp_path / "x.tar.gz", gzip.compress(bytes(head) + data.ljust(512, b"\0") + bytes(1024)))
    bring(archive, root)
    assert read_tree(root) == {"a/b": b"x"}


def test_hidden_files_of_an_older_archive_are_left_out(tmp_path, root):
    hidden = [".wandb_eval_receipt.json", ".unpack/x", "a/.ssh/key", ".bundle.json"]
    archive = write_tar(
        tmp_path / "result.tar.gz",
        [member("results/a/b"), *(member(f"results/{name}") for name in hidden)],
    )
    assert bring(archive, root).ignored == 4
    assert read_tree(root) == {"a/b": b"x"}


def test_an_older_archive_does_not_undo_a_newer_one(tmp_path, archive, root):
    bring(archive, root)
    older = member(f"GenRec/results/{result(100)}", b"old", mtime=NOW // SECOND - 100)
    report = bring(write_tar(tmp_path / "result_old.tar.gz", [older]), root)
    assert report.kept == [result(100)] and read_tree(root) == TREE


# -- where it goes ------------------------------------------------------------------------------------------


def test_results_that_are_a_link_are_followed(archive, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to("disk")
    bring(archive, tmp_path / "results")
    assert read_tree(tmp_path / "disk") == TREE


@pytest.mark.parametrize("kind", ["link", "file"])
def test_nothing_is_written_through_a_link_or_a_file_in_a_folders_place(archive, root, tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    root.mkdir(parents=True)
    if kind == "link":
        (root / MODEL).symlink_to(tmp_path / "elsewhere")
    else:
        (root / MODEL).write_bytes(b"")
    with pytest.raises(BundleError, match=f"{MODEL} is a {kind} here.*nothing was changed"):
        bring(archive, root)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not (root / "Games-grec-sft").exists()


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_link_or_folder_in_a_files_place_is_left_alone(archive, root, tmp_path, kind):
    path = root / result(100)
    path.parent.mkdir(parents=True)
    if kind == "link":
        write(tmp_path / "mine", b"mine")
        path.symlink_to(tmp_path / "mine")
    else:
        path.mkdir()
    with pytest.raises(
        BundleError, match=r"metrics.json is (a link|no plain file) here; nothing was changed"
    ):
        bring(archive, root)
    assert kind == "folder" or (tmp_path / "mine").read_bytes() == b"mine"


def test_a_folder_that_may_not_be_written_is_named_before_anything_is_changed(archive, root, monkeypatch):
    write(root / result(100), b"old", NOW - 1)
    allowed = os.access
    read_only = root / MODEL / "checkpoint-100"
    monkeypatch.setattr(os, "access", lambda path, mode: path != read_only and allowed(path, mode))
    with pytest.raises(BundleError, match="checkpoint-100: permission denied; nothing was changed"):
        bring(archive, root)
    assert read_tree(root) == {result(100): b"old"}


def test_a_results_root_that_may_not_be_written_is_named(archive, root, monkeypatch):
    root.mkdir(parents=True)

    def refusing(self, *arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refusing)
    with pytest.raises(BundleError, match="Permission denied"):
        bring(archive, root)


def test_two_do_not_unpack_at_a_time(archive, root):
    root.mkdir(parents=True)
    with (
        filelock.FileLock(root / ".unpack.lock"),
        pytest.raises(LockedError, match="another unpack is under way"),
    ):
        bring(archive, root)
    assert read_tree(root) == {}


def test_what_a_killed_one_left_is_removed(archive, root):
    write(ResultPaths(root).unpack_staging / "0", b"half")
    bring(archive, root)
    assert read_tree(root) == TREE and not (ResultPaths(root).unpack_staging).exists()


def test_large_files_pass_through_the_disk(tmp_path, root, monkeypatch):
    monkeypatch.setattr(arriving, "_IN_MEMORY", 10)
    archive = bundle(write_tree(tmp_path / "source"), tmp_path / "out")
    write(root / result(200), b"mine", NOW + 1)
    write(root / result(100), TREE[result(100)])
    report = bring(archive, root)
    assert (len(report.new), report.same, report.changed) == (3, 1, [result(200)])
    assert read_tree(root) == TREE
