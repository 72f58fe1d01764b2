"""Logs: set aside when they are full, followed across that, and never a line lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from eval_sidecar.system import logs
from eval_sidecar.system.logs import FULL, KEPT, LogReader, SmallLog, is_full, shift


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "cb64.log"


def fill(path: Path) -> None:
    """Let a log be full without writing that much: the file has a hole."""
    with path.open("ab") as file:
        file.truncate(FULL)


def say(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


# -- setting aside ---------------------------------------------------------------------------------------


def test_a_log_is_full_at_its_limit_and_not_before(log):
    assert not is_full(log)
    log.touch()
    os.truncate(log, FULL - 1)
    assert not is_full(log)
    os.truncate(log, FULL)
    assert is_full(log)


def test_the_oldest_of_the_logs_set_aside_goes(log):
    for number in range(KEPT + 2):
        log.write_text(str(number))
        shift(log)
    names = [log.with_name(f"{log.name}.{number}") for number in range(1, KEPT + 1)]
    assert [path.read_text() for path in names] == [str(KEPT + 1 - place) for place in range(KEPT)]
    assert sorted(log.parent.iterdir()) == sorted(names)


def test_a_small_log_is_set_aside_line_by_line_and_masks_keys(log, monkeypatch):
    monkeypatch.setattr(logs, "FULL", 100)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with closing(SmallLog(log)) as small:
        for number in range(20):
            small.write(f"line {number:02d} 100% 0123456789abcdef\n")
    older = [log.with_name(f"{log.name}.{number}") for number in range(KEPT, 0, -1)]
    lines = "".join(path.read_text() for path in [*older, log]).splitlines()
    assert lines[-1] == "line 19 100% ***"
    assert lines == [f"line {number:02d} 100% ***" for number in range(20 - len(lines), 20)]
    assert all(path.stat().st_size < 100 for path in log.parent.iterdir())


def test_a_small_log_that_cannot_be_set_aside_keeps_growing_and_warns_once(log, monkeypatch, caplog):
    monkeypatch.setattr(logs, "FULL", 30)
    for number in (2, 3):
        log.with_name(f"{log.name}.{number}").mkdir()  # a file does not take the place of a folder
    with closing(SmallLog(log)) as small:
        for number in range(9):
            small.write(f"line {number}")
    assert log.read_text() == "".join(f"line {number}\n" for number in range(9))
    assert [record.getMessage().count("keeps growing") for record in caplog.records] == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here is always full")
def test_a_full_disk_stops_nobody_whose_lines_go_into_a_small_log():
    with closing(SmallLog(Path("/dev/full"))) as small:
        for _ in range(3):
            small.write("a short line")


WRITES = """
import subprocess, sys
from pathlib import Path
from eval_sidecar.system import logs
log, limit = Path(sys.argv[1]), int(sys.argv[2])
logs.FULL = 1 << 10
logs.KEPT = 200
began = 0
for number in range(limit):
    print(f"line {number}", flush=True)
    print(f"error {number}", file=sys.stderr, flush=True)
    if number == 0:
        child = subprocess.Popen(["sh", "-c", "read go; echo from the child"], stdin=subprocess.PIPE)
    began += logs.rotate_output(log)
child.communicate(b"go\\n")
print(f"began {began}", flush=True)
"""


def spawn_writer(log: Path, lines: int, output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", WRITES, str(log), str(lines)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path(logs.__file__).parents[2])},
        )


def test_no_line_of_a_process_or_its_children_is_lost_when_its_log_is_set_aside(log):
    assert spawn_writer(log, 500, log).wait(60) == 0
    older = sorted(log.parent.glob("cb64.log.*"), key=lambda path: -int(path.suffix[1:]))
    said = [path.read_text() for path in [*older, log]]
    assert all(1000 <= len(text) < 1100 for text in said[:-1])
    lines = "".join(said).splitlines()
    assert lines.count("from the child") == 1
    lines.remove("from the child")
    assert lines == [
        *(f"{kind} {number}" for number in range(500) for kind in ("line", "error")),
        f"began {len(older)}",
    ]
    assert len(older) > 5
    assert {path.name.partition(".")[0] for path in log.parent.iterdir()} == {"cb64"}, "nothing is left over"


def test_output_that_goes_elsewhere_is_left_alone(log, tmp_path):
    fill(log)
    elsewhere = tmp_path / "nohup.out"
    assert spawn_writer(log, 3, elsewhere).wait(60) == 0
    assert elsewhere.read_text().endswith("began 0\n")
    assert log.stat().st_size == FULL


# -- following -------------------------------------------------------------------------------------------


def test_a_reader_begins_with_the_log_that_was_set_aside_last(log):
    for text in ("first\n", "second\n", "third\n"):
        log.write_text(text)
        shift(log)
    log.write_text("fourth\n")
    with LogReader(log) as reader:
        assert reader.read() == "third\nfourth\n"
        assert reader.read() == ""


def test_a_reader_follows_across_several_rotations(log):
    log.write_text("0\n")
    with LogReader(log) as reader:
        assert reader.read() == "0\n"
        say(log, "1\n")
        for number in (2, 3):
            shift(log)
            say(log, f"{number}\n")
        assert reader.read() == "1\n2\n3\n"
        say(log, "4\n")
        assert reader.read() == "4\n"


def test_a_reader_that_was_left_far_behind_goes_on_with_what_there_is(log):
    log.write_text("0\n")
    with LogReader(log) as reader:
        reader.read()
        for number in range(1, KEPT + 2):
            shift(log)
            say(log, f"{number}\n")
        assert reader.read() == f"{KEPT + 1}\n"


def test_a_reader_waits_while_a_log_is_between_two_names(log):
    log.write_text("0\n")
    with LogReader(log) as reader:
        reader.read()
        shift(log)
        assert reader.read() == ""
        say(log, "1\n")
        assert reader.read() == "1\n"


def test_a_reader_misses_nothing_of_a_writer_that_rotates_all_the_time(log, monkeypatch):
    monkeypatch.setattr(logs, "KEPT", 200)
    log.touch()
    finished = threading.Event()
    writer = spawn_writer(log, 2000, log)
    threading.Thread(target=lambda: (writer.wait(60), finished.set()), daemon=True).start()
    read = ""
    with LogReader(log) as reader:
        while not finished.is_set():
            read += reader.read()
        read += reader.read()
    lines = [line for line in read.splitlines() if line.startswith("line")]
    assert lines == [f"line {number}" for number in range(2000)]


# -- last words ------------------------------------------------------------------------------------------


def test_the_last_line_of_a_log_is_what_the_evaluation_said_and_not_what_we_wrote_after_it(log):
    log.write_text("epoch 1\rKeyError: 'x'\n\n=== eval-sidecar: ended with exit code 1 after 2 s\n")
    assert logs.last_line(log) == "KeyError: 'x'"


def test_what_an_earlier_attempt_said_is_not_the_last_line_of_the_next(log):
    log.write_text("KeyError: 'x'\n")
    since = log.stat().st_size
    say(log, "=== eval-sidecar: began\n")
    assert logs.last_line(log, since=since) == ""
    say(log, "ValueError\n")
    assert logs.last_line(log, since=since) == "ValueError"
