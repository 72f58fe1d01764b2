"""Redirects what a warm process prints: to the log of the current evaluation, or nowhere."""

from __future__ import annotations

import os
import sys


def print_to(output: int, errors: int) -> None:
    """Make two open files the standard output and error, for libraries below Python too; close them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for number in {output, errors}:
        os.close(number)


def print_nowhere() -> None:
    """Close what was printed to."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    print_to(nowhere, nowhere)
