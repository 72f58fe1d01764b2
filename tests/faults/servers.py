"""Faults of the server: it fails, hangs, forgets, shows late, or does not want us."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from faults.files import add_results, write_result, write_results
from faults.registry import kind
from faults.uploads import killed_upload
from faults.world import World

#: Requests by what fails with them: rows, the table alone, and anything.
_ROWS = ("file_stream", "file_stream")
_TABLE = ("CreateArtifact", "CommitArtifact", "upload")
_WHERE = ("*", "graphql", *_ROWS, "UpsertBucket", "RunResumeStatus", "HistoryPage", "Run", *_TABLE)


def _broken(world: World, where: Sequence[str] = _WHERE, **how: Any) -> None:
    """Results, and a server that fails after some requests, now or when it knows some of them."""
    write_results(world)
    if world.random.random() < 0.4:
        world.wait(world.upload())
        add_results(world)
    request = world.random.choice(where)
    skip = world.random.randint(0, 25 if request in ("*", "graphql") else 2)
    world.server.fault(request, skip=skip, **how)
    world.tell(f"fault: {request} after {skip} requests, {how}")


def _some(world: World) -> int:
    # The client tries each request again six times: only more than that is felt.
    return world.random.choice((1, 2, 5, 8, 12))


@kind("http-500")
def http_500(world: World) -> None:
    """The server fails some requests, all for some seconds, or one sort for longer than the client tries."""
    _fail_a_while(world, status=500)
    world.wait(world.upload())


@kind("http-429")
def http_429(world: World) -> None:
    """The server has too many requests, for as long."""
    _fail_a_while(world, status=429)
    world.wait(world.upload())


def _fail_a_while(world: World, **how: Any) -> None:
    how_long = world.random.choice(("requests", "seconds", "outlasts"))
    if how_long == "requests":
        _broken(world, times=_some(world), **how)
    elif how_long == "seconds":
        _broken(world, **how)
        world.heal_after(world.random.uniform(1, 12))
    else:
        # The client then gives up, and some of its sessions end well by its own account.
        _broken(world, (*_ROWS, *_TABLE), **how)


@kind("http-403")
def http_403(world: World) -> None:
    """The server refuses anything, or the table alone, for good as far as the client can tell; it is not."""
    where = world.random.choice((_WHERE, _TABLE))
    _broken(world, where, status=403, times=world.random.choice((1, 3, None)))
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
    _add_to_all(world, 500)


@kind("hang")
def hang(world: World) -> None:
    """Requests hang, and go on later: what a killed client sent may then arrive after all."""
    if world.random.random() < 0.5:
        _arrive_late(world)
        return
    _broken(world, action="hang", times=world.random.choice((1, 2, None)))
    if world.random.random() < 0.5:
        started = world.upload()
        world.wait_for(lambda: False, started, world.random.uniform(1, 7))
        world.kill(started)
        world.heal_after(world.random.uniform(0, 6))
    else:
        world.heal_after(world.random.uniform(2, 12))
    world.wait(world.upload())


def _arrive_late(world: World) -> None:
    """Let the rows of a killed client arrive when the next one, which knows more, has looked for them."""
    write_results(world, most_models=1)
    # The first stream of a session says that it has begun, the second has the rows.
    world.server.fault("file_stream", action="hang", skip=1, times=1)
    first = world.upload()
    world.wait_for(lambda: world.server.requests["file_stream"] >= 2, first)
    world.kill(first)
    add_results(world)
    requests = world.server.requests
    streams, lookups = requests["file_stream"], requests["Run"]
    second = world.upload("--confirm-seconds", "12")
    world.wait_for(
        lambda: requests["file_stream"] >= streams + 2 or requests["Run"] >= lookups + 3, second, 10
    )
    world.wait_for(lambda: False, second, world.random.uniform(0, 1))
    world.tell(f"what the first has sent arrives: {requests['file_stream'] - streams} newer ones so far")
    world.server.heal()
    world.wait(second)


@kind("drop-before-store")
def drop_before_store(world: World) -> None:
    """The connection ends before the server has stored anything."""
    _fail_a_while(world, action="drop")
    world.wait(world.upload())


@kind("drop-after-store")
def drop_after_store(world: World) -> None:
    """The connection ends after the server has stored what it got, before it said so."""
    if world.random.random() < 0.5:
        _broken(world, action="drop-after", times=_some(world))
    else:
        # The rows are there, the client still tries to send them, and is killed.
        write_results(world, most_models=1)
        world.server.fault("file_stream", action="drop-after", skip=1)
        started = world.upload()
        world.wait_for(lambda: any(run.lines for run in list(world.server.runs.values())), started)
        world.wait_for(lambda: False, started, world.random.uniform(0, 1))
        world.kill(started)
        world.server.heal()
        add_results(world)
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
    # Rows of earlier steps come behind those of later ones, and each further one would push them on.
    earlier = world.random.random() < 0.5
    if earlier:
        _add_to_all(world, 4)
        world.wait(world.upload())
        _add_to_all(world, 2)
    else:
        add_results(world)
    for run in list(world.server.runs.values()):
        lines, lookups = world.random.randint(1, 2 if earlier else 4), world.random.randint(1, 8)
        world.server.hide(run.run_id, lines, lookups)
        world.tell(f"{run.run_id}: the newest {lines} rows hidden from {lookups} look-ups")
    world.wait(world.upload())


def _add_to_all(world: World, step: int) -> None:
    for model in world.models:
        write_result(world, model, step)


@kind("wrong-key-then-right")
def wrong_key(world: World) -> None:
    """The first upload has a key that the server does not know."""
    write_results(world)
    if world.random.random() < 0.5:
        killed_upload(world)
    code = world.wait(world.upload(env={"WANDB_API_KEY": "f" * 40}))
    world.tell(f"with the wrong key: {code}")
