"""This machine's clock against the broker's, which is the one that counts."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass

from cli.checks.finding import Finding, error, ok, skipped, warning
from schemas.codec import encode
from schemas.progress import WorkerSnapshot
from streams.settings import KafkaSettings
from wire.clock import wall_ms

CHECK = "clock"
_WARNING_MS, _ERROR_MS = 1_000, 10_000
_LOG_APPEND_TIME = 1
_REMEDY = "let both machines follow NTP (`timedatectl set-ntp true`), and compare `date -u` on each"


@dataclass(frozen=True, slots=True)
class Skew:
    """Broker's clock minus ours; the true value lies within `uncertain_ms` of `ms`."""

    ms: int
    uncertain_ms: int


async def measure(kafka: KafkaSettings) -> Skew | None:
    """Return the skew against the broker that leads `triage.workers`, None when it keeps no time of its own there.

    Writes what a gateway writes that comes and goes, a snapshot and its tombstone: it counts as nobody's worker. The acknowledgement
    of each has the broker's time; the quicker one counts.

    Raises: KafkaError; LookupError when the topic is missing, which sending would perhaps create.
    """
    from aiokafka import AIOKafkaProducer

    from wire.connection import QUICK_RETRIES, producer_options
    from wire.topics import shape

    if await shape(kafka) is None:
        raise LookupError("the topics are missing")
    options = producer_options(kafka, client_id="triage-doctor") | QUICK_RETRIES | {"enable_idempotence": False}
    name = f"gateway/doctor-{secrets.token_hex(4)}"
    snapshot = WorkerSnapshot(worker=name, host=socket.gethostname(), pid=os.getpid(), at_ms=wall_ms())
    best: Skew | None = None
    async with AIOKafkaProducer(**options) as producer:
        for value in (encode(snapshot), None):
            before_ms = wall_ms()
            sent = await producer.send_and_wait(kafka.names.workers, value, key=name.encode(), partition=0)
            after_ms = wall_ms()
            if sent.timestamp_type != _LOG_APPEND_TIME:
                continue
            seen = skew(sent.timestamp, before_ms, after_ms)
            best = seen if best is None or seen.uncertain_ms < best.uncertain_ms else best
    return best


def skew(appended_ms: int, before_ms: int, after_ms: int) -> Skew:
    """Return the skew when the broker's clock showed `appended_ms` at some time between two looks at ours."""
    return Skew(appended_ms - (before_ms + after_ms) // 2, (after_ms - before_ms + 1) // 2)


def findings(seen: Skew | None) -> list[Finding]:
    """Return how far the clocks are apart for certain: over 1 s is a warning, over 10 s an error."""
    if seen is None:
        return [skipped(CHECK, "the broker keeps no time of its own in the topic of workers: see topics")]
    surely_ms = max(abs(seen.ms) - seen.uncertain_ms, 0)
    if surely_ms <= _WARNING_MS:
        return [ok(CHECK, f"within {abs(seen.ms) + seen.uncertain_ms} ms of the broker's")]
    direction = "behind" if seen.ms > 0 else "ahead of"
    level = error if surely_ms > _ERROR_MS else warning
    return [level(CHECK, f"this machine's clock is {abs(seen.ms) / 1000:.1f} s {direction} the broker's", _REMEDY)]
