"""Compare the topic catalogue with what a cluster has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from schemas.topics import Topic

# From this many copies on, a write waits for two of them; with two copies in all, one dead broker would stop writes.
_COPIES_FOR_TWO_IN_SYNC = 3
# What would delete acknowledged records: by size before their time, or with a replica that was behind.
_KEPT_WHOLE = {"retention.bytes": "-1", "unclean.leader.election.enable": "false"}
# More of these than wanted is as good.
_AT_LEAST = frozenset({"replication", "min.insync.replicas"})


class Action(StrEnum):
    """What can be done about a difference."""

    CREATE = "create"
    ALTER = "alter"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic as a cluster has it. `config` holds the values in force, whether set on the topic or inherited."""

    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as wanted; `what` is a setting of Kafka's, `partitions`, `replication` or `topic`."""

    topic: str
    what: str
    wanted: str
    found: str
    remedy: str
    action: Action

    def __str__(self) -> str:
        return f"{self.topic}: {self.what} is {self.found}, wanted {self.wanted}: {self.remedy}"


def wanted_config(topic: Topic, replication: int) -> dict[str, str]:
    """Return the settings that `topic` should have in a cluster that keeps `replication` copies."""
    in_sync = {"min.insync.replicas": "2"} if replication >= _COPIES_FOR_TWO_IN_SYNC else {}
    return {**topic.config, **in_sync, **_KEPT_WHOLE}


def differences(wanted: Sequence[Topic], found: Mapping[str, FoundTopic], replication: int) -> list[Difference]:
    """Return what differs, in the catalogue's order. Topics that the catalogue does not name are nobody's business."""
    return [each for topic in wanted for each in _of_topic(topic, found.get(topic.name), replication)]


def _of_topic(topic: Topic, found: FoundTopic | None, replication: int) -> Iterator[Difference]:
    if found is None:
        size = f"{topic.partitions} partition{'s' * (topic.partitions != 1)}, replication {replication}"
        yield Difference(topic.name, "topic", size, "missing", "`triage topics apply` creates it", Action.CREATE)
        return
    if found.partitions != topic.partitions:
        yield Difference(
            topic.name, "partitions", str(topic.partitions), str(found.partitions), _REPARTITION, Action.NONE
        )
    if found.replication < replication:
        yield Difference(topic.name, "replication", str(replication), str(found.replication), _REASSIGN, Action.NONE)
    for key, value in wanted_config(topic, replication).items():
        actual = found.config.get(key, "unset")
        if not _agrees(key, value, actual):
            yield Difference(topic.name, key, value, actual, "`triage topics apply` changes it", Action.ALTER)


_REPARTITION = (
    "never changed in place, because a task is its id and its partition: set kafka.partitions to what is there, "
    "or use another kafka.prefix"
)
_REASSIGN = "move the partitions with kafka-reassign-partitions.sh, or set kafka.replication to what is there"


def _agrees(key: str, wanted: str, actual: str) -> bool:
    if key == "cleanup.policy":
        return {part.strip() for part in wanted.split(",")} == {part.strip() for part in actual.split(",")}
    if key in _AT_LEAST:
        return actual.isdigit() and int(actual) >= int(wanted)
    return actual == wanted
