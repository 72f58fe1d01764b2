"""The short form of `scripts/faults`: one short trial each of the kinds that tell most."""

from __future__ import annotations

import pytest

pytest.importorskip("wandb")
from faults.trial import report, run_trial

pytestmark = pytest.mark.wandb

#: Trials of the seed 1 that do not wait for the client to give up.
TELLING = {
    "kill-upload": 156,
    "state-truncated": 214,
    "drop-after-store": 224,
    "results-rewritten-during-upload": 269,
    "kill-watch": 306,
    "checkpoint-deleted": 101,
}


@pytest.mark.parametrize(("kind", "number"), TELLING.items(), ids=TELLING)
def test_nothing_is_lost_doubled_or_wrong_after(kind: str, number: int) -> None:
    trial = run_trial(kind, number, seed=1)
    assert not trial.failed, report(trial)
    assert trial.skipped is None
    assert trial.verdict.points > 0
