"""The topic catalogue: every topic Triage uses, with the settings a cluster must give it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIB = 1 << 20
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

# The largest record value a task topic takes; a dead letter carries the request's bytes and headers of ours besides.
MAX_RECORD_BYTES = 2 * MIB
MAX_DEAD_LETTER_BYTES = 4 * MIB
# A topic kept for no longer than this, or compacted, rolls its segments quickly: Kafka neither deletes nor compacts the active one.
_SHORT_RETENTION_MS = HOUR_MS
_QUICK_SEGMENT_MS = 5 * MINUTE_MS
_SEGMENT_MS = HOUR_MS


class Lane(StrEnum):
    """A priority, which is a topic of its own; the order of the members is from the most urgent down."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class RetryTier(StrEnum):
    """A delay, which is a topic of its own, so that the head of each is always the next due."""

    FIVE_SECONDS = "5s"
    SIXTY_SECONDS = "60s"
    TEN_MINUTES = "600s"

    @property
    def delay_ms(self) -> int:
        return int(self.value[:-1]) * 1000


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the catalogue wants it. `retention_ms` None: kept for ever (compacted only)."""

    name: str
    partitions: int
    cleanup: tuple[str, ...]
    retention_ms: int | None
    max_message_bytes: int | None = None

    @property
    def config(self) -> dict[str, str]:
        """Return the topic's settings as Kafka spells them."""
        quick = "compact" in self.cleanup or (self.retention_ms or 0) <= _SHORT_RETENTION_MS
        config = {
            "cleanup.policy": ",".join(self.cleanup),
            "message.timestamp.type": "LogAppendTime",
            "segment.ms": str(_QUICK_SEGMENT_MS if quick else _SEGMENT_MS),
            "retention.ms": str(-1 if self.retention_ms is None else self.retention_ms),
        }
        if self.max_message_bytes is not None:
            config["max.message.bytes"] = str(self.max_message_bytes)
        if "compact" in self.cleanup:
            config["min.cleanable.dirty.ratio"] = "0.1"
        return config


@dataclass(frozen=True, slots=True)
class TopicNames:
    """The names under one prefix. `gpu_topic` None: `gpu.metrics` for the default prefix, else `<prefix>.gpu.metrics`."""

    prefix: str = "triage"
    gpu_topic: str | None = None

    def requests(self, lane: Lane) -> str:
        return f"{self.prefix}.requests.{lane.value}"

    def retry(self, tier: RetryTier) -> str:
        return f"{self.prefix}.retry.{tier.value}"

    def group(self, name: str) -> str:
        """Return a consumer group's id: `critical`, `high`, `normal`, `low`, `control`, `retry` or `webhooks` under the prefix."""
        return f"{self.prefix}-{name}"

    @property
    def results(self) -> str:
        return f"{self.prefix}.results"

    @property
    def progress(self) -> str:
        return f"{self.prefix}.progress"

    @property
    def chunks(self) -> str:
        return f"{self.prefix}.chunks"

    @property
    def dead_letters(self) -> str:
        return f"dlq.{self.prefix}.requests"

    @property
    def gpu_metrics(self) -> str:
        default = "gpu.metrics" if self.prefix == "triage" else f"{self.prefix}.gpu.metrics"
        return self.gpu_topic or default

    @property
    def gpu_changelog(self) -> str:
        return f"{self.group('control')}-gpus-changelog"

    @property
    def cache_changelog(self) -> str:
        return f"{self.group('control')}-cache-changelog"

    @property
    def workers(self) -> str:
        return f"{self.prefix}.workers"

    @property
    def state(self) -> str:
        return f"{self.prefix}.state"

    @property
    def audit(self) -> str:
        return f"{self.prefix}.audit"

    def lane_of(self, topic: str) -> Lane:
        """Return the lane whose requests `topic` carries. Raises: ValueError for any other topic."""
        return Lane(topic.removeprefix(f"{self.prefix}.requests."))


def catalogue(names: TopicNames, *, partitions: int) -> list[Topic]:
    """Return every topic, in the order of the contract. `partitions` is the count of each task topic."""
    delete, compact, both = ("delete",), ("compact",), ("compact", "delete")
    year_ms = 365 * DAY_MS

    def task(name: str, kept_ms: int, max_bytes: int = MAX_RECORD_BYTES) -> Topic:
        return Topic(name, partitions, delete, kept_ms, max_bytes)

    return [
        *(task(names.requests(lane), 72 * HOUR_MS) for lane in Lane),
        task(names.results, 7 * DAY_MS),
        task(names.progress, DAY_MS),
        task(names.chunks, 10 * MINUTE_MS),
        *(task(names.retry(tier), 7 * DAY_MS) for tier in RetryTier),
        task(names.dead_letters, 14 * DAY_MS, MAX_DEAD_LETTER_BYTES),
        Topic(names.gpu_metrics, 1, both, HOUR_MS),
        Topic(names.gpu_changelog, 1, both, HOUR_MS),
        Topic(names.cache_changelog, partitions, both, HOUR_MS, MAX_RECORD_BYTES),
        Topic(names.workers, 1, both, 10 * MINUTE_MS),
        Topic(names.state, 1, compact, None),
        Topic(names.audit, 1, delete, year_ms),
    ]
