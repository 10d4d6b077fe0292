"""Settings of a cluster under which Kafka loses what it acknowledged, or a task meets its results no more: one table.

`streams/catalogue.py` says how topics differ from what we create; this says which of it, and what besides, is not safe to run on.
A worker and a gateway refuse it, unless `allow_insecure_dev` is on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.topics import Topic, catalogue
from streams.catalogue import FoundTopic
from streams.settings import KafkaSettings
from wire import topics
from wire.logs import get_logger
from wire.topics import Cluster

log = get_logger(__name__)

_COPIES_FOR_TWO_IN_SYNC = 3
_MOST_NAMED = 3
_HOUR_MS = 3_600_000


class UnsafeCluster(Exception):
    """The cluster's settings are not safe to run on; the message names the setting and the remedy."""


@dataclass(frozen=True, slots=True)
class Unsafe:
    """One setting that is wrong, on the brokers or topics of `where`, with the value that the first of them has."""

    setting: str
    found: str
    where: tuple[str, ...]
    why: str
    remedy: str

    def __str__(self) -> str:
        more = f" and {len(self.where) - _MOST_NAMED} more" if len(self.where) > _MOST_NAMED else ""
        return (
            f"{self.setting} is {self.found} on {', '.join(self.where[:_MOST_NAMED])}{more}: {self.why}; {self.remedy}"
        )


@dataclass(frozen=True, slots=True)
class TopicRule:
    """A setting of a topic: `wrong` returns the value found where it is unsafe, else None."""

    setting: str
    wrong: Callable[[Topic, FoundTopic], str | None]
    why: str
    remedy: str


@dataclass(frozen=True, slots=True)
class BrokerRule:
    """A setting of a broker that must not have the value `wrong`."""

    setting: str
    wrong: str
    why: str
    remedy: str


def _replication(_: Topic, found: FoundTopic) -> str | None:
    return str(found.replication) if found.replication < 2 else None


def _in_sync(_: Topic, found: FoundTopic) -> str | None:
    value = found.config.get("min.insync.replicas", "1")
    enough = found.replication < _COPIES_FOR_TWO_IN_SYNC or _number(value) >= 2
    return None if enough else value


def _unclean(_: Topic, found: FoundTopic) -> str | None:
    return "true" if found.config.get("unclean.leader.election.enable") == "true" else None


def _partitions(topic: Topic, found: FoundTopic) -> str | None:
    return None if found.partitions == topic.partitions else f"{found.partitions} where {topic.partitions} are set"


def _retention(topic: Topic, found: FoundTopic) -> str | None:
    value = found.config.get("retention.ms", "-1")
    if topic.retention_ms is None or "compact" in topic.cleanup or not 0 <= _number(value) < topic.retention_ms:
        return None
    return f"{value} where {topic.retention_ms} ({topic.retention_ms / _HOUR_MS:g} h) is the longest wait"


def _retention_bytes(_: Topic, found: FoundTopic) -> str | None:
    value = found.config.get("retention.bytes", "-1")
    return value if _number(value) >= 0 else None


def _cleanup(topic: Topic, found: FoundTopic) -> str | None:
    value = found.config.get("cleanup.policy", "delete")
    return None if {each.strip() for each in value.split(",")} == set(topic.cleanup) else value


def _timestamps(_: Topic, found: FoundTopic) -> str | None:
    value = found.config.get("message.timestamp.type", "CreateTime")
    return None if value == "LogAppendTime" else value


_APPLY = "`triage topics apply` sets it"
_REASSIGN = "move the partitions with kafka-reassign-partitions.sh onto 3 brokers and set kafka.replication = 3"


def _alter(setting: str, value: str) -> str:
    return f"set it with kafka-configs.sh --alter --entity-type topics --add-config {setting}={value}"


TOPIC_RULES: Sequence[TopicRule] = (
    TopicRule("replication", _replication, "one disk loses what was acknowledged", _REASSIGN),
    TopicRule("min.insync.replicas", _in_sync, "a single copy acknowledges, and may be lost with its disk", _APPLY),
    TopicRule(
        "unclean.leader.election.enable",
        _unclean,
        "a copy that is behind may lead, and what only the others had is gone",
        _alter("unclean.leader.election.enable", "false"),
    ),
    TopicRule(
        "partitions",
        _partitions,
        "a task is its id and its partition number, so its result would be looked for elsewhere",
        "set kafka.partitions to what is there, or use another kafka.prefix",
    ),
    TopicRule("retention.ms", _retention, "Kafka deletes records that are still waited for", _APPLY),
    TopicRule(
        "retention.bytes",
        _retention_bytes,
        "Kafka deletes acknowledged records when many come, however young",
        _alter("retention.bytes", "-1"),
    ),
    TopicRule("cleanup.policy", _cleanup, "Kafka removes records that are still waited for, or keeps all", _APPLY),
    TopicRule(
        "message.timestamp.type",
        _timestamps,
        "a producer whose clock is wrong has its acknowledged records deleted",
        _APPLY,
    ),
)
BROKER_RULES: Sequence[BrokerRule] = (
    BrokerRule(
        "auto.create.topics.enable",
        "true",
        "a name that is merely asked for becomes a topic with one partition and settings of nobody's",
        "set it to false in each broker's server.properties and restart the brokers one by one",
    ),
)


def findings(kafka: KafkaSettings, cluster: Cluster) -> list[Unsafe]:
    """Return what is unsafe, in the table's order. Topics that are missing are nobody's finding here."""
    wanted = catalogue(kafka.names, partitions=kafka.partitions)
    found: list[Unsafe] = []
    for rule in TOPIC_RULES:
        values = {
            topic.name: value
            for topic in wanted
            if (there := cluster.topics.get(topic.name)) is not None and (value := rule.wrong(topic, there)) is not None
        }
        if values:
            found.append(Unsafe(rule.setting, next(iter(values.values())), tuple(values), rule.why, rule.remedy))
    for each in BROKER_RULES:
        brokers = [number for number, config in cluster.brokers.items() if config.get(each.setting) == each.wrong]
        if brokers:
            where = tuple(f"broker {number}" for number in brokers)
            found.append(Unsafe(each.setting, each.wrong, where, each.why, each.remedy))
    return found


async def look(kafka: KafkaSettings, *, timeout_s: float = 10.0) -> list[Unsafe]:
    """Return what is unsafe about a cluster. Raises: BrokersUnreachable, TopicsRefused, CredentialsUnusable."""
    settings = [rule.setting for rule in BROKER_RULES]
    return findings(kafka, await topics.look(kafka, broker_settings=settings, timeout_s=timeout_s))


async def refuse_unsafe(kafka: KafkaSettings, allow: bool) -> None:
    """Return when the cluster is safe to run on; with `allow` also when it is not, and say in the log what is not.

    Raises: UnsafeCluster; as `look`.
    """
    found = await look(kafka)
    if not found:
        return
    if allow:
        for each in found:
            log.warning("unsafe, allowed by allow_insecure_dev", setting=each.setting, found=each.found, why=each.why)
        return
    others = f" Unsafe besides: {', '.join(each.setting for each in found[1:])}." if found[1:] else ""
    raise UnsafeCluster(f"{found[0]}; or, for development only, set allow_insecure_dev = true.{others}")


def _number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        return -1
