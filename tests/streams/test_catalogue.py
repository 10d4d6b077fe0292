"""The catalogue against what a cluster has."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.topics import MINUTE_MS, Topic, TopicNames, catalogue
from streams.catalogue import Action, Difference, FoundTopic, differences, wanted_config

TOPIC = Topic("t", 12, ("delete",), 10 * MINUTE_MS, 2 << 20)


def as_wanted(topic: Topic, changed: Mapping[str, str] | None = None, *, replication: int = 3) -> FoundTopic:
    return FoundTopic(topic.partitions, replication, {**wanted_config(topic, replication), **(changed or {})})


def summary(found: list[Difference]) -> list[tuple[str, str, str, Action]]:
    return [(each.what, each.wanted, each.found, each.action) for each in found]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, [("topic", "12 partitions, replication 3", "missing", Action.CREATE)]),
        ({"t": as_wanted(TOPIC)}, []),
        ({"t": FoundTopic(6, 3, as_wanted(TOPIC).config)}, [("partitions", "12", "6", Action.NONE)]),
        ({"t": FoundTopic(24, 3, as_wanted(TOPIC).config)}, [("partitions", "12", "24", Action.NONE)]),
        ({"t": FoundTopic(12, 2, as_wanted(TOPIC).config)}, [("replication", "3", "2", Action.NONE)]),
        ({"t": FoundTopic(12, 5, as_wanted(TOPIC).config)}, []),
        *(
            ({"t": as_wanted(TOPIC, {key: bad})}, [(key, good, bad, Action.ALTER)])
            for key, good, bad in [
                ("cleanup.policy", "delete", "compact"),
                ("retention.ms", "600000", "604800000"),
                ("segment.ms", "300000", "604800000"),
                ("max.message.bytes", "2097152", "1048588"),
                ("message.timestamp.type", "LogAppendTime", "CreateTime"),
                ("min.insync.replicas", "2", "1"),
            ]
        ),
        ({"t": as_wanted(TOPIC, {"min.insync.replicas": "3"})}, []),
        ({"t": as_wanted(TOPIC, {"compression.type": "lz4"})}, []),
        ({"t": as_wanted(TOPIC), "other": FoundTopic(1, 1, {})}, []),
    ],
)
def test_names_each_difference_and_what_can_be_done(
    found: Mapping[str, FoundTopic], expected: list[tuple[str, str, str, Action]]
) -> None:
    assert expected == summary(differences([TOPIC], found, 3))


def test_a_setting_that_the_cluster_does_not_report_is_unset() -> None:
    found = {"t": FoundTopic(12, 1, {})}
    assert {"unset"} == {each.found for each in differences([TOPIC], found, 1)}


def test_the_order_of_cleanup_policies_does_not_matter() -> None:
    topic = Topic("t", 1, ("compact", "delete"), MINUTE_MS)
    assert differences([topic], {"t": as_wanted(topic, {"cleanup.policy": "delete,compact"})}, 3) == []


def test_two_copies_in_sync_are_wanted_from_three_copies_on() -> None:
    assert "min.insync.replicas" not in wanted_config(TOPIC, 2)
    assert wanted_config(TOPIC, 3)["min.insync.replicas"] == "2"


def test_one_partition_reads_as_one() -> None:
    assert differences([Topic("t", 1, ("delete",), None)], {}, 1)[0].wanted == "1 partition, replication 1"


@given(
    partitions=st.integers(1, 64),
    replication=st.integers(1, 5),
    prefix=st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    missing=st.sets(st.integers(0, 16)),
)
def test_differs_exactly_where_a_topic_is_missing(
    partitions: int, replication: int, prefix: str, missing: set[int]
) -> None:
    wanted = catalogue(TopicNames(prefix), partitions=partitions)
    found = {
        topic.name: as_wanted(topic, replication=replication) for n, topic in enumerate(wanted) if n not in missing
    }
    expected = [topic.name for n, topic in enumerate(wanted) if n in missing]
    assert expected == [each.topic for each in differences(wanted, found, replication)]
