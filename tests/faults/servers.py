"""Faults of the server: it fails, hangs, forgets, shows late, or does not want us."""

from __future__ import annotations

from typing import Any

from faults.files import add_results, write_result, write_results
from faults.registry import kind
from faults.uploads import killed_upload
from faults.world import World

_WHERE = (
    "*",
    "graphql",
    "file_stream",
    "file_stream",
    "UpsertBucket",
    "RunResumeStatus",
    "HistoryPage",
    "Run",
)


def _broken(world: World, **how: Any) -> None:
    """Some uploads, during which the server fails after some requests; then it recovers or not."""
    write_results(world)
    if world.random.random() < 0.4:
        world.wait(world.upload())
        add_results(world)
    where = world.random.choice(_WHERE)
    skip = world.random.randint(0, 25 if where in ("*", "graphql") else 2)
    world.server.fault(where, skip=skip, **how)
    world.tell(f"fault: {where} after {skip} requests, {how}")


def _some(world: World) -> int:
    # The client tries each request again six times: only more than that is felt.
    return world.random.choice((1, 2, 5, 8, 12))


@kind("http-500")
def http_500(world: World) -> None:
    """The server fails some requests, or all until it recovers."""
    _fail_a_while(world, 500)


@kind("http-429")
def http_429(world: World) -> None:
    """The server has too many requests."""
    _fail_a_while(world, 429)


def _fail_a_while(world: World, status: int) -> None:
    if world.random.random() < 0.6:
        _broken(world, status=status, times=_some(world))
    else:
        _broken(world, status=status)
        if world.random.random() < 0.5:
            world.heal_after(world.random.uniform(1, 12))
    world.wait(world.upload())


@kind("http-403")
def http_403(world: World) -> None:
    """The server refuses, for good as far as the client can tell; later it does not."""
    _broken(world, status=403, times=world.random.choice((1, 3, None)))
    world.wait(world.upload())


@kind("deleted-409")
def deleted_409(world: World) -> None:
    """One run was deleted on the server: it can never be delivered, all others must be."""
    write_results(world)
    if world.random.random() < 0.5:
        killed_upload(world)
    else:
        world.wait(world.upload())
    known = sorted(run.run_id for run in world.server.runs.values())
    if known:
        gone = world.random.choice(known)
        world.server.delete(gone)
        model = next(name for name, run_id in world.models.items() if run_id == gone)
        world.given_up.add(model)
        world.tell(f"run of {model} deleted")
    for model in world.models:
        write_result(world, model, 500)


@kind("hang")
def hang(world: World) -> None:
    """Requests hang, and go on later: what a killed client sent may then arrive after all."""
    _broken(world, action="hang", times=world.random.choice((1, 2, None)))
    if world.random.random() < 0.5:
        started = world.upload()
        world.wait_for(lambda: False, started, world.random.uniform(1, 7))
        world.kill(started)
        world.heal_after(world.random.uniform(0, 6))
    else:
        world.heal_after(world.random.uniform(2, 12))
    world.wait(world.upload())


@kind("drop-before-store")
def drop_before_store(world: World) -> None:
    """The connection ends before the server has stored anything."""
    _broken(world, action="drop", times=_some(world))
    world.wait(world.upload())


@kind("drop-after-store")
def drop_after_store(world: World) -> None:
    """The connection ends after the server has stored what it got, before it said so."""
    _broken(world, action="drop-after", times=_some(world))
    if world.random.random() < 0.3:
        killed_upload(world)
    world.wait(world.upload())


@kind("stale-line-count")
def stale_line_count(world: World) -> None:
    """A resume is told of fewer lines than there are."""
    write_results(world)
    world.wait(world.upload())
    add_results(world)
    for run in list(world.server.runs.values()):
        lines, step = world.random.randint(1, len(run.lines)), world.random.random() < 0.5
        world.server.stale(run.run_id, lines, world.random.randint(1, 2), step=step)
        world.tell(f"{run.run_id}: {lines} lines stale, step too: {step}")
    world.wait(world.upload())


@kind("late-rows")
def late_rows(world: World) -> None:
    """The server has rows that look-ups do not show yet."""
    write_results(world)
    if world.random.random() < 0.5:
        world.wait(world.upload())
    else:
        killed_upload(world)
    add_results(world)
    for run in list(world.server.runs.values()):
        lines, lookups = world.random.randint(1, 4), world.random.randint(1, 8)
        world.server.hide(run.run_id, lines, lookups)
        world.tell(f"{run.run_id}: the newest {lines} rows hidden from {lookups} look-ups")
    world.wait(world.upload())


@kind("wrong-key-then-right")
def wrong_key(world: World) -> None:
    """The first upload has a key that the server does not know."""
    write_results(world)
    if world.random.random() < 0.5:
        killed_upload(world)
    code = world.wait(world.upload(env={"WANDB_API_KEY": "f" * 40}))
    world.tell(f"with the wrong key: {code}")
