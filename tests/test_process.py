"""Which process is which, and that ending one ends all that came of it. The processes are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from eval_sidecar.system.process import ProcessIdentity, end_family, family, wait_for_end

MARKER = "EVAL_SIDECAR_TEST"

#: Prints its descendants' pids, one a line, once all of them are up, and stays.
TREE = """
import signal, subprocess, sys
stay = "import signal; signal.signal(signal.SIGTERM, signal.%s); print('up', flush=True); signal.pause()"
stay %= "SIG_IGN" if {"deaf", "deaf children"} & {*sys.argv} else "SIG_DFL"
for apart in (False, True):
    command = [sys.executable, "-S", "-c", stay]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=apart)
    child.stdout.readline()
    print(child.pid, flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else signal.SIG_DFL)
print("ready", flush=True)
if "leave" not in sys.argv:
    signal.pause()
"""


@pytest.fixture
def marker() -> Iterator[tuple[str, str]]:
    """A marker of this test's own; whatever carries it is killed in the end, however the test went."""
    value = uuid.uuid4().hex
    yield MARKER, value
    for process in family(None, (MARKER, value)):
        process.kill()


def start_tree(marker: tuple[str, str], *words: str) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Start a process with two children, one of them in a session of its own; all three are up."""
    root = subprocess.Popen(
        [sys.executable, "-S", "-c", TREE, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, marker[0]: marker[1]},
    )
    children = []
    for line in root.stdout:
        if line == "ready\n":
            break
        children.append(psutil.Process(int(line)))
    return root, children


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# -- identity --------------------------------------------------------------------------------------------


def test_a_running_process_is_found_by_its_identity_after_a_trip_through_json():
    identity = ProcessIdentity.from_json(json.loads(json.dumps(ProcessIdentity.of(os.getpid()).to_json())))
    assert identity.is_running()
    assert identity.find().pid == os.getpid()


def test_another_process_with_the_same_pid_is_not_taken_for_it():
    mine = ProcessIdentity.of(os.getpid())
    assert not ProcessIdentity(mine.pid, mine.started - 60).is_running()


def test_a_clock_that_was_set_does_not_make_it_another_process():
    mine = ProcessIdentity.of(os.getpid())
    if mine.since_boot is None:
        pytest.skip("this system does not tell the start within the boot")
    assert replace(mine, started=mine.started - 3600).is_running()
    assert not replace(mine, since_boot=f"{mine.since_boot}0").is_running()


def test_a_wait_says_whether_all_of_them_have_ended(marker):
    root, _ = start_tree(marker)
    assert not wait_for_end([psutil.Process(root.pid)], 0.0)
    root.kill()
    assert wait_for_end([psutil.Process(root.pid)], 60.0)
    root.wait()


def test_a_process_that_has_ended_has_no_identity_and_is_not_running():
    child = subprocess.Popen(["true"])
    identity = ProcessIdentity.of(child.pid)
    child.wait()
    assert ProcessIdentity.of(child.pid) is None
    assert not identity.is_running()


def test_a_zombie_has_ended():
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.of(child.pid)
    assert identity.is_running()
    child.stdin.close()
    assert wait_for_end([psutil.Process(child.pid)], 60)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert not identity.is_running()
    child.wait()


# -- families --------------------------------------------------------------------------------------------


def test_a_family_is_the_process_with_all_its_descendants(marker):
    root, children = start_tree(marker)
    found = {process.pid for process in family(ProcessIdentity.of(root.pid))}
    assert found == {root.pid, *(child.pid for child in children)}
    end_family(ProcessIdentity.of(root.pid), marker, 5.0)
    root.wait()


def test_orphans_in_sessions_of_their_own_are_found_by_the_marker(marker):
    root, children = start_tree(marker, "leave")
    root.wait()
    assert {process.pid for process in family(None, marker)} == {child.pid for child in children}


def test_a_process_with_another_value_of_the_marker_is_none_of_the_family(marker):
    start_tree(marker, "leave")[0].wait()
    assert family(None, (MARKER, marker[1] + "0")) == []


def test_the_asking_process_is_never_in_a_family_by_the_marker(marker):
    script = (
        "import os; from eval_sidecar.system.process import family;"
        f"print([p.pid for p in family(None, ({MARKER!r}, {marker[1]!r}))])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), marker[0]: marker[1]}
    assert subprocess.check_output([sys.executable, "-c", script], env=environment) == b"[]\n"


# -- ending ----------------------------------------------------------------------------------------------


def test_ending_a_process_ends_its_children_in_other_sessions_too(marker):
    root, children = start_tree(marker)
    end_family(ProcessIdentity.of(root.pid), None, 30.0)
    assert all(map(has_ended, children))
    assert root.wait() == -signal.SIGTERM


def test_processes_that_ignore_the_request_are_killed_after_the_grace(marker):
    root, children = start_tree(marker, "deaf")
    end_family(ProcessIdentity.of(root.pid), None, 0.0)
    assert all(map(has_ended, children))
    assert root.wait() == -signal.SIGKILL


def test_children_that_ignore_the_request_are_killed_although_their_parent_ends(marker):
    root, children = start_tree(marker, "deaf children")
    end_family(ProcessIdentity.of(root.pid), None, 0.0)
    assert all(map(has_ended, children))
    root.wait()


def test_orphans_are_ended_by_the_marker_alone(marker):
    root, children = start_tree(marker, "leave")
    root.wait()
    end_family(None, marker, 30.0)
    assert all(map(has_ended, children))


def test_ending_what_has_ended_returns_at_once(marker):
    child = subprocess.Popen(["true"])
    identity = ProcessIdentity.of(child.pid)
    child.wait()
    end_family(identity, marker, 600.0)
    assert family(identity, marker) == []


def test_a_later_process_with_the_same_pid_is_not_ended(marker):
    root, children = start_tree(marker)
    end_family(ProcessIdentity(root.pid, psutil.Process(root.pid).create_time() - 60), None, 0.0)
    assert root.poll() is None
    assert not any(map(has_ended, children))
    end_family(ProcessIdentity.of(root.pid), marker, 5.0)
    root.wait()
