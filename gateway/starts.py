"""Which logs the view reads, and where it begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aiokafka import TopicPartition

from gateway.ends import Ends
from schemas.topics import Lane, RetryTier, TopicNames
from streams.settings import KafkaSettings
from wire.reading import log_reader

LOOK_BACK_MS = 60_000


@dataclass(frozen=True, slots=True)
class Followed:
    """The partitions that a view reads."""

    lanes: Mapping[TopicPartition, Lane]
    retries: Sequence[TopicPartition]
    results: Sequence[TopicPartition]
    progress: Sequence[TopicPartition]
    workers: TopicPartition
    gpus: TopicPartition
    state: TopicPartition

    @classmethod
    def of(cls, kafka: KafkaSettings) -> Followed:
        names: TopicNames = kafka.names
        numbers = range(kafka.partitions)
        return cls(
            lanes={TopicPartition(names.requests(lane), number): lane for lane in Lane for number in numbers},
            retries=[TopicPartition(names.retry(tier), number) for tier in RetryTier for number in numbers],
            results=[TopicPartition(names.results, number) for number in numbers],
            progress=[TopicPartition(names.progress, number) for number in numbers],
            workers=TopicPartition(names.workers, 0),
            gpus=TopicPartition(names.gpu_metrics, 0),
            state=TopicPartition(names.state, 0),
        )


async def starts(
    kafka: KafkaSettings, followed: Followed, ends: Ends, results: Mapping[int, int], now_ms: int, *, client_id: str
) -> dict[TopicPartition, int]:
    """Return the first offset to read of every log but progress, which depends on what the others hold.

    Lanes and retries: from the workers' committed offset, or 60 s ago if that is earlier. Results: from where `results`
    (partition -> next offset) ends, else from the oldest. Snapshots, GPU samples and state: from the oldest that is kept.

    Raises: BrokersUnreachable, Unavailable.
    """
    found: dict[TopicPartition, int] = {}
    async with log_reader(kafka, client_id=f"{client_id}-starts") as reader:
        for group, tps in _groups(kafka, followed).items():
            found |= await reader.committed(group, tps)
        whole = (followed.workers, followed.gpus, followed.state)
        oldest = await reader.starts([*followed.results, *whole])
    recent = await ends.at_time(found, now_ms - LOOK_BACK_MS)
    found = {tp: min(offset, recent[tp]) for tp, offset in found.items()}
    for tp in followed.results:
        found[tp] = max(results.get(tp.partition, 0), oldest[tp])
    return found | {tp: oldest[tp] for tp in whole}


def _groups(kafka: KafkaSettings, followed: Followed) -> dict[str, Iterable[TopicPartition]]:
    """Return which group of the workers reads which partitions."""
    groups: dict[str, Iterable[TopicPartition]] = {
        kafka.names.group(lane.value): [tp for tp, of in followed.lanes.items() if of is lane] for lane in Lane
    }
    groups[kafka.names.group("retry")] = followed.retries
    return groups
