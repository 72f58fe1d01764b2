"""Warm processes: what comes out is what a process of its own gives, and none stays that nobody needs."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import genrec_oracle as oracle
from eval_sidecar.genrec.cli import main
from eval_sidecar.system.process import wait_for_end
from toolbox import wait_until

# In one group, for tests in several processes: importing torch takes longer than most of these tests.
pytestmark = [pytest.mark.genrec, pytest.mark.xdist_group("warm")]

SOURCES = Path(__file__).parents[2] / "src"
FILES = ("final_result.json", "metrics.tsv", "metrics.json")


@pytest.fixture
def setup(tiny, tmp_path):
    """Return a function that makes a checkpoint of a model of its own: its path."""

    def make(name, vocabulary=None, tokenizer=tiny.tokenizer, **options):
        folder = tmp_path / "model" / name
        tokenizer.save_pretrained(folder)
        oracle.make_model(vocabulary or len(tokenizer) + 9, **options).save_pretrained(folder)
        return folder

    return make


@contextmanager
def busy(arguments, replace, tmp_path, owner, **variables):
    """Begin an evaluation that waits for its index: the process that stands for it, and a way to give it."""
    fifo = tmp_path / "index"
    os.mkfifo(fifo)
    client = owner.start(replace(arguments, index=fifo), **variables)

    def give(index):
        with fifo.open("w") as pipe:
            (tmp_path / "file").write_text(json.dumps(index))
            (tmp_path / "file").replace(fifo)  # for whoever opens it from now on
            pipe.write(json.dumps(index))

    wait_until(lambda: is_reading(owner.process(), fifo), "an evaluation under way")
    try:
        yield client, give
    finally:
        client.kill()
        client.communicate()


def is_reading(process, fifo):
    """Whether a process has begun to open a FIFO: then its opening for writing does not fail."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return process.is_running()


def contents(root, checkpoint):
    folder = root / checkpoint.parent.name / checkpoint.name
    return {name: (folder / name).read_bytes() for name in FILES}


def test_what_a_warm_process_gives_is_what_a_process_of_its_own_gives(owner, setup, tiny, tmp_path, replace):
    """Whatever changes between two checkpoints: weights, shapes, architecture, test set, index, tokenizer."""
    other_template = oracle.make_tokenizer(
        sorted({token for tokens in tiny.index.values() for token in tokens}),
        oracle.TEMPLATE.replace("[assistant]", "[answer]"),
    )
    test_data, index = tmp_path / "test.json", tmp_path / "id2sid.json"
    arguments = replace(tiny.arguments, test_data=test_data, index=index, num_beams=10)
    shorter = tiny.rows[:7]
    fewer = dict(list(tiny.index.items())[:60])
    plan = [
        (tiny.checkpoint, tiny.rows, tiny.index),
        (setup("checkpoint-1", seed=1), tiny.rows, tiny.index),
        (setup("checkpoint-2", kind="llama", vocabulary=600), tiny.rows, tiny.index),
        (setup("checkpoint-3", tokenizer=other_template, seed=3), tiny.rows, tiny.index),
        (setup("checkpoint-4", seed=4), shorter, tiny.index),
        (setup("checkpoint-5", seed=5), shorter, fewer),
        (setup("checkpoint-6", seed=6), tiny.rows, tiny.index),
    ]
    pids = set()
    for checkpoint, rows, items in plan:
        test_data.write_text(json.dumps(rows))
        index.write_text(json.dumps(items))
        cold, warm = tmp_path / "cold", tmp_path / "warm"
        assert main(replace(arguments, checkpoint=checkpoint, output_root=cold)) == 0
        of_its_own = {"CKPT_LIST": str(checkpoint), "EVAL_SIDECAR_JOB": checkpoint.name}
        printed = owner.evaluate(replace(arguments, checkpoint=checkpoint, output_root=warm), **of_its_own)
        title = f"{checkpoint.parent.name}/{checkpoint.name}"
        assert f"{title}: {len(rows)} of {len(rows)} rows (100%)" in printed
        assert contents(warm, checkpoint) == contents(cold, checkpoint)
        pids.add(owner.process().pid)
    assert len(pids) == 1, "one process has done all of them"


