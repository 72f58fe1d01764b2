"""What is known of one checkpoint: what is there, evaluated, failed, delivered. Values, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Optional

from eval_sidecar.types import UNKNOWN, Completeness, Content, DeliveryStatus, Origin, Point, Result

#: `Delivery.via` of what an older script's state file calls processed: taken as delivered.
CARRIED = "the state file of an older version"


@dataclass(frozen=True)
class Delivery:
    """Where a point stands on its way to the tracker.

    Attributes:
        status: How far it has come.
        revision: Revision of the point that this is about.
        digest: `Result.digest` of what was sent; None before.
        index: Index of the row on the server.
        sent_at: Seconds since the epoch.
        via: Where its session is, if it cannot be read back; or `CARRIED`.
    """

    status: DeliveryStatus = DeliveryStatus.PENDING
    revision: int = 0
    digest: Optional[str] = None
    index: Optional[int] = None
    sent_at: Optional[float] = None
    via: Optional[str] = None

    @property
    def is_pending(self) -> bool:
        """Whether it is still to be sent."""
        return self.status == DeliveryStatus.PENDING

    @property
    def is_sent(self) -> bool:
        """Whether it was sent and not yet seen on the server."""
        return self.status == DeliveryStatus.SENT

    @property
    def is_confirmed(self) -> bool:
        """Whether it was seen on the server."""
        return self.status == DeliveryStatus.CONFIRMED

    def confirmed(self, *, revision: int, digest: str, index: int) -> Delivery:
        """Return the delivery as the server shows it."""
        return replace(self, status=DeliveryStatus.CONFIRMED, revision=revision, digest=digest, index=index)

    def missing(self, now: float) -> Delivery:
        """Return the delivery of a point that the server no longer shows: to look up again, then to send."""
        return replace(self, status=DeliveryStatus.SENT, sent_at=now)


@dataclass(frozen=True)
class Failure:
    """Why a checkpoint has no result.

    Attributes:
        time: ISO 8601, UTC.
        error: One line.
        log: The evaluation's log, or None if none was started.
        final: Whether it is not retried until a user clears it.
    """

    time: str
    error: str
    log: Optional[str] = None
    final: bool = False

    @property
    def is_unread_result(self) -> bool:
        """Whether it is about a result on disk that cannot be read, and not about an evaluation."""
        return self.log is None


@dataclass(frozen=True)
class Running:
    """An evaluation under way: enough to find it again after a restart.

    Attributes:
        handle: The launcher's handle of the job.
        started_at: Seconds since the epoch.
        log: File that gets its output; all attempts share it.
        path: The folder that is evaluated.
        fingerprint: Name, size and mtime (ns) of each file in it at the start.
        before: Size and mtime (ns) of the ``metrics.json`` that was there before, if any.
        metrics: Where the evaluation is to leave its ``metrics.json``.
        state: Where the job stood when it was last looked at, in the launcher's words.
        ending: Why the sidecar ends it; None if it does not. Saved first: afterwards it looks
            like a cancellation by a user.
        evicted: Whether it is ended because it was evicted, which costs no attempt.
        log_size: Size of the log before it, in bytes.
        origin: What is evaluated, and how.
    """

    handle: dict[str, Any]
    started_at: float
    log: str
    path: str
    fingerprint: tuple[tuple[str, int, int], ...]
    before: Optional[tuple[int, int]] = None
    metrics: Optional[str] = None
    state: Optional[str] = None
    ending: Optional[str] = None
    evicted: bool = False
    log_size: int = 0
    origin: Origin = UNKNOWN


@dataclass(frozen=True)
class Entry:
    """Everything about one checkpoint.

    Attributes:
        step: Training step.
        verdict: The last verdict on its completeness, or None if it was never looked at.
        evidence: The facts behind that verdict.
        first_seen: ISO 8601, UTC.
        pinned: Whether hard links keep it alive.
        attempts: Evaluations that have failed since it was last cleared.
        evictions: Why evaluations were evicted since then, one text each.
        running: The evaluation under way.
        failure: Why the last evaluation failed.
        result: Its numbers.
        delivery: How far its point has come.
        listed: Whether an older script's state file lists the step as processed, without its numbers.
        content: What the checkpoint's weights are now; None if not read yet.
        origin: What `result` was made of.
        round: As in `Forced`.
    """

    step: int
    verdict: Optional[Completeness] = None
    evidence: tuple[str, ...] = ()
    first_seen: Optional[str] = None
    pinned: bool = False
    attempts: int = 0
    evictions: tuple[str, ...] = ()
    running: Optional[Running] = None
    failure: Optional[Failure] = None
    result: Optional[Result] = None
    delivery: Optional[Delivery] = None
    listed: bool = False
    content: Optional[Content] = None
    origin: Origin = UNKNOWN
    round: int = 0

    @property
    def name(self) -> str:
        """``checkpoint-<step>``."""
        return f"checkpoint-{self.step}"

    @property
    def processed(self) -> bool:
        """Whether the checkpoint needs no evaluation any more."""
        return (self.result is not None or self.listed) and not self.is_superseded

    @property
    def is_superseded(self) -> bool:
        """Whether the result is of other weights than this step has now."""
        known = self.origin.identity
        return None is not known and self.content is not None and self.content.identity != known

    @property
    def has_failed(self) -> bool:
        """Whether it is not retried until a user clears its failure."""
        return self.failure is not None and self.failure.final

    @property
    def is_pending(self) -> bool:
        """Whether it waits for an evaluation, or is being evaluated."""
        lost = self.verdict in (Completeness.GONE, Completeness.ABANDONED)
        return self.running is not None or not (self.processed or self.has_failed or lost)

    def due(self) -> Optional[Delivery]:
        """Return the delivery that has to be sent or looked up; None if nothing has to be.

        A result that differs from the confirmed one is due as the next revision. A withheld one is not due.
        """
        if self.result is None or self.delivery is None or self.is_withheld:
            return None
        if not self.delivery.is_confirmed:
            return self.delivery
        if self.delivery.digest in (None, self.result.digest):
            return None
        return Delivery(DeliveryStatus.PENDING, self.delivery.revision + 1)

    @property
    def is_withheld(self) -> bool:
        """Whether the result is of weights that were replaced, and was never sent."""
        if not self.is_superseded or self.result is None:
            return False
        delivery = self.delivery or Delivery()
        return delivery.is_pending or delivery.digest not in (None, self.result.digest)

    @property
    def is_unsent(self) -> bool:
        """Whether the result, as it is now, has not been sent."""
        due = self.due()
        return due is not None and (
            due.is_pending or (self.result is not None and due.digest != self.result.digest)
        )

    def judged(self, verdict: Completeness, evidence: tuple[str, ...], *, pinned: bool, at: str) -> Entry:
        """Return the entry with a verdict on its checkpoint.

        How long it has been quiet changes each time, and alone is not worth a write. The last fact, what was
        done, is.
        """
        is_news = (
            self.verdict != verdict
            or self.pinned != pinned
            or (verdict.is_ready and self.evidence[-1:] != evidence[-1:])
            or (verdict in (Completeness.PARTIAL, Completeness.GONE) and self.evidence != evidence)
        )
        return replace(
            self,
            verdict=verdict,
            evidence=evidence if is_news else self.evidence,
            first_seen=self.first_seen or at,
            pinned=pinned,
        )

    def unreadable(self, error: str, at: str) -> Entry:
        """Return the entry with the reason why its result on disk cannot be read; the rest stays."""
        if self.failure is not None and self.failure.error == error:
            return self
        return replace(self, failure=Failure(at, error, final=True))

    def has_numbers_of(self, result: Result) -> bool:
        """Return whether the entry has these numbers already."""
        return self.result is not None and self.result.digest == result.digest

    def evaluated(self, result: Result, origin: Origin = UNKNOWN, number: int = 0) -> Entry:
        """Return the entry with a result; if it is of the current weights, without its pin.

        The same numbers again change neither their delivery nor a known origin.
        """
        if self.has_numbers_of(result) and origin.settings is None:
            origin = self.origin
        delivery = self.delivery or Delivery()
        if delivery.via == CARRIED and self.is_superseded:
            delivery = replace(
                delivery, digest=delivery.digest or ""
            )  # what was sent is not known, but it was not this
        elif delivery.via == CARRIED and (self.result is None or _agree(self.result.metrics, result.metrics)):
            # Older scripts kept eight metrics of a file that holds more: that is not a new result.
            delivery = replace(delivery, digest=result.digest)
        changed = replace(
            self,
            running=None,
            attempts=0,
            evictions=(),
            failure=None,
            result=result,
            delivery=delivery,
            origin=origin,
            round=max(self.round, number),
        )
        return replace(changed, pinned=self.pinned and not changed.processed)

    def begun(self, running: Running) -> Entry:
        """Return the entry with a running evaluation, and with the weights that it is of."""
        identity, at = running.origin.identity, running.origin.at or ""
        if identity is None or identity == self.known_identity:
            return replace(self, running=running)
        return replace(self, running=running, content=Content(identity, (0, 0, 0), "", at))

    def holding(self, content: Content) -> Entry:
        """Return the entry with what its weights are now.

        Attempts and failures belong to weights: other weights start from zero. A result of unknown weights
        remains, and counts as a result of these.
        """
        before = self.known_identity
        if before not in (None, content.identity):
            fresh = {"attempts": 0, "evictions": (), "failure": None, "verdict": None, "evidence": ()}
            return replace(self, **fresh, content=content)  # type: ignore[arg-type]
        origin = self.origin
        if origin.identity is None and (self.result is not None or self.listed):
            origin = replace(origin, identity=content.identity)
        return replace(self, content=content, origin=origin)

    @property
    def known_identity(self) -> Optional[str]:
        """Identity of the weights that the entry is about; None if they were not read yet."""
        return self.content.identity if self.content is not None else self.origin.identity

    def point(self, revision: int = 0) -> Point:
        """Return the point of this checkpoint's result; it must have one."""
        assert self.result is not None
        return Point(self.step, self.name, self.result.metrics, self.result.path, revision)


def _agree(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    return all(new.get(key, value) == value for key, value in old.items())
