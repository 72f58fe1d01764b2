"""What a pass does with a step, by what is there of it: the table, without a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_sidecar.evaluation.discovery import Action, Found, decide
from eval_sidecar.ledger.ledger import Entry, Failure, Running
from eval_sidecar.types import Checkpoint, Content, Origin, Result

FOLDER = Checkpoint(495, Path("/saves/my-model/checkpoint-495"))
RESULT = Result({"HR@10": 0.25}, "/results/metrics.json", "digest", (1, 2, 3))
RUNNING = Running({"token": "t"}, 0.0, "log", "path", ())
FAILED = Failure("2026-01-01T00:00:00Z", "exit code 1")
FINAL = Failure("2026-01-01T00:00:00Z", "exit code 1", final=True)

NEW = Entry(495)
DONE = Entry(495, result=RESULT)
FAILED_ONCE = Entry(495, failure=FAILED)
FAILED_FINALLY = Entry(495, failure=FINAL)
UNDER_WAY = Entry(495, running=RUNNING)
SAVED_AGAIN = Entry(
    495, result=RESULT, origin=Origin("old"), content=Content("new", (0, 0, 0), "", "2026-01-01T00:00:00Z")
)


@pytest.mark.parametrize(
    ("found", "action"),
    [
        (Found(NEW, present=FOLDER), Action.TAKE_OR_EVALUATE),
        (Found(NEW, held=FOLDER), Action.TAKE_OR_EVALUATE),
        (Found(NEW), Action.TAKE_OR_EVALUATE),
        (Found(FAILED_ONCE, present=FOLDER), Action.TAKE_OR_EVALUATE),
        (Found(FAILED_FINALLY, present=FOLDER), Action.TAKE),
        (Found(SAVED_AGAIN, present=FOLDER), Action.TAKE_OR_EVALUATE),
        (Found(DONE, present=FOLDER), Action.NOTHING),
        (Found(DONE), Action.NOTHING),
        (Found(DONE, held=FOLDER), Action.TAKE),
        (Found(Entry(495, result=RESULT, failure=FAILED), present=FOLDER), Action.TAKE),
        (Found(Entry(495, listed=True), present=FOLDER), Action.NOTHING),
        (Found(UNDER_WAY, present=FOLDER, held=FOLDER), Action.NOTHING),
        (Found(UNDER_WAY, present=FOLDER, is_wanted_again=True), Action.NOTHING),
        (Found(DONE, present=FOLDER, is_wanted_again=True), Action.EVALUATE),
        (Found(DONE, held=FOLDER, is_wanted_again=True), Action.EVALUATE),
        (Found(FAILED_FINALLY, present=FOLDER, is_wanted_again=True), Action.EVALUATE),
        (Found(DONE, is_wanted_again=True), Action.NOTHING),
        (Found(NEW, is_wanted_again=True), Action.TAKE_OR_EVALUATE),
    ],
)
def test_what_is_there_of_a_step_decides_what_is_done(found: Found, action: Action) -> None:
    assert decide(found, look_closely=False) is action


@pytest.mark.parametrize(
    ("found", "action"),
    [
        (Found(DONE, present=FOLDER), Action.TAKE),
        (Found(DONE), Action.TAKE),
        (Found(UNDER_WAY, present=FOLDER), Action.NOTHING),
        (Found(DONE, present=FOLDER, is_wanted_again=True), Action.EVALUATE),
        (Found(NEW, present=FOLDER), Action.TAKE_OR_EVALUATE),
    ],
)
def test_a_close_look_compares_results_of_finished_steps_too(found: Found, action: Action) -> None:
    assert decide(found, look_closely=True) is action