def test_memory_does_not_grow_over_ten_swaps(owner, setup, tiny, tmp_path, replace):
    size = 24 << 20
    checkpoint = setup("checkpoint-1", vocabulary=size // (4 * 32))
    assert (checkpoint / "model.safetensors").stat().st_size > size
    test_data = tmp_path / "test.json"
    test_data.write_text(json.dumps(tiny.rows[:1]))
    arguments = replace(
        tiny.arguments, checkpoint=checkpoint, test_data=test_data, output_root=tmp_path, num_beams=3
    )
    held = []
    for _ in range(11):
        owner.evaluate(arguments)
        held.append(owner.process().memory_info().rss)
    assert held[-1] - held[0] < 3 * size, held  # one model kept a swap would be ten times its size


def test_a_checkpoint_that_fails_does_not_harm_the_next(owner, setup, tiny, tmp_path, replace):
    bad = setup("checkpoint-1")
    weights = bad / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    good = replace(tiny.arguments, output_root=tmp_path, num_beams=10)
    owner.evaluate(good)
    first = owner.process()
    opened = {str(Path(f"/proc/{first.pid}/fd/{number}").readlink()) for number in (1, 2)}
    assert opened == {os.devnull}, "the log of an evaluation that has ended is closed"
    before = contents(tmp_path, tiny.checkpoint)
    shutil.rmtree(tmp_path / "model" / "checkpoint-5")
    printed = owner.evaluate(replace(good, checkpoint=bad), code=2)
    assert f"error: {bad}: its model cannot be loaded" in printed
    assert wait_for_end([first], 60), "a process that has failed is not used again"
    owner.evaluate(good)
    assert contents(tmp_path, tiny.checkpoint) == before


def test_another_environment_gets_another_process(owner, tiny, tmp_path, replace):
    arguments = replace(tiny.arguments, output_root=tmp_path, num_beams=10)
    owner.evaluate(arguments)
    first = owner.process()
    with busy(arguments, replace, tmp_path, owner, SOME_LIBRARY="b"):
        assert wait_for_end([first], 60), "one at a time for the same devices"
        assert owner.process().environ()["SOME_LIBRARY"] == "b"


SHADOW = """
import sys
if any(name in sys.orig_argv for name in {names}):
    import patched
"""


@pytest.mark.parametrize(
    ("devices", "names"),
    [("cpu", ["eval_sidecar.genrec.server"]), ("cpu cpu", ["eval_sidecar.genrec.worker"])],
)
def test_a_library_that_was_changed_in_place_is_read_anew(
    devices, names, ending_owner, tiny, tmp_path, replace
):
    library = tmp_path / "library"
    library.mkdir()
    (library / "sitecustomize.py").write_text(SHADOW.format(names=names))
    (library / "patched.py").write_text("ONE = 1\n")
    arguments = replace(tiny.arguments, output_root=tmp_path, devices=devices, num_beams=10)
    computing = []
    for text in ("ONE = 1\n", "ONE = 1\n", "ONE = 2\n"):
        if (library / "patched.py").read_text() != text:
            (library / "new").write_text(text)
            (library / "new").replace(library / "patched.py")
        ending_owner.evaluate(arguments, PYTHONPATH=os.pathsep.join([str(library), str(SOURCES)]))
        process = ending_owner.process()
        computing.append({process, *process.children()} if devices == "cpu" else {*process.children()})
    assert computing[0] == computing[1], "nothing has changed"
    assert computing[1].isdisjoint(computing[2])


def test_a_process_without_work_leaves_in_the_end(tmp_path):
    (tmp_path / "lock").touch()
    serving = (
        "import socket, sys, threading\n"
        "from pathlib import Path\n"
        "from eval_sidecar.genrec.server import serve\n"
        "with socket.socket(socket.AF_UNIX) as listener:\n"
        "    listener.bind('a.sock')\n"
        "    listener.listen()\n"
        "    serve(listener, Path('.'), 'key', idle_seconds=0.1)\n"
    )
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-c", serving],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            start_new_session=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == -signal.SIGKILL, "it ends with all its workers"
    assert (tmp_path / "a.sock").exists(), "its owner, who lives, is not taken to be gone"


def test_a_folder_that_took_the_place_of_another_is_worked_in(
    ending_owner, tiny, tmp_path, replace, monkeypatch
):
    arguments = replace(tiny.arguments, output_root="results", num_beams=10)
    folder = tmp_path / "GenRec"
    for title in ("first", "second"):
        folder.mkdir()
        monkeypatch.chdir(folder)
        ending_owner.evaluate(arguments)
        assert contents(folder / "results", tiny.checkpoint)
        folder.rename(tmp_path / title)


def test_a_client_that_goes_away_while_it_waits_harms_nobody(owner, tiny, tmp_path, replace):
    arguments = replace(tiny.arguments, output_root=tmp_path, num_beams=10)
    log = tmp_path / "log"
    with busy(arguments, replace, tmp_path, owner) as (client, give):
        process = owner.process()
        request = {"key": process.cmdline()[-1], "words": arguments}
        with log.open("w") as file, socket.socket(socket.AF_UNIX) as impatient:
            impatient.connect(str(next(owner.folder.glob("*.sock"))))
            socket.send_fds(impatient, [json.dumps(request).encode() + b"\n"], [file.fileno()] * 2)
        give(tiny.index)
        printed, _ = client.communicate(timeout=60)
        assert client.returncode == 0, printed
    owner.evaluate(arguments)
    assert owner.process() == process
    assert log.read_text() == ""


def is_waiting(client):
    """Whether a client has connected to the warm process and waits to be accepted."""
    with suppress(FileNotFoundError):  # a file that it closes meanwhile
        for link in Path(f"/proc/{client.pid}/fd").iterdir():
            if str(link.readlink()).startswith("socket:"):
                return psutil.Process(client.pid).status() == psutil.STATUS_SLEEPING
    return False


def test_a_client_that_is_told_to_end_while_it_waits_for_another_harms_nobody(owner, tiny, tmp_path, replace):
    arguments = replace(tiny.arguments, output_root=tmp_path, num_beams=10)
    with busy(arguments, replace, tmp_path, owner) as (client, give):
        second = owner.start(arguments)
        wait_until(lambda: is_waiting(second), "a client that waits")
        second.terminate()
        assert second.wait(60) == -signal.SIGTERM
        give(tiny.index)
        printed, _ = client.communicate(timeout=60)
        assert client.returncode == 0, printed
    assert second.communicate(timeout=60) == ("", None)


def test_an_idle_process_that_does_not_answer_ends_with_the_client_that_gives_up(
    owner, tiny, tmp_path, replace
):
    arguments = replace(tiny.arguments, output_root=tmp_path, num_beams=10)
    owner.evaluate(arguments)
    process = owner.process()
    process.suspend()
    try:
        client = owner.start(arguments)
        wait_until(lambda: is_waiting(client), "a client that waits")
        client.terminate()
        assert client.wait(60) == -signal.SIGTERM
        assert wait_for_end([process], 10)
    finally:
        process.resume()
    owner.evaluate(arguments)


def test_a_warm_process_that_is_killed_fails_its_evaluation_and_no_other(owner, tiny, tmp_path, replace):
    arguments = replace(tiny.arguments, output_root=tmp_path / "results")
    with busy(arguments, replace, tmp_path, owner) as (client, _):
        owner.process().kill()
        printed, _ = client.communicate(timeout=60)
        assert client.returncode == 1
        (line,) = printed.splitlines()
        assert "died during the evaluation" in line
    assert not (tmp_path / "results").exists()
    nothing = tmp_path / "nothing"
    printed = owner.evaluate(replace(arguments, index=nothing), code=2)
    assert printed == f"error: index {nothing} does not exist\n"  # the next one has got as far as that


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ending_an_evaluation_ends_the_work_on_it(number, owner, tiny, tmp_path, replace):
    with busy(tiny.arguments, replace, tmp_path, owner) as (client, _):
        process = owner.process()
        client.send_signal(number)
        code = client.wait(60)
        if number in (signal.SIGTERM, signal.SIGINT):
            with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(next(owner.folder.glob("*.sock"))))  # its files are closed now, not soon
        assert code == (130 if number == signal.SIGINT else -number)
        assert wait_for_end([process], 60)


