"""Who did what, on the audit topic: a record before an action begins, and one after it has ended."""

from __future__ import annotations

import os
import pwd
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from cli.errors import Failed, NotReachable
from schemas.audit import AuditRecord, Phase
from schemas.codec import encode
from schemas.topics import TopicNames
from wire.clock import wall_ms
from wire.producing import DurableProducer, NotAcknowledged, WriteRefused

_ACKNOWLEDGED_S = 10.0
Spans = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Audit:
    """One action's two records."""

    producer: DurableProducer
    topics: TopicNames
    action: str
    filters: Mapping[str, str]
    action_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    async def began(self, counts: Mapping[str, int], offsets: Spans) -> None:
        """Raises: NotReachable, Failed; then nothing may be done."""
        await self._write(Phase.BEGAN, counts, offsets, None)

    async def ended(self, counts: Mapping[str, int], offsets: Spans, error: str | None) -> None:
        """Raises: NotReachable, Failed."""
        await self._write(Phase.ENDED, counts, offsets, error)

    async def _write(self, phase: Phase, counts: Mapping[str, int], offsets: Spans, error: str | None) -> None:
        who = _user()
        record = AuditRecord(
            at_ms=wall_ms(),
            writer=f"cli/{who}@{socket.gethostname()}",
            who=who,
            action=self.action,
            action_id=self.action_id,
            phase=phase,
            filters=dict(self.filters),
            counts=dict(counts),
            offsets=dict(offsets),
            error=error,
        )
        key, value = record.writer.encode(), encode(record)
        try:
            await self.producer.write(self.topics.audit, 0, key=key, value=value, timeout_s=_ACKNOWLEDGED_S)
        except NotAcknowledged as lost:
            raise NotReachable(str(lost)) from lost
        except WriteRefused as refused:
            raise Failed(f"The audit topic {self.topics.audit} takes no record: {refused}") from refused


def _user() -> str:
    """Return the OS user's name, which no environment variable can change; its number when it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
