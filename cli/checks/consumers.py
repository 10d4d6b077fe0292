"""Who takes requests: the groups of the lanes and of the control app, and how far they are behind."""

from __future__ import annotations

from dataclasses import dataclass

from cli.checks.finding import Finding, error, listed, ok, skipped, warning
from schemas.topics import Lane
from streams.settings import KafkaSettings

CHECK = "workers"
WORKER = "start `triage worker`"
_CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group: its members, and how many records it has not committed; `lag` None where nobody waits for it."""

    name: str
    members: int
    lag: int | None = None


async def look(kafka: KafkaSettings) -> list[Finding]:
    """Look at the groups. Raises: BrokersUnreachable, KafkaError."""
    from aiokafka import TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient

    from wire.connection import QUICK_RETRIES, client_options
    from wire.reading import log_reader

    names = {lane.value: kafka.names.group(lane.value) for lane in Lane} | {_CONTROL: kafka.names.group(_CONTROL)}
    async with log_reader(kafka, client_id="triage-doctor") as reader:
        counts = await reader.partitions()
        topics = {lane.value: kafka.names.requests(lane) for lane in Lane}
        if any(topic not in counts for topic in topics.values()):
            return [skipped(CHECK, "the lanes' topics are missing: see topics")]
        lags: dict[str, int] = {}
        for lane, topic in topics.items():
            tps = [TopicPartition(topic, number) for number in range(counts[topic])]
            starts, ends = await reader.starts(tps), await reader.ends(tps)
            committed = await reader.committed(names[lane], tps)
            lags[lane] = sum(max(ends[tp] - max(committed[tp], starts[tp]), 0) for tp in tps)
        admin = AIOKafkaAdminClient(**client_options(kafka, client_id="triage-doctor") | QUICK_RETRIES)
        try:
            await admin.start()
            # One at a time: aiokafka 0.14 reads version 3's answer by version 2's form, which is right up to the second group.
            answers = [each for name in names.values() for each in await admin.describe_consumer_groups([name])]
        finally:
            await admin.close()
    rows = [group for answer in answers for group in answer.to_object()["groups"]]
    members = {group["group"]: len(group["members"]) for group in rows}
    return findings([Group(group, members.get(group, 0), lags.get(name)) for name, group in names.items()])


def findings(groups: list[Group]) -> list[Finding]:
    """Return which groups nobody is in, which is an error only where requests wait for them."""
    lags = [(group.name, group.lag) for group in groups if group.lag is not None]
    waiting = ", ".join(f"{name} {lag}" for name, lag in lags)
    empty = [group for group in groups if not group.members]
    if not empty:
        most = max(group.members for group in groups)
        return [ok(CHECK, f"{most} worker{'s' * (most != 1)} in the groups; requests not acknowledged: {waiting}")]
    stuck = [f"{group.name} ({group.lag} waiting)" for group in empty if group.lag]
    if stuck:
        return [error(CHECK, f"no worker in {listed(stuck, 5)}", WORKER)]
    return [warning(CHECK, f"no worker in {listed([group.name for group in empty], 5)}; nothing waits", WORKER)]
