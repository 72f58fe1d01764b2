"""What holds for every test: a slow machine is no failure, and tests side by side do not meet."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from slurm_cluster import Cluster, require_programs

# Python 3.9 is there for what an older Python lacks, not for more examples.
_EXAMPLES = 10 if sys.version_info < (3, 10) else settings.default.max_examples
settings.register_profile(
    "any machine", deadline=None, max_examples=_EXAMPLES, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def signals_that_are_not_ignored() -> None:
    """A test run behind `&` or nohup ignores these, and every process that a test starts would with it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Kept until the end: a client that several tests share has its files in the folder of the first."""
    tmp_path_factory.getbasetemp()  # made now, in the real temporary folder
    with tempfile.TemporaryDirectory(prefix="es-") as folder:
        yield folder


@pytest.fixture(autouse=True)
def temporary_folder_of_its_own(temporary_folders: str) -> Iterator[None]:
    """The lock of a run lies in the system's temporary folder; many tests have a run of the same id.

    Instances of this process are noted there too, not in the home of the person who runs the tests.
    """
    before = tempfile.tempdir
    tempfile.tempdir = tempfile.mkdtemp(dir=temporary_folders, prefix="")
    os.environ["XDG_STATE_HOME"] = f"{tempfile.tempdir}/state"
    yield
    tempfile.tempdir = before


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of this test process's own."""
    pytest.importorskip("submitit")
    require_programs()
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
