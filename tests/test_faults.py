"""The short form of `scripts/faults`: one trial each of the kinds that tell most."""

from __future__ import annotations

import pytest

pytest.importorskip("wandb")
from faults.trial import report, run_trial

pytestmark = pytest.mark.wandb

TELLING = (
    *("kill-upload", "state-truncated", "drop-after-store", "results-rewritten-during-upload"),
    *("kill-watch", "checkpoint-deleted"),
)


@pytest.mark.parametrize("kind", TELLING)
def test_nothing_is_lost_doubled_or_wrong_after(kind: str) -> None:
    trial = run_trial(kind, number=0, seed=4)
    assert not trial.failed, report(trial)
    assert trial.skipped is None
    assert trial.verdict.points > 0
