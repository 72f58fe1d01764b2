"""The command line of the evaluator: flags, wiring, log lines, exit codes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from eval_sidecar.genrec.errors import EvaluationError, printable
from eval_sidecar.genrec.session import Session
from eval_sidecar.genrec.warm import evaluate_warm

log = logging.getLogger("eval_sidecar.genrec")

#: Exit code of everything that the user can fix.
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the named checkpoints; return 0, or 2 after an error line."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parse(words)
    log_to_stderr()
    session = Session()
    try:
        code = evaluate_warm(arguments.warm, arguments.devices, words) if arguments.warm else None
        return run(arguments, session) if code is None else code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        session.close()


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Evaluate the named checkpoints in this process and return the exit code, as :func:`main` does."""
    try:
        _check_arguments(arguments)
        return EXIT_ERROR if session.evaluate(arguments) else 0
    except EvaluationError as error:
        log.error("error: %s", error)
        return EXIT_ERROR


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.do_sample:
        raise EvaluationError(
            "sampling is not supported: the ranked lists come from a beam search without it "
            "(--do-sample False, DO_SAMPLE=False)"
        )
    for name in ("batch_size", "num_beams", "max_new_tokens"):
        if getattr(arguments, name) < 1:
            raise EvaluationError(f"--{name.replace('_', '-')} must be at least 1")


class _OneLine(logging.Formatter):
    """Escapes control characters, so that a file name cannot break a line or control the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def log_to_stderr() -> None:
    """Log to the standard error, one line per record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; end the process if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_sidecar.genrec",
        description="Rank the items of an index for every row of a test set, and write HR@K and NDCG@K.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="repeatable",
    )
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
    add(
        "--trust-remote-code",
        type=_boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="run code that comes with a checkpoint (auto_map), if transformers does not know the model",
    )
    add(
        "--warm",
        type=Path,
        metavar="DIR",
        help="folder of a running `eval-sidecar watch --warm`: evaluate in the process that it keeps",
    )
    return parser.parse_args(words)


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
    try:
        return values[text.strip().lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}") from None
