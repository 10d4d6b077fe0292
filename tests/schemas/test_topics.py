"""The topic catalogue against the contract's table, row by row."""

from __future__ import annotations

import pytest

from schemas.topics import Lane, RetryTier, TopicNames, catalogue

MINUTE, HOUR, DAY, MIB = 60_000, 3_600_000, 86_400_000, 1 << 20
N = 12

# name, partitions, cleanup.policy, kept, segment.ms, max.message.bytes
TABLE = [
    ("triage.requests.critical", N, "delete", 72 * HOUR, HOUR, 2 * MIB),
    ("triage.requests.high", N, "delete", 72 * HOUR, HOUR, 2 * MIB),
    ("triage.requests.normal", N, "delete", 72 * HOUR, HOUR, 2 * MIB),
    ("triage.requests.low", N, "delete", 72 * HOUR, HOUR, 2 * MIB),
    ("triage.results", N, "delete", 7 * DAY, HOUR, 2 * MIB),
    ("triage.progress", N, "delete", 24 * HOUR, HOUR, 2 * MIB),
    ("triage.chunks", N, "delete", 10 * MINUTE, 5 * MINUTE, 2 * MIB),
    ("triage.retry.5s", N, "delete", 7 * DAY, HOUR, 2 * MIB),
    ("triage.retry.60s", N, "delete", 7 * DAY, HOUR, 2 * MIB),
    ("triage.retry.600s", N, "delete", 7 * DAY, HOUR, 2 * MIB),
    ("dlq.triage.requests", N, "delete", 14 * DAY, HOUR, 4 * MIB),
    ("gpu.metrics", 1, "compact,delete", HOUR, 5 * MINUTE, None),
    ("triage-control-gpus-changelog", 1, "compact,delete", HOUR, 5 * MINUTE, None),
    ("triage-control-cache-changelog", N, "compact,delete", HOUR, 5 * MINUTE, 2 * MIB),
    ("triage.workers", 1, "compact,delete", 10 * MINUTE, 5 * MINUTE, None),
    ("triage.state", 1, "compact", -1, 5 * MINUTE, None),
    ("triage.audit", 1, "delete", 365 * DAY, HOUR, None),
]


def test_the_catalogue_is_the_contracts_table() -> None:
    found = [
        (
            topic.name,
            topic.partitions,
            topic.config["cleanup.policy"],
            int(topic.config["retention.ms"]),
            int(topic.config["segment.ms"]),
            int(topic.config["max.message.bytes"]) if "max.message.bytes" in topic.config else None,
        )
        for topic in catalogue(TopicNames(), partitions=N)
    ]
    assert found == TABLE


def test_kafka_itself_stamps_every_record() -> None:
    configs = [topic.config for topic in catalogue(TopicNames(), partitions=1)]
    assert {"LogAppendTime"} == {config["message.timestamp.type"] for config in configs}


def test_every_name_carries_the_prefix() -> None:
    names = [topic.name for topic in catalogue(TopicNames("blue"), partitions=1)]
    assert [row[0].replace("triage", "blue").replace("gpu.metrics", "blue.gpu.metrics") for row in TABLE] == names


@pytest.mark.parametrize(
    ("prefix", "set_to", "name"),
    [
        ("triage", None, "gpu.metrics"),
        ("blue", None, "blue.gpu.metrics"),
        ("blue", "shared.gpus", "shared.gpus"),
        ("triage", "shared.gpus", "shared.gpus"),
    ],
)
def test_the_gpu_topic_is_the_settings_else_follows_the_prefix(prefix: str, set_to: str | None, name: str) -> None:
    names = TopicNames(prefix, set_to)
    assert name == names.gpu_metrics
    assert name in {topic.name for topic in catalogue(names, partitions=1)}


def test_groups_carry_the_prefix() -> None:
    assert "triage-critical" == TopicNames().group("critical")
    assert "blue-retry" == TopicNames("blue").group("retry")


@pytest.mark.parametrize("lane", Lane)
def test_a_lane_is_found_by_its_topic(lane: Lane) -> None:
    names = TopicNames("a.b")
    assert lane is names.lane_of(names.requests(lane))


@pytest.mark.parametrize("topic", ["triage.results", "blue.requests.high", "triage.requests.urgent", ""])
def test_other_topics_have_no_lane(topic: str) -> None:
    with pytest.raises(ValueError, match="is not a valid Lane"):
        TopicNames().lane_of(topic)


def test_tiers_name_their_delay() -> None:
    assert [5_000, 60_000, 600_000] == [tier.delay_ms for tier in RetryTier]


def test_lanes_are_ordered_from_the_most_urgent_down() -> None:
    assert ["critical", "high", "normal", "low"] == list(Lane)
