"""Imports torch and transformers, if they are installed, as fast as possible."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval_sidecar.genrec.errors import EvaluationError
from eval_sidecar.installation import install_command

#: What must be installed.
LIBRARIES = ("torch", "transformers", "tokenizers")

#: What adapters need; optional.
OPTIONAL_LIBRARIES = ("peft",)


def forget_working_directory() -> None:
    """Undo what ``python -m`` does: search the working directory first, which may contain a folder torch."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]


def check_libraries() -> None:
    """Look for what an evaluation needs, without importing it.

    Raises:
        EvaluationError: If something is not installed.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise EvaluationError(
            f"{', '.join(missing)} not installed in {sys.executable}: set PYTHON_BIN to a Python that has "
            f"{'them' if len(missing) > 1 else 'it'}, or run {install_command('genrec')}"
        )


@contextmanager
def importing() -> Iterator[None]:
    """Make the imports in a ``with`` block faster.

    Importing makes a million objects that stay forever. Searching them for garbage again and again takes a
    fifth of the time, so they are excluded from the search.
    """
    # An evaluation runs beside a training. Threads that spin while they wait for work then slow both
    # down: on two busy cores this alone took a search from 11 s to 1 s. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def start_command(module: str) -> list[str]:
    """Return a command that runs a module of this package, wherever it is installed, with this Python."""
    return [sys.executable, str(Path(__file__).with_name("start.py")), f"{__package__}.{module}"]
