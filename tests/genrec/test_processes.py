"""Several processes, their lives, and the light start of the command line."""

import gc
import importlib.util
import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from eval_sidecar.genrec.cli import log_to_stderr, parse, run
from eval_sidecar.genrec.devices import Device, _find_gpu, find_devices
from eval_sidecar.genrec.errors import EvaluationError
from eval_sidecar.genrec.session import Session
from eval_sidecar.genrec.warm import _key
from toolbox import wait_until

pytestmark = pytest.mark.genrec


def test_two_processes_rank_as_one(tiny, tmp_path, replace):
    pytest.importorskip("torch")
    from eval_sidecar.genrec.cli import main

    contents = {}
    for devices in ("cpu", "cpu cpu"):
        root = tmp_path / devices
        arguments = replace(tiny.arguments, output_root=root, devices=devices, num_beams=10)
        assert main(arguments) == 0
        names = ("final_result.json", "metrics.tsv", "metrics.json")
        contents[devices] = {name: (root / "model/checkpoint-5" / name).read_text() for name in names}
    assert contents["cpu"] == contents["cpu cpu"]
    assert len(json.loads(contents["cpu"]["final_result.json"])) == len(tiny.rows)


def test_a_worker_leaves_when_its_parent_does():
    ours, theirs = socket.socketpair()
    with theirs:
        worker = subprocess.Popen(
            [sys.executable, "-c", "from eval_sidecar.genrec.worker import main; main()"],
            stdin=theirs.fileno(),
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": "src"},
        )
    ours.close()  # as the end of the parent does
    worker.communicate(timeout=60)
    assert worker.returncode == 0


@contextmanager
def standard_error(path):
    """Let the standard error of this process be a file."""
    before = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def test_workers_print_to_the_log_of_the_evaluation_under_way(tiny, tmp_path):
    pytest.importorskip("torch")
    from eval_sidecar.genrec.parallel import ParallelRanker
    from eval_sidecar.genrec.prompts import Prompts
    from eval_sidecar.genrec.search import SearchSettings

    first, second = tmp_path / "first.log", tmp_path / "second.log"
    one_row = Prompts(((5, 6),), (False,), 1)
    broken = Prompts(((),), (False,), 1)
    with standard_error(first):
        ranker = ParallelRanker([Device("cpu", ""), Device("cpu", "")], SearchSettings(num_beams=1))
        assert ranker.rank(tiny.checkpoint, one_row, [[3]], print) == [[0]]
    workers = psutil.Process().children()
    with standard_error(second), pytest.raises(EvaluationError, match="ValueError: max"):
        wait_until(lambda: {*map(opened_by, workers)} == {(os.devnull, os.devnull)}, "closed logs")
        ranker.rank(tiny.checkpoint, broken, [[3]], print)
    assert "Traceback" in second.read_text()
    assert first.read_text() == ""


def opened_by(process):
    """What a process prints to."""
    return tuple(str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in (1, 2))


def test_a_worker_that_dies_is_an_error(monkeypatch):
    pytest.importorskip("torch")
    from eval_sidecar.genrec.parallel import ParallelRanker
    from eval_sidecar.genrec.prompts import Prompts
    from eval_sidecar.genrec.search import SearchSettings

    monkeypatch.setattr(sys, "executable", "/bin/false")
    ranker = ParallelRanker([Device("cpu", ""), Device("cpu", "")], SearchSettings())
    with pytest.raises(EvaluationError, match="device cpu ended with code 1"):
        ranker.rank("checkpoint-1", Prompts(((1,), (2,)), (False, False), 0), [[3]], print)


def test_a_worker_that_was_killed_while_idle_is_replaced(tiny):
    pytest.importorskip("torch")
    from eval_sidecar.genrec.parallel import ParallelRanker
    from eval_sidecar.genrec.prompts import Prompts
    from eval_sidecar.genrec.search import SearchSettings

    one_row = Prompts(((5, 6),), (False,), 1)
    others = psutil.Process().children()
    ranker = ParallelRanker([Device("cpu", ""), Device("cpu", "")], SearchSettings(num_beams=1))
    try:
        assert ranker.rank(tiny.checkpoint, one_row, [[3]], print) == [[0]]
        workers = [child for child in psutil.Process().children() if child not in others]
        workers[0].kill()
        os.waitid(os.P_PID, workers[0].pid, os.WEXITED | os.WNOWAIT)  # all its threads have ended
        assert ranker.rank(tiny.checkpoint, one_row, [[3]], print) == [[0]]
    finally:
        ranker.close()


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from eval_sidecar.genrec.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'transformers', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": "src"}
    )
    assert "--num-beams" in done.stdout


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_an_upgrade_of_a_library_asks_for_another_warm_process(library, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    installed = tmp_path / "__init__.py"

    def find_spec(name):
        if name != library:
            return find(name)
        return SimpleNamespace(origin=str(installed)) if installed.exists() else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    without = _key({})
    installed.touch()
    before = _key({})
    os.utime(installed, (1, 1))
    assert len({without, before, _key({})}) == 3
    assert _key({}) == _key({})


def test_an_upgrade_of_anything_that_is_installed_asks_for_another_warm_process(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    metadata = tmp_path / "safetensors-0.5.0.dist-info"
    metadata.mkdir()
    before = _key({})
    metadata.rename(tmp_path / "safetensors-0.6.0.dist-info")
    assert _key({}) != before


def test_cpus_are_as_many_processes_as_named():
    assert find_devices("cpu") == [Device("cpu", "")]
    assert find_devices("cpu, cpu") == [Device("cpu", "")] * 2
    with pytest.raises(EvaluationError, match="no device is given"):
        find_devices(" ")


def test_without_a_gpu_the_cpu_works_in_one_process(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_devices("0 1 2") == [Device("cpu", "")]


def test_no_weights_are_left_after_an_evaluation(tiny, tmp_path, replace):
    """Between two checkpoints the device belongs to the training."""
    torch = pytest.importorskip("torch")
    arguments = parse(replace(tiny.arguments, output_root=tmp_path, num_beams=10))
    session = Session()
    before = [id(found) for found in gc.get_objects() if isinstance(found, torch.nn.Parameter)]
    assert run(arguments, session) == 0
    left = [found for found in gc.get_objects() if isinstance(found, torch.nn.Parameter)]
    assert [found.shape for found in left if id(found) not in before] == []
    session.close()


def test_devices_are_looked_for_at_each_evaluation(tiny, tmp_path, replace, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    arguments = parse(replace(tiny.arguments, output_root=tmp_path, devices="0", num_beams=10))
    log_to_stderr()
    session = Session()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for _ in range(2):
        assert run(arguments, session) == 0
        assert "no GPU is available for 0: evaluating on the CPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def load_model(checkpoint, device, trust_remote_code):
        raise EvaluationError(f"{checkpoint.name} would be on {device}")

    monkeypatch.setattr("eval_sidecar.genrec.ranking.load_model", load_model)
    assert run(arguments, session) == 2
    assert capsys.readouterr().err.endswith("error: checkpoint-5 would be on cuda:0\n")


def test_gpus_are_shown_to_one_process_each(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_devices("0,2") == [Device("cuda:0", "0"), Device("cuda:2", "2")]
    with pytest.raises(EvaluationError, match="GPU 3 does not exist"):
        find_devices("3")


def test_a_gpu_is_counted_among_the_visible_ones_unless_named_itself():
    assert _find_gpu("1", ["4", "5"], ["0", "1"]) == Device("cuda:1", "5")
    assert _find_gpu("5", ["4", "5"], ["5"]) == Device("cuda:1", "5")
