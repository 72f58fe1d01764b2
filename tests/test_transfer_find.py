"""Which archive `unpack` takes when it is given a file, a beginning, a pattern, several, or nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from eval_sidecar.errors import BundleError, UsageError
from eval_sidecar.transfer import find_bundle
from transfer_files import NOW, write


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three archives, the one in the middle the newest, and files that are none."""
    folder = tmp_path / "Down loads"
    for name, age in (("result_a", 3), ("results_sync_b", 1), ("results_sync_c", 2), ("other", 0)):
        write(folder / f"{name}.tar.gz", b"", NOW - age)
    write(folder / "results_sync_d.tar.gz.crdownload", b"")
    write(folder / "results.txt", b"")
    (folder / "results_folder.tar.gz").mkdir()
    return folder


def chosen(*arguments: object, folders: tuple[Path, ...] = ()) -> tuple[str, int]:
    found = find_bundle(list(map(str, arguments)), folders)
    (path,) = found.paths
    return path.name, found.passed_over


def test_a_file_is_taken_whatever_its_name(folder):
    assert chosen(folder / "other.tar.gz") == ("other.tar.gz", 0)
    assert chosen(folder / "results.txt") == ("results.txt", 0)


def test_of_several_the_newest_is_taken(folder):
    files = sorted(folder.glob("result*.tar.gz"))
    files.remove(folder / "results_folder.tar.gz")
    assert chosen(*files) == ("results_sync_b.tar.gz", 2)
    assert chosen(*files, *files) == ("results_sync_b.tar.gz", 2)


def test_a_beginning_of_a_name_is_enough(folder):
    assert chosen(folder / "results_sync_c") == ("results_sync_c.tar.gz", 0)
    assert chosen(folder / "results_sync_") == ("results_sync_b.tar.gz", 1)
    assert chosen(folder / "oth") == ("other.tar.gz", 0)


def test_a_pattern_that_the_shell_left_alone_is_a_pattern(folder):
    assert chosen(folder / "result*.tar.gz") == ("results_sync_b.tar.gz", 2)


def test_a_folder_is_looked_into(folder):
    assert chosen(folder) == ("results_sync_b.tar.gz", 2)


def test_without_a_name_the_newest_result_of_all_folders_is_taken(folder, tmp_path):
    here = tmp_path / "here"
    assert chosen(folders=(folder, here)) == ("results_sync_b.tar.gz", 2)
    write(here / "results_sync_e.tar.gz", b"", NOW)
    assert chosen(folders=(folder, here)) == ("results_sync_e.tar.gz", 3)


def test_the_newest_is_by_the_time_of_the_file_not_by_its_name(folder):
    os.utime(folder / "result_a.tar.gz", ns=(NOW + 1, NOW + 1))
    assert chosen(folders=(folder,)) == ("result_a.tar.gz", 2)


@pytest.mark.parametrize(
    "text", ["nothing", "nothing*.tar.gz", "[", "results_folder", "results_sync_d.tar.gz.cr"]
)
def test_what_is_not_there_is_named(folder, text):
    with pytest.raises(UsageError) as caught:
        find_bundle([f"{folder}/{text}"], [])
    assert f"{folder}/{text}: there is no such archive" in str(caught.value)


def test_without_a_name_and_without_archives_the_places_are_named(tmp_path):
    with pytest.raises(UsageError, match=rf"there is no result\*.tar.gz in {tmp_path} or nowhere"):
        find_bundle([], [tmp_path, Path("nowhere")])


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    opening = Path.open

    def refusing(self, *arguments, **named):
        if self.name == "other.tar.gz":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opening(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(BundleError, match=r"other.tar.gz: cannot be read \(Permission denied\)"):
        find_bundle([str(folder / "other.tar.gz")], [])
