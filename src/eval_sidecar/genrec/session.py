"""What is kept between evaluations: libraries, the test set in tokens, the index, workers. Never weights."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval_sidecar.genrec.data import TestSet, load_index, load_rows
from eval_sidecar.genrec.errors import EvaluationError, one_line
from eval_sidecar.genrec.libraries import check_libraries, importing

if TYPE_CHECKING:
    from eval_sidecar.genrec.devices import Device
    from eval_sidecar.genrec.evaluation import Evaluator, Ranker

log = logging.getLogger(__name__)


class Session:
    """Evaluates checkpoints, in one call or in many; what it keeps is identified by its content."""

    def __init__(self) -> None:
        self._key = ""
        self._test_set: TestSet | None = None
        self._devices: list[Device] = []
        self._evaluator: Evaluator | None = None
        self._ranker: Ranker | None = None

    def evaluate(self, arguments: argparse.Namespace) -> int:
        """Evaluate the checkpoints that the arguments of the command line name.

        A checkpoint that cannot be evaluated does not stop the others.

        Returns:
            The number of checkpoints that failed; a log line says why.

        Raises:
            EvaluationError: If none can be, because of the test set, the index, a device or a library.
        """
        evaluator = self._prepare(arguments)
        failed = 0
        for checkpoint in arguments.checkpoint:
            try:
                # Results are named after the folder and its parent, as the user named them: "." and ".." must
                # go, symbolic links must stay.
                evaluator.evaluate(Path(os.path.abspath(checkpoint)))
            except EvaluationError as error:
                failed += 1
                log.error("error: %s", error)
            except OSError as error:
                failed += 1
                log.error("error: %s cannot be evaluated: %s", checkpoint, one_line(error))
        return failed

    def close(self) -> None:
        """End the processes that share the rows, if there are any."""
        if self._ranker is not None:
            self._ranker.close()
        self._evaluator, self._ranker = None, None

    def _prepare(self, arguments: argparse.Namespace) -> Evaluator:
        """Return an evaluator: the last call's if it was made from the same files and options."""
        options = {name: str(value) for name, value in vars(arguments).items()}
        del options["checkpoint"]
        # Computed before the files are read, so that a change in between is seen at the next call.
        contents = [_digest(arguments.index), _digest(arguments.test_data)]
        key = json.dumps([options, contents], sort_keys=True)
        if self._test_set is not None and self._key == key:
            return self._find_evaluator(arguments, self._test_set)
        self.close()
        # The files first: errors in them show at once, before seconds of imports.
        self._test_set, self._key = _load_test_set(arguments), key
        check_libraries()
        with importing():
            return self._find_evaluator(arguments, self._test_set)

    def _find_evaluator(self, arguments: argparse.Namespace, test_set: TestSet) -> Evaluator:
        """Return an evaluator on the devices that exist now: GPUs may disappear, and come back."""
        from eval_sidecar.genrec.devices import find_devices
        from eval_sidecar.genrec.evaluation import Evaluator

        devices = find_devices(arguments.devices)
        if self._evaluator is None or self._devices != devices:
            self.close()
            self._ranker, self._devices = _make_ranker(arguments, devices), devices
            beams, tokens = arguments.num_beams, arguments.max_new_tokens
            self._evaluator = Evaluator(
                test_set, self._ranker, arguments.output_root, beams, tokens, arguments.trust_remote_code
            )
        return self._evaluator


def _load_test_set(arguments: argparse.Namespace) -> TestSet:
    index = load_index(arguments.index, arguments.sid_levels)
    rows = load_rows(arguments.test_data)
    if arguments.num_beams > len(index.items):
        raise EvaluationError(
            f"--num-beams {arguments.num_beams} is more than the {len(index.items)} distinct items of index "
            f"{arguments.index}"
        )
    return TestSet(rows, index)


def _make_ranker(arguments: argparse.Namespace, devices: Sequence[Device]) -> Ranker:
    from eval_sidecar.genrec.search import SearchSettings

    settings = SearchSettings(arguments.num_beams, arguments.length_penalty, arguments.batch_size)
    if len(devices) > 1:
        from eval_sidecar.genrec.parallel import ParallelRanker

        return ParallelRanker(devices, settings, arguments.trust_remote_code)
    from eval_sidecar.genrec.ranking import LocalRanker

    return LocalRanker(devices[0].name, settings, arguments.trust_remote_code)


def _digest(path: Path) -> str:
    """Return a hash of a file's content; empty if it cannot be read, which loading will report."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
