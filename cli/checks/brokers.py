"""The brokers: how many, of which release, and whether they can keep the promise of acks=all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cli.checks.finding import Finding, error, listed, ok, warning
from schemas.topics import catalogue
from streams.settings import KafkaSettings

CHECK = "kafka"
_FETCH = 1
# Kafka 4.0 took away the oldest versions of the protocol, of Fetch 0 to 3. Source: KIP-896.
_OLDEST_FETCH_OF_4 = 4


@dataclass(frozen=True, slots=True)
class Cluster:
    """What was seen. `oldest_fetch` is the oldest version of Fetch that is understood, None when not told.

    `leaderless` and `behind` (some copy is not in sync) name topics; `in_sync` is the smallest number of copies in sync of any
    partition, `min_in_sync` how many a write waits for; both None when there are no topics yet.
    """

    brokers: int
    oldest_fetch: int | None = None
    leaderless: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    in_sync: int | None = None
    min_in_sync: int | None = None


async def look(kafka: KafkaSettings) -> list[Finding]:
    """Look at the cluster. Raises: KafkaError."""
    from aiokafka.admin import AIOKafkaAdminClient

    from wire.connection import QUICK_RETRIES, client_options

    admin = AIOKafkaAdminClient(**client_options(kafka, client_id="triage-doctor") | QUICK_RETRIES)
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
        wanted = {topic.name for topic in catalogue(kafka.names, partitions=kafka.partitions)}
        topics = [each for each in await admin.describe_topics() if each["topic"] in wanted]
        min_in_sync = await _min_in_sync(admin, [each["topic"] for each in topics])
    finally:
        await admin.close()
    return findings(seen(len(cluster["brokers"]), await _oldest_fetch(kafka), topics, min_in_sync), kafka)


def seen(
    brokers: int, oldest_fetch: int | None, topics: Iterable[Mapping[str, Any]], min_in_sync: int | None
) -> Cluster:
    """Return what the metadata tells; `topics` are as an admin client describes them."""
    rows = [(topic["topic"], each) for topic in topics for each in topic["partitions"]]
    return Cluster(
        brokers=brokers,
        oldest_fetch=oldest_fetch,
        leaderless=tuple(dict.fromkeys(name for name, each in rows if each["leader"] < 0)),
        behind=tuple(dict.fromkeys(name for name, each in rows if len(each["isr"]) < len(each["replicas"]))),
        in_sync=min((len(each["isr"]) for _, each in rows), default=None),
        min_in_sync=min_in_sync,
    )


def findings(cluster: Cluster, kafka: KafkaSettings) -> list[Finding]:
    """Return what is to be said of a cluster that answers."""
    return [ok(CHECK, _summary(cluster, kafka)), *_of_brokers(cluster, kafka), *_of_copies(cluster)]


def _summary(cluster: Cluster, kafka: KafkaSettings) -> str:
    release = ""
    if cluster.oldest_fetch is not None:
        release = ", Kafka 4.0 or newer" if cluster.oldest_fetch >= _OLDEST_FETCH_OF_4 else ", Kafka before 4.0"
    return f"{kafka.bootstrap} answers: {cluster.brokers} broker{'s' * (cluster.brokers != 1)}{release}"


def _of_brokers(cluster: Cluster, kafka: KafkaSettings) -> list[Finding]:
    if cluster.brokers >= kafka.replication:
        return []
    found = f"{cluster.brokers} broker{'s' * (cluster.brokers != 1)} for kafka.replication = {kafka.replication}"
    only_development = " and allow_insecure_dev = true, for development only" if cluster.brokers == 1 else ""
    return [error(CHECK, found, f"start more brokers, or set kafka.replication = {cluster.brokers}{only_development}")]


def _of_copies(cluster: Cluster) -> list[Finding]:
    found = []
    if cluster.leaderless:
        remedy = "start the brokers that hold their copies, and read their logs"
        found.append(error(CHECK, f"no broker leads {listed(list(cluster.leaderless))}", remedy))
    if cluster.in_sync is not None and cluster.min_in_sync is not None and cluster.in_sync < cluster.min_in_sync:
        told = f"a partition has {cluster.in_sync} of {cluster.min_in_sync} copies in sync: writes to it are refused"
        found.append(error(CHECK, told, "start the missing broker; min.insync.replicas must not exceed the copies"))
    elif cluster.behind:
        remedy = "start the missing broker, or wait until it has caught up"
        found.append(warning(CHECK, f"copies are behind in {listed(list(cluster.behind))}", remedy))
    return found


async def _min_in_sync(admin: Any, topics: list[str]) -> int | None:
    """Return the largest `min.insync.replicas` of the topics, None without topics."""
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    if not topics:
        return None
    asked = [ConfigResource(ConfigResourceType.TOPIC, name, {"min.insync.replicas": None}) for name in topics]
    told = [
        entry["config_value"]
        for answer in await admin.describe_configs(asked)
        for resource in answer.to_object()["resources"]
        for entry in resource["config_entries"]
        if entry["config_names"] == "min.insync.replicas"
    ]
    return max((int(each) for each in told if each and each.isdigit()), default=None)


async def _oldest_fetch(kafka: KafkaSettings) -> int | None:
    """Ask the first broker that answers which versions of Fetch it speaks."""
    from aiokafka.conn import collect_hosts, create_conn
    from aiokafka.errors import KafkaError
    from aiokafka.protocol.admin import ApiVersionRequest

    from wire.connection import client_options

    options = client_options(kafka, client_id="triage-doctor")
    security = {name: value for name, value in options.items() if name.startswith(("security_", "ssl_", "sasl_"))}
    for host, port, _ in collect_hosts(options["bootstrap_servers"]):
        try:
            connection = await create_conn(host, port, client_id="triage-doctor", **security)
        except (KafkaError, OSError):
            continue
        try:
            reply = await connection.send(ApiVersionRequest())
            return next((int(oldest) for key, oldest, _ in reply.api_versions if key == _FETCH), None)
        finally:
            connection.close()
    return None
