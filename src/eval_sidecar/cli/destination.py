"""Where the points of an instance go, as `start` says it at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Callable

from eval_sidecar.cli.formats import runs_by_project, several
from eval_sidecar.cli.status import InstanceFacts, instance_facts
from eval_sidecar.cli.terminal import say
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.system.instances import Instance

#: Seconds that `start` waits for the service to say where points go.
_PATIENCE = 20.0


def say_destination(
    instance: Instance,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Print the address of an instance's runs, or why there is none, as soon as the instance knows."""
    deadline = monotonic() + _PATIENCE
    while True:
        facts = instance_facts(instance, time.time())
        if not any(_is_asking(model.ledger) for model in facts.models) or monotonic() >= deadline:
            break
        sleep(0.2)
    for line, fg in _lines(facts):
        say(f"W&B: {line}", fg=fg, indent=5)


def _is_asking(ledger: Ledger) -> bool:
    is_known = ledger.problem or (ledger.where and "://" in ledger.where)
    return not is_known and _reporting(ledger) == "online"


def _reporting(ledger: Ledger) -> str:
    return str((ledger.writer or {}).get("reporting", ""))


def _lines(facts: InstanceFacts) -> Iterator[tuple[str, str]]:
    ledgers = [model.ledger for model in facts.models]
    causes: dict[str, list[str]] = {}
    for ledger in ledgers:
        if ledger.problem:
            causes.setdefault(ledger.problem, []).append(ledger.model_dir)
    online = [ledger for ledger in ledgers if _reporting(ledger) in ("", "online")]
    for reporting in dict.fromkeys(_reporting(ledger) for ledger in ledgers if ledger not in online):
        yield reporting, "yellow"
    if any(map(_is_asking, online)):
        yield "the server has not answered yet; `status` shows the address of the run", "yellow"
    elif len(online) == 1 and online[0].where:
        yield online[0].where, "green"
    else:
        for line in runs_by_project(ledger.where for ledger in online if ledger.where):
            yield line, "green"
    for cause, names in causes.items():
        about = f"{several(names, len(ledgers))}: " if len(ledgers) > 1 else ""
        yield f"{about}{cause}", "red"
