"""The command line of the evaluator: flags, wiring, log lines, exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eval_sidecar.genrec.data import load_index, load_rows
from eval_sidecar.genrec.errors import EvaluationError, printable

log = logging.getLogger("eval_sidecar.genrec")

#: Exit code of everything that a person can put right.
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the named checkpoints; return 0, or 2 after a line that says what is wrong.

    A checkpoint that cannot be evaluated does not keep the others from it.
    """
    arguments = _parser().parse_args(argv)
    _log_to_stderr()
    try:
        return _run(arguments)
    except EvaluationError as error:
        log.error("error: %s", error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    _check_arguments(arguments)
    # The files first: what is wrong with them shows at once, before seconds of imports.
    index = load_index(arguments.index, arguments.sid_levels)
    rows = load_rows(arguments.test_data)
    if arguments.num_beams > len(index.items):
        raise EvaluationError(
            f"--num-beams {arguments.num_beams} is more than the {len(index.items)} distinct items of index "
            f"{arguments.index}"
        )
    _check_libraries()
    # An evaluation runs beside a training. Threads that spin while they wait for work then cost both their
    # time: on two busy cores this alone took a search from 11 s to 1 s. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from eval_sidecar.genrec.devices import find_devices
    from eval_sidecar.genrec.evaluation import Evaluator, Ranker, TestSet
    from eval_sidecar.genrec.search import SearchSettings

    settings = SearchSettings(arguments.num_beams, arguments.length_penalty, arguments.batch_size)
    devices = find_devices(arguments.devices)
    ranker: Ranker
    if len(devices) > 1:
        from eval_sidecar.genrec.parallel import ParallelRanker

        ranker = ParallelRanker(devices, settings)
    else:
        from eval_sidecar.genrec.ranking import LocalRanker

        ranker = LocalRanker(devices[0].name, settings)
    evaluator = Evaluator(
        TestSet(rows, index), ranker, arguments.output_root, arguments.num_beams, arguments.max_new_tokens
    )
    failed = 0
    try:
        for checkpoint in arguments.checkpoint:
            try:
                # Results are named after the folder and its parent, as the user named them: "." and ".." must
                # go, symbolic links must stay.
                evaluator.evaluate(Path(os.path.abspath(checkpoint)))
            except EvaluationError as error:
                failed += 1
                log.error("error: %s", error)
    finally:
        ranker.close()
    return EXIT_ERROR if failed else 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.do_sample:
        raise EvaluationError(
            "sampling is not supported: the ranked lists come from a beam search without it "
            "(--do-sample False, DO_SAMPLE=False)"
        )
    for name in ("batch_size", "num_beams", "max_new_tokens"):
        if getattr(arguments, name) < 1:
            raise EvaluationError(f"--{name.replace('_', '-')} must be at least 1")


def _check_libraries() -> None:
    missing = [
        name for name in ("torch", "transformers", "tokenizers") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise EvaluationError(
            f"{', '.join(missing)} not installed in {sys.executable}: pip install 'eval-sidecar[genrec]'"
        )


class _OneLine(logging.Formatter):
    """Keeps names of files from breaking a line, and from telling the terminal what to do."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval_sidecar.genrec",
        description="Rank the items of an index for every row of a test set, and write HR@K and NDCG@K.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, action="append", required=True, metavar="DIR", help="may be given again")
    add(
        "--test-data",
        type=Path,
        required=True,
        metavar="FILE",
        help="rows of system, instruction, input, output",
    )
    add(
        "--index",
        type=Path,
        required=True,
        metavar="FILE",
        help="item id to semantic-ID tokens (id2sid.json)",
    )
    add("--output-root", type=Path, default=Path("results"), metavar="DIR", help="where results are written")
    add("--devices", default="0", help='GPUs such as "0 1", or cpu; the rows are shared among several')
    add("--num-beams", type=int, default=50, help="beams, and length of the ranked lists")
    add("--length-penalty", type=float, default=0.0, help="exponent of the length that divides a score")
    add("--sid-levels", type=int, default=-1, help="levels of a semantic ID to keep; 0 or less: all")
    add("--max-new-tokens", type=int, default=256, help="tokens that an item may have, its end included")
    add("--batch-size", type=int, default=8, help="scales the memory of a batch; results do not depend on it")
    add("--do-sample", type=_boolean, default=False, help="only False is supported")
    add("--temperature", type=float, default=1.0, help="without effect, as nothing is sampled")
    add("--seed", type=int, default=42, help="without effect, as nothing is sampled")
    return parser


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
    try:
        return values[text.strip().lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}") from None
