"""How often a ledger is written: what belongs together at once, and an intent before what it is about."""

from __future__ import annotations

import pytest

from eval_sidecar.delivery.delivery import deliver
from eval_sidecar.ledger import store
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.store import LedgerStore, load
from eval_sidecar.types import DeliveryStatus, ModelSpec
from fakes import FakeTracker
from watching import MODEL, RUN, World

STEP = 495
SPEC = ModelSpec(MODEL, "d", "cb64", "test", 42, 50, -1, "p", None, RUN, "name")


@pytest.fixture
def saves(monkeypatch) -> list[str]:
    """What has been saved, in the order in which it was."""
    texts: list[str] = []
    write_text = store.write_text

    def count(path, text):
        texts.append(text)
        write_text(path, text)

    monkeypatch.setattr(store, "write_text", count)
    return texts


def run_whole_life(world: World, tracker: FakeTracker) -> None:
    """A checkpoint is seen, pinned, evaluated, sent and confirmed."""
    world.tick()
    world.write(STEP)
    world.tick(after=30)
    world.finish(STEP)
    world.tick(after=30)
    assert deliver(world.store, tracker, SPEC, pause=lambda _seconds: False, clock=lambda: world.now)


def test_a_good_checkpoint_costs_five_saves(tmp_path, saves):
    world = World(tmp_path)
    run_whole_life(world, FakeTracker())
    assert world.entry(STEP).delivery.status == DeliveryStatus.CONFIRMED
    assert (len(saves), world.store.ledger.table_due, world.entry(STEP).pinned) == (5, False, False)
    assert load(world.state_file) == world.store.ledger


def test_an_intent_is_on_disk_before_the_job_and_before_the_session(tmp_path):
    world, tracker, on_disk = World(tmp_path), FakeTracker(), []
    submit, send = world.launcher.submit, tracker.send

    def look(entry):
        on_disk.append((entry.verdict, entry.running is not None, entry.delivery and entry.delivery.status))

    def submit_and_look(*given):
        look(load(world.state_file).entry(STEP))
        return submit(*given)

    def send_and_look(session):
        look(load(world.state_file).entry(STEP))
        return send(session)

    world.launcher.submit, tracker.send = submit_and_look, send_and_look
    run_whole_life(world, tracker)
    assert on_disk == [("complete", True, None), ("complete", False, "sent")]


def test_many_checkpoints_that_are_seen_in_one_pass_are_saved_once(tmp_path, saves):
    world = World(tmp_path, slots=0)
    for step in range(1, 9):
        world.write(step)
    world.tick()
    assert len(saves) == 1
    assert [entry.verdict for entry in load(world.state_file).steps()] == ["complete"] * 8


# -- the store -------------------------------------------------------------------------------------------


def noted(tmp_path) -> LedgerStore:
    found = LedgerStore(tmp_path / "x.json", Ledger(MODEL, RUN, ""))
    found.note(lambda ledger: ledger.with_problem("noted"))
    return found


def test_what_is_noted_is_saved_with_the_next_update(tmp_path, saves):
    found = noted(tmp_path)
    assert (saves, found.ledger.problem) == ([], "noted")
    found.update(lambda ledger: ledger.busy_with("full"))
    known = load(found.path)
    assert (len(saves), known.problem, known.busy) == (1, "noted", "full")


def test_what_is_noted_is_saved_by_an_update_that_changes_nothing(tmp_path, saves):
    found = noted(tmp_path)
    found.update(lambda ledger: ledger)
    found.save()
    assert (len(saves), load(found.path).problem) == (1, "noted")


def test_what_is_noted_is_saved_when_the_ledger_is_let_go(tmp_path):
    with store.open_store(tmp_path / "x.json", MODEL, RUN, "") as found:
        found.note(lambda ledger: ledger.with_problem("noted"))
    assert load(tmp_path / "x.json").problem == "noted"
