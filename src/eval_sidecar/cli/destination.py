"""Where the points of an instance go, as `start` says it at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Callable

from eval_sidecar.cli.formats import runs_by_project, several
from eval_sidecar.cli.status import InstanceFacts, instance_facts, reporting_of
from eval_sidecar.cli.terminal import say
from eval_sidecar.ledger.ledger import ASKING, ONLINE, Ledger
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
        if not any(_is_asking(facts, model.ledger) for model in facts.models) or monotonic() >= deadline:
            break
        sleep(0.2)
    for line, fg in _lines(facts):
        say(f"W&B: {line}", fg=fg, indent=5)


def _is_asking(facts: InstanceFacts, ledger: Ledger) -> bool:
    return ledger.problem is None and reporting_of(ledger, facts.process) == ASKING


def _lines(facts: InstanceFacts) -> Iterator[tuple[str, str]]:
    ledgers = [model.ledger for model in facts.models]
    causes: dict[str, list[str]] = {}
    for ledger in ledgers:
        if ledger.problem:
            causes.setdefault(ledger.problem, []).append(ledger.model_dir)
    reporting = {ledger.model_dir: reporting_of(ledger, facts.process) for ledger in ledgers}
    online = [ledger for ledger in ledgers if reporting[ledger.model_dir] in (None, ASKING, ONLINE)]
    for why in dict.fromkeys(reporting.values()):
        if why not in (None, ASKING, ONLINE):
            yield why, "yellow"
    if any(_is_asking(facts, ledger) for ledger in online):
        yield "the server has not answered yet; `status` shows the address of the run", "yellow"
    elif not causes:  # beside a problem, an address of earlier would look as if all were well
        yield from ((line, "green") for line in _addresses(online))
    for cause, names in causes.items():
        about = f"{several(names, len(ledgers))}: " if len(ledgers) > 1 else ""
        yield f"{about}{cause}", "red"


def _addresses(ledgers: Sequence[Ledger]) -> list[str]:
    places = [ledger.where for ledger in ledgers if ledger.where]
    return places if len(places) == 1 else runs_by_project(places)
