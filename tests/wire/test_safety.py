"""Each row of the table of unsafe settings, by what it finds and what it lets be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.topics import catalogue
from streams.catalogue import FoundTopic, wanted_config
from streams.settings import KafkaSettings
from wire import safety
from wire.safety import BROKER_RULES, TOPIC_RULES, Unsafe, UnsafeCluster, findings, refuse_unsafe
from wire.topics import Cluster

KAFKA = KafkaSettings()
RESULTS, NORMAL, STATE = "triage.results", "triage.requests.normal", "triage.state"
DAY_MS = 86_400_000


def cluster(topic: str = RESULTS, **changed: str) -> Cluster:
    """Return a cluster as the catalogue wants it, but for one topic's settings (`_` for `.`)."""
    found = {
        each.name: FoundTopic(each.partitions, 3, wanted_config(each, 3))
        for each in catalogue(KAFKA.names, partitions=12)
    }
    settings = {name.replace("_", "."): value for name, value in changed.items()}
    found[topic] = replace(
        found[topic],
        partitions=int(settings.pop("partitions", found[topic].partitions)),
        replication=int(settings.pop("replication", 3)),
        config={**found[topic].config, **settings},
    )
    return Cluster(found, {1: {"auto.create.topics.enable": "false"}, 2: {}})


def test_a_cluster_as_the_catalogue_wants_it_is_safe() -> None:
    assert [] == findings(KAFKA, cluster())


def test_topics_that_are_missing_are_not_unsafe() -> None:
    assert [] == findings(KAFKA, Cluster({}, {}))


@pytest.mark.parametrize(
    ("topic", "setting", "value", "found"),
    [
        (RESULTS, "replication", "1", "1"),
        (RESULTS, "min.insync.replicas", "1", "1"),
        (STATE, "min.insync.replicas", "1", "1"),
        (RESULTS, "unclean.leader.election.enable", "true", "true"),
        (RESULTS, "partitions", "6", "6 where 12 are set"),
        (NORMAL, "retention.ms", str(71 * 3_600_000), "255600000 where 259200000 (72 h) is the longest wait"),
        (RESULTS, "retention.ms", str(6 * DAY_MS), "518400000 where 604800000 (168 h) is the longest wait"),
        (NORMAL, "retention.bytes", "1073741824", "1073741824"),
        (RESULTS, "cleanup.policy", "compact", "compact"),
        (STATE, "cleanup.policy", "delete", "delete"),
        (NORMAL, "message.timestamp.type", "CreateTime", "CreateTime"),
    ],
)
def test_an_unsafe_topic_setting_is_found_with_its_remedy(topic: str, setting: str, value: str, found: str) -> None:
    [unsafe] = findings(KAFKA, cluster(topic, **{setting.replace(".", "_"): value}))
    assert (setting, found, (topic,)) == (unsafe.setting, unsafe.found, unsafe.where)
    rule = next(each for each in TOPIC_RULES if each.setting == setting)
    assert f"{setting} is {found} on {topic}: {rule.why}; {rule.remedy}" == str(unsafe)


@pytest.mark.parametrize(
    ("topic", "setting", "value"),
    [
        (RESULTS, "replication", "2"),
        (RESULTS, "min.insync.replicas", "3"),
        (RESULTS, "unclean.leader.election.enable", "false"),
        (NORMAL, "retention.ms", "-1"),
        (NORMAL, "retention.ms", str(100 * DAY_MS)),
        (STATE, "retention.ms", "1000"),
        (NORMAL, "retention.bytes", "-1"),
        ("gpu.metrics", "cleanup.policy", "delete,compact"),
    ],
)
def test_a_safe_topic_setting_is_let_be(topic: str, setting: str, value: str) -> None:
    assert [] == findings(KAFKA, cluster(topic, **{setting.replace(".", "_"): value}))


def test_with_two_copies_one_in_sync_is_enough() -> None:
    assert [] == findings(KAFKA, cluster(replication="2", min_insync_replicas="1"))


def test_brokers_that_create_topics_by_themselves_are_found() -> None:
    safe = cluster()
    [unsafe] = findings(KAFKA, replace(safe, brokers={1: {"auto.create.topics.enable": "true"}, 2: {}}))
    assert ("auto.create.topics.enable", ("broker 1",)) == (unsafe.setting, unsafe.where)


def test_every_row_is_tried_here() -> None:
    tried = {"replication", "min.insync.replicas", "unclean.leader.election.enable", "partitions", "retention.ms"}
    tried |= {"retention.bytes", "cleanup.policy", "message.timestamp.type", "auto.create.topics.enable"}
    assert tried == {each.setting for each in TOPIC_RULES} | {each.setting for each in BROKER_RULES}


def test_many_topics_are_named_by_the_first_three() -> None:
    unsafe = Unsafe("replication", "1", ("a", "b", "c", "d", "e"), "why", "remedy")
    assert "replication is 1 on a, b, c and 2 more: why; remedy" == str(unsafe)


async def test_unsafe_settings_are_refused_in_one_sentence_and_allowed_for_development(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = findings(KAFKA, cluster(retention_bytes="1000", unclean_leader_election_enable="true"))

    async def look(_: KafkaSettings) -> list[Unsafe]:
        return found

    monkeypatch.setattr(safety, "look", look)
    with pytest.raises(UnsafeCluster) as refused:
        await refuse_unsafe(KAFKA, allow=False)
    assert str(refused.value) == (
        "unclean.leader.election.enable is true on triage.results: a copy that is behind may lead, and what only the others had is "
        "gone; set it with kafka-configs.sh --alter --entity-type topics --add-config unclean.leader.election.enable=false; "
        "or, for development only, set allow_insecure_dev = true. Unsafe besides: retention.bytes."
    )
    await refuse_unsafe(KAFKA, allow=True)
