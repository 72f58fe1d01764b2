"""Files that are whole or not there, names that are never overwritten, locks that die with their holder."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from eval_sidecar.errors import LockedError, StateError
from eval_sidecar.ledger.requests import leave_request, read_request
from eval_sidecar.system.files import set_aside, write_json, write_text
from eval_sidecar.system.locks import held_lock


def test_text_is_written_in_folders_that_were_not_there(tmp_path):
    write_text(tmp_path / "a" / "b" / "x.txt", "héllo\n")
    assert (tmp_path / "a" / "b" / "x.txt").read_bytes() == "héllo\n".encode()


def test_the_content_is_on_the_disk_before_its_name_is_and_the_name_before_it_returns(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    seen = []
    fsync = os.fsync

    def look(descriptor):
        seen.append((path.exists(), stat.S_ISDIR(os.fstat(descriptor).st_mode)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_text(path, "x")
    assert seen == [(False, False), (True, True)]


def test_a_value_that_is_no_json_leaves_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert (tmp_path / "x.json").read_text() == '{"a": 1}\n'


def test_a_file_is_put_aside_under_a_name_that_says_why(tmp_path):
    (tmp_path / "x.json").write_text("first")
    assert set_aside(tmp_path / "x.json", "corrupt") == tmp_path / "x.json.corrupt"
    assert (tmp_path / "x.json.corrupt").read_text() == "first"


def test_putting_aside_never_overwrites_what_was_put_aside_before(tmp_path):
    for number in range(3):
        (tmp_path / "x.json").write_text(str(number))
        set_aside(tmp_path / "x.json", "corrupt")
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"x.json.corrupt": "0", "x.json.corrupt-2": "1", "x.json.corrupt-3": "2"}


def test_a_file_that_cannot_be_put_aside_is_one_clear_error(tmp_path):
    with pytest.raises(StateError, match=r"x.json: cannot be renamed to x.json.corrupt \(No such file"):
        set_aside(tmp_path / "x.json", "corrupt")


def test_a_request_is_taken_once(tmp_path):
    leave_request(tmp_path / "x.retry", [10, 20])
    assert read_request(tmp_path / "x.retry") == [10, 20]
    assert read_request(tmp_path / "x.retry") is None


def test_a_lock_is_refused_to_a_second_holder_and_free_after_the_first(tmp_path):
    second = held_lock(tmp_path / "x.lock", "what to say")
    with held_lock(tmp_path / "x.lock", "busy"), pytest.raises(LockedError, match="what to say"), second:
        pass
    with held_lock(tmp_path / "x.lock", "busy"):
        pass


def test_a_lock_is_freed_by_a_holder_that_is_killed(tmp_path):
    script = (
        "import sys; from pathlib import Path; from eval_sidecar.system.locks import held_lock\n"
        "with held_lock(Path(sys.argv[1]), 'busy'): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path / "x.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError), held_lock(tmp_path / "x.lock", "busy"):
            pass
        holder.kill()
        holder.wait()
        with held_lock(tmp_path / "x.lock", "busy"):
            pass


def test_a_lock_that_cannot_be_made_is_told_apart_from_one_that_is_held(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    lock = held_lock(tmp_path / "x.lock", "busy")
    with pytest.raises(StateError, match="Read-only file system") as error, lock:
        pass
    assert not isinstance(error.value, LockedError)