@pytest.mark.parametrize(
    ("of_server", "number"), [(False, signal.SIGTERM), (False, signal.SIGKILL), (True, signal.SIGKILL)]
)
def test_a_worker_that_hangs_ends_with_its_evaluation(
    of_server, number, ending_owner, tiny, tmp_path, replace
):
    client = ending_owner.start(replace(tiny.arguments, output_root=tmp_path, devices="cpu cpu"))
    process = ending_owner.process()
    workers = wait_until(lambda: len(found := process.children()) == 2 and found, "two workers")
    workers[0].suspend()
    try:
        (process if of_server else client).send_signal(number)
        client.communicate(timeout=60)
        assert wait_for_end([process, *workers], 60)
    finally:
        workers[0].kill()
        client.kill()


def test_without_an_owner_the_evaluation_under_way_is_finished_and_no_other_begun(
    ending_owner, tiny, tmp_path, replace
):
    arguments = replace(tiny.arguments, output_root=tmp_path, num_beams=10)
    with busy(arguments, replace, tmp_path, ending_owner) as (client, give):
        process = ending_owner.process()
        ending_owner.end()
        give(tiny.index)
        printed, _ = client.communicate(timeout=120)
        assert client.returncode == 0, printed
        assert contents(tmp_path, tiny.checkpoint)
        assert wait_for_end([process], 60)
    assert not ending_owner.folder.exists()


def test_where_no_warm_process_can_be_the_evaluation_has_one_of_its_own(tiny, tmp_path, replace, capfd):
    gone = tmp_path / "gone"
    arguments = replace(tiny.arguments, output_root=tmp_path, num_beams=10, warm=gone)
    assert main(arguments) == 0
    assert "no warm process" in capfd.readouterr().err
    assert contents(tmp_path, tiny.checkpoint)
