"""What tests of the evaluator share: a small checkpoint with its data, and an owner of warm processes."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from eval_sidecar.system.process import wait_for_end
from toolbox import wait_until

SOURCES = Path(__file__).parents[2] / "src"

# As the evaluator's command line does, and for the same reason; torch reads it when it is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Arguments of an evaluation of 10 rows over 100-odd items, with what they were made of."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import genrec_oracle as oracle

    folder = tmp_path_factory.mktemp("tiny")
    index = oracle.make_index(levels=(3, 4), width=6)
    rows = oracle.make_rows(index)
    tokenizer = oracle.make_tokenizer(sorted({token for tokens in index.values() for token in tokens}))
    model = oracle.make_model(len(tokenizer) + 9)
    arguments = oracle.write_setup(folder, index, rows, tokenizer, model)
    return SimpleNamespace(
        folder=folder, index=index, rows=rows, tokenizer=tokenizer, model=model, arguments=arguments,
        checkpoint=folder / "model" / "checkpoint-5",
    )  # fmt: skip


@pytest.fixture
def replace():
    """Return a function that gives arguments with some values replaced: ``replace(args, index=path)``."""

    def replaced(arguments, **values):
        arguments = list(arguments)
        for name, value in values.items():
            flag = "--" + name.replace("_", "-")
            if flag in arguments:
                arguments[arguments.index(flag) + 1] = str(value)
            else:
                arguments += [flag, str(value)]
        return arguments

    return replaced


class Owner:
    """Stands for a sidecar: holds the lock of a folder of warm processes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = (folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def start(self, arguments, **variables):
        """Begin an evaluation."""
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), **variables}
        environment.pop("PYTEST_CURRENT_TEST", None)  # every test would have an environment of its own
        return subprocess.Popen(
            [sys.executable, "-m", "eval_sidecar.genrec", *arguments, "--warm", str(self.folder)],
            env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def evaluate(self, arguments, code=0, **variables):
        """Do an evaluation; return what it prints."""
        client = self.start(arguments, **variables)
        printed, _ = client.communicate(timeout=120)
        assert client.returncode == code, printed
        return printed

    def processes(self):
        """The warm processes."""
        return [process for process in psutil.process_iter() if str(self.folder) in words_of(process)]

    def process(self):
        """The one warm process, as soon as it is there and the one before it has left."""
        (process,) = wait_until(lambda: len(found := self.processes()) == 1 and found, "a warm process")
        return process

    def end(self):
        """End as the system ends a killed process: its locks are free."""
        self._lock.close()


def words_of(process):
    try:
        words = process.cmdline()
    except psutil.Error:
        return []
    return words if "eval_sidecar.genrec.server" in words else []


@contextmanager
def an_owner():
    folder = Path(tempfile.mkdtemp())  # a short path, as sockets need it
    owner = Owner(folder)
    yield owner
    owner.end()
    left = owner.processes()
    assert wait_for_end(left, 60), "a warm process stays behind"
    assert not left or not folder.exists(), "its folder stays behind"
    shutil.rmtree(folder, ignore_errors=True)  # where none was left to do it


@pytest.fixture(scope="module")
def owner():
    """An owner whose warm process, once it has imported torch, serves one test after the other."""
    with an_owner() as owner:
        yield owner


@pytest.fixture
def ending_owner():
    """An owner for one test, which may end it."""
    with an_owner() as owner:
        yield owner
