"""Failures of several checkpoints for one cause, which is then not a checkpoint's own. Values, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Optional

#: Checkpoints that must fail in the same way.
_ENOUGH = 2
_PATH = re.compile(r"[^\s'\"]*/[^\s'\":,;)]*")
#: Steps, times, sizes, line numbers, addresses; an exit code says what happened.
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|(?<!exit code )(?<!\d)\d+")


def normalize(error: str) -> str:
    """Return what stays the same of an error whichever checkpoint has it."""
    return _NUMBER.sub("#", _PATH.sub("…", error))


@dataclass(frozen=True)
class SharedFailure:
    """How evaluations have failed since the last one that succeeded.

    Attributes:
        key: Of what evaluates: the script and its environment.
        has_succeeded: Whether an evaluation with that has succeeded: it works, and a checkpoint that fails
            has a cause of its own.
        steps: Checkpoints that failed in the same way one after the other.
        formats: The formats of those.
        error: The newest of their errors.
        log: And its log.
    """

    key: Optional[str] = None
    has_succeeded: bool = False
    steps: tuple[int, ...] = ()
    formats: tuple[str, ...] = ()
    error: str = ""
    log: Optional[str] = None

    @property
    def pauses(self) -> bool:
        """Whether nothing more is evaluated."""
        return len(self.steps) >= _ENOUGH

    @property
    def reason(self) -> Optional[str]:
        """Return why nothing is evaluated, and what to do; None if evaluations go on."""
        if not self.pauses:
            return None
        names = " and ".join(f"checkpoint-{step}" for step in self.steps[:_ENOUGH])
        log = f" (log: {self.log})" if self.log else ""
        return (
            f"evaluation is paused: {names} failed in the same way: {self.error}{log}; it goes on when the"
            " script, its environment or the checkpoints' format changes, or after `eval-sidecar retry`"
        )

    def with_key(self, key: str) -> SharedFailure:
        """Return it for what evaluates now: a new one with another script or environment."""
        return self if key == self.key else SharedFailure(key)

    def failed(self, step: int, form: str, error: str, log: str) -> SharedFailure:
        """Return it with one more failure. While it pauses, only another format is still tried."""
        if self.has_succeeded:
            return self
        is_same = self.pauses or normalize(error) == normalize(self.error)
        before = self if is_same else SharedFailure(self.key)
        return replace(
            before,
            steps=tuple(dict.fromkeys((*before.steps, step))),
            formats=tuple(dict.fromkeys((*before.formats, form))),
            error=before.error if self.pauses else error,
            log=before.log if self.pauses else log,
        )

    def succeeded(self) -> SharedFailure:
        """Return it after a success."""
        return SharedFailure(self.key, has_succeeded=True)


NO_FAILURE = SharedFailure()
