"""Unsafe settings of a real cluster."""

from __future__ import annotations

import pytest

from cli.embedded.kafka import KafkaCluster
from schemas.topics import catalogue
from streams.settings import KafkaSettings
from tests.support.kafka import create_topic
from wire.safety import UnsafeCluster, look, refuse_unsafe
from wire.topics import apply

pytestmark = pytest.mark.kafka


async def test_a_single_broker_is_refused_for_its_replication_and_nothing_else(kafka: str) -> None:
    settings = KafkaSettings(bootstrap=kafka, prefix="safety", partitions=3, replication=1)
    assert [] == await look(settings)  # without topics there is nothing to lose
    await apply(settings)
    [unsafe] = await look(settings)
    assert ("replication", "1") == (unsafe.setting, unsafe.found)
    assert tuple(each.name for each in catalogue(settings.names, partitions=3)) == unsafe.where
    with pytest.raises(UnsafeCluster, match=r"replication is 1 on safety.requests.critical.*allow_insecure_dev = true"):
        await refuse_unsafe(settings, allow=False)
    await refuse_unsafe(settings, allow=True)


async def test_what_a_broker_and_a_topic_are_set_to_is_found() -> None:
    properties = {"auto.create.topics.enable": "true", "unclean.leader.election.enable": "true"}
    with KafkaCluster(properties=properties) as cluster:
        settings = KafkaSettings(bootstrap=cluster.bootstrap, partitions=2, replication=1)
        lane = "triage.requests.low"
        await create_topic(cluster.bootstrap, lane, partitions=1, config={"retention.bytes": "1000"})
        found = {each.setting: each for each in await look(settings)}
    assert {"broker 1"} == set(found["auto.create.topics.enable"].where)
    assert {
        "replication": "1",
        "unclean.leader.election.enable": "true",
        "partitions": "1 where 2 are set",
        "retention.bytes": "1000",
        "message.timestamp.type": "CreateTime",
        "auto.create.topics.enable": "true",
    } == {setting: each.found for setting, each in found.items()}
