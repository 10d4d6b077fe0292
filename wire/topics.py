"""The topics of a cluster: look at them, create what is missing, change what differs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidReplicationFactorError, KafkaError, TopicAlreadyExistsError, for_code

from schemas.topics import Lane, Topic, catalogue
from streams.catalogue import Action, Difference, FoundTopic, differences, wanted_config
from streams.settings import KafkaSettings
from wire.clock import monotonic_s
from wire.connection import BrokersUnreachable, client_options, wait_for_brokers
from wire.logs import get_logger

_log = get_logger("triage.topics")
# A broker that does not take a connection within this time is not there; what it does afterwards may take longer.
_CONNECT_S = 4.0
_LOOK_EVERY_S = 0.05
_SETTLE_S = 5.0
# Differences that a sentence names.
_MOST_NAMED = 3
# Where a value comes from in DescribeConfigs: 1 is the topic's own setting.
_SET_ON_TOPIC = 1


class TopicsDiffer(RuntimeError):
    """The cluster's topics are not what the catalogue says; run `triage topics apply`."""


class TopicsRefused(Exception):
    """Kafka refused to list, create or change topics; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did, and what is still different."""

    done: list[Difference]
    left: list[Difference]


@dataclass(frozen=True, slots=True)
class Cluster:
    """The catalogue's topics as found, and settings of each broker, those that may be read."""

    topics: Mapping[str, FoundTopic]
    brokers: Mapping[int, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Described:
    """A topic as found, and the part of its settings that was set on the topic itself."""

    found: FoundTopic
    own: Mapping[str, str]


async def require(kafka: KafkaSettings) -> None:
    """Return when the cluster's topics are those of the catalogue.

    Raises: TopicsDiffer; as `verify`.
    """
    found = await verify(kafka)
    if found:
        rows = "; ".join(f"{row.topic}: {row.what} is {row.found}, wanted {row.wanted}" for row in found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise TopicsDiffer(f"Topics differ from the catalogue ({rows}{more}): run `triage topics apply`.")


async def verify(kafka: KafkaSettings, *, timeout_s: float = 10.0) -> list[Difference]:
    """Return how the cluster differs from the catalogue; changes nothing.

    Raises: BrokersUnreachable, TopicsRefused, CredentialsUnusable.
    """
    async with _admin(kafka, timeout_s) as admin:
        return _compare(kafka, await _describe(admin, {topic.name for topic in _wanted(kafka)}))


async def look(kafka: KafkaSettings, *, broker_settings: Sequence[str], timeout_s: float = 10.0) -> Cluster:
    """Return the topics, and of each broker these settings; a broker that does not let us read them has none.

    Raises: as `verify`.
    """
    async with _admin(kafka, timeout_s) as admin:
        described = await _describe(admin, {topic.name for topic in _wanted(kafka)})
        return Cluster(
            {name: each.found for name, each in described.items()},
            await _describe_brokers(admin, dict.fromkeys(broker_settings)),
        )


async def shape(kafka: KafkaSettings, *, timeout_s: float = 10.0) -> tuple[int, int] | None:
    """Return the partitions and the replication of the cluster's most urgent lane, None when it has none.

    Raises: as `verify`.
    """
    name = kafka.names.requests(Lane.CRITICAL)
    async with _admin(kafka, timeout_s) as admin:
        described = (await _describe(admin, {name})).get(name)
    return None if described is None else (described.found.partitions, described.found.replication)


async def apply(kafka: KafkaSettings, *, timeout_s: float = 10.0) -> Applied:
    """Create missing topics and change settings that differ; return when every new partition has a leader.

    Settings that somebody added to a topic beyond the catalogue's stay. Partition counts and replication stay too.

    Raises: BrokersUnreachable, TopicsRefused, CredentialsUnusable.
    """
    wanted = _wanted(kafka)
    async with _admin(kafka, timeout_s) as admin:
        described = await _describe(admin, {topic.name for topic in wanted})
        todo = [each for each in _compare(kafka, described) if each.action is not Action.NONE]
        await _create(admin, _named(wanted, todo, Action.CREATE), kafka.replication)
        await _alter(admin, _named(wanted, todo, Action.ALTER), described, kafka.replication)
        left = await _settled(admin, kafka)
    return Applied([each for each in todo if each not in left], left)


def _wanted(kafka: KafkaSettings) -> list[Topic]:
    return catalogue(kafka.names, partitions=kafka.partitions)


def _compare(kafka: KafkaSettings, described: Mapping[str, _Described]) -> list[Difference]:
    return differences(
        _wanted(kafka), {name: each.found for name, each in described.items()}, replication=kafka.replication
    )


def _named(wanted: Iterable[Topic], todo: Iterable[Difference], action: Action) -> list[Topic]:
    names = {each.topic for each in todo if each.action is action}
    return [topic for topic in wanted if topic.name in names]


@contextlib.asynccontextmanager
async def _admin(kafka: KafkaSettings, timeout_s: float) -> AsyncIterator[AIOKafkaAdminClient]:
    """Give a connected admin client for at most `timeout_s`; what goes wrong comes out as an exception of ours."""
    await wait_for_brokers(kafka, log=_log, timeout_s=min(timeout_s, _CONNECT_S))
    admin = AIOKafkaAdminClient(**client_options(kafka, client_id="triage-topics"))
    try:
        async with asyncio.timeout(timeout_s):
            await admin.start()
            yield admin
    except TimeoutError as error:
        raise BrokersUnreachable(kafka, f"no answer within {timeout_s:g} s") from error
    except KafkaError as error:
        if error.retriable:
            raise BrokersUnreachable(kafka, type(error).__name__) from error
        raise TopicsRefused(f"Kafka at {kafka.bootstrap} refused: {error}.") from error
    finally:
        await admin.close()


async def _describe(admin: AIOKafkaAdminClient, names: Set[str]) -> dict[str, _Described]:
    # All topics are listed: to ask for one by its name may create it, where the brokers are set so.
    there = {each["topic"]: each["partitions"] for each in await admin.describe_topics() if each["topic"] in names}
    if not there:
        return {}
    settings = await _describe_configs(admin, there)
    return {
        name: _Described(
            FoundTopic(
                partitions=len(partitions),
                replication=min((len(each["replicas"]) for each in partitions), default=0),
                config={key: value for key, (value, _) in settings[name].items()},
            ),
            own={key: value for key, (value, source) in settings[name].items() if source == _SET_ON_TOPIC},
        )
        for name, partitions in there.items()
    }


async def _describe_configs(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, tuple[str, int]]]:
    """Return per topic each setting's value and source."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for answer in await admin.describe_configs(asked):
        for resource in answer.to_object()["resources"]:
            _refuse("describe", resource["resource_name"], resource["error_code"], resource["error_message"])
            found[resource["resource_name"]] = {
                entry["config_names"]: (entry["config_value"], entry["config_source"])
                for entry in resource["config_entries"]
            }
    return found


async def _describe_brokers(admin: AIOKafkaAdminClient, settings: Mapping[str, None]) -> dict[int, dict[str, str]]:
    numbers = [each["node_id"] for each in (await admin.describe_cluster())["brokers"]]
    asked = [ConfigResource(ConfigResourceType.BROKER, str(number), settings) for number in numbers]
    return {
        int(resource["resource_name"]): {
            entry["config_names"]: entry["config_value"] for entry in resource["config_entries"]
        }
        for answer in await admin.describe_configs(asked)
        for resource in answer.to_object()["resources"]
    }


async def _create(admin: AIOKafkaAdminClient, topics: Sequence[Topic], replication: int) -> None:
    if not topics:
        return
    new = [
        NewTopic(each.name, each.partitions, replication, topic_configs=wanted_config(each, replication))
        for each in topics
    ]
    # The client does not raise for a topic that was refused; the answer says so.
    answer = await admin.create_topics(new)
    for name, code, reason in answer.topic_errors:
        too_few = for_code(code) is InvalidReplicationFactorError
        told = f"it has fewer brokers than kafka.replication = {replication}." if too_few else reason
        if for_code(code) is not TopicAlreadyExistsError:
            _refuse("create", name, code, told)


async def _alter(
    admin: AIOKafkaAdminClient, topics: Sequence[Topic], described: Mapping[str, _Described], replication: int
) -> None:
    """Change settings. The request replaces all that were set on the topic, so those that stay are sent along."""
    if not topics:
        return
    resources = [
        ConfigResource(
            ConfigResourceType.TOPIC,
            each.name,
            {**described[each.name].own, **wanted_config(each, replication)},
        )
        for each in topics
    ]
    for answer in await admin.alter_configs(resources):
        for resource in answer.to_object()["resources"]:
            _refuse("change", resource["resource_name"], resource["error_code"], resource["error_message"])


async def _settled(admin: AIOKafkaAdminClient, kafka: KafkaSettings) -> list[Difference]:
    """Return what differs once every wanted topic has its leaders: brokers hear of a change one after the other.

    What still can be changed after a while is returned too: somebody else changes it back, or created it otherwise.
    """
    names = {topic.name for topic in _wanted(kafka)}
    until_s = monotonic_s() + _SETTLE_S
    while True:
        leaderless = names - {each["topic"] for each in await admin.describe_topics() if _has_leaders(each)}
        left = _compare(kafka, await _describe(admin, names))
        late = monotonic_s() > until_s
        if not leaderless and (late or all(each.action is Action.NONE for each in left)):
            return left
        if late:
            raise TopicsRefused(f"No broker leads the topic {min(leaderless)} after {_SETTLE_S:g} s: read their logs.")
        await asyncio.sleep(_LOOK_EVERY_S)


def _has_leaders(topic: Mapping[str, Any]) -> bool:
    return topic["error_code"] == 0 and all(each["leader"] >= 0 for each in topic["partitions"])


def _refuse(verb: str, topic: str, code: int, reason: str | None) -> None:
    if code:
        raise TopicsRefused(f"Kafka refused to {verb} the topic {topic}: {reason or for_code(code).__name__}")
