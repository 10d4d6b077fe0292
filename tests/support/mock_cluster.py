"""librdkafka's mock cluster: brokers on loopback TCP in this process that answer with the error codes they are told to.

It comes in the wheel `confluent-kafka`, through `ctypes`. It has no disk, no copies in sync and no compaction: for protocol faults
only. Real brokers are in `cli.embedded.kafka`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from aiokafka.errors import BrokerResponseError

PRODUCE, METADATA, INIT_PRODUCER_ID = 0, 3, 22
"""Requests that errors can be pushed for (Kafka's API keys)."""

DISCONNECT = -195
"""Pushed in the place of an error: the broker drops the connection instead of an answer."""

_INSIDE_WHEEL = "confluent_kafka.libs/librdkafka*.so*"
_PRODUCER = 0
_SIGNATURES = {
    "rd_kafka_conf_new": (ctypes.c_void_p, []),
    "rd_kafka_new": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_mock_cluster_new": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
    "rd_kafka_mock_cluster_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [ctypes.c_void_p]),
    "rd_kafka_mock_topic_create": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]),
    "rd_kafka_mock_topic_set_error": (None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]),
    "rd_kafka_mock_partition_set_leader": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32],
    ),
    "rd_kafka_mock_push_request_errors_array": (
        None,
        [ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)],
    ),
    "rd_kafka_mock_clear_request_errors": (None, [ctypes.c_void_p, ctypes.c_int16]),
    "rd_kafka_mock_broker_set_down": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_up": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_rtt": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int]),
}


class MockCluster:
    """`brokers` brokers, numbered from 1, from the entry of the block to its end. Needs no Java and starts in milliseconds."""

    def __init__(self, brokers: int = 3) -> None:
        self._brokers = brokers

    def __enter__(self) -> MockCluster:
        self._library = library = _library()
        said = ctypes.create_string_buffer(512)
        self._handle = library.rd_kafka_new(_PRODUCER, library.rd_kafka_conf_new(), said, len(said))
        assert self._handle, said.value.decode()
        self._cluster = library.rd_kafka_mock_cluster_new(self._handle, self._brokers)
        assert self._cluster
        return self

    def __exit__(self, *_: object) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)

    @property
    def bootstrap(self) -> str:
        found: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return found.decode()

    def create_topic(self, name: str, partitions: int = 1) -> str:
        copies = min(3, self._brokers)
        assert 0 == self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, copies)
        return name

    def set_leader(self, topic: str, partition: int, broker: int) -> None:
        """Let `broker` lead the partition; -1: nobody."""
        assert 0 == self._library.rd_kafka_mock_partition_set_leader(self._cluster, topic.encode(), partition, broker)

    def set_topic_error(self, topic: str, error: type[BrokerResponseError]) -> None:
        """Answer who asks for the topic's metadata with this error."""
        self._library.rd_kafka_mock_topic_set_error(self._cluster, topic.encode(), error.errno)

    def fail_next(self, api: int, errors: Sequence[type[BrokerResponseError] | int]) -> None:
        """Answer the next requests of this kind with these errors, one each; they do nothing else."""
        codes = [each if isinstance(each, int) else each.errno for each in errors]
        array = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, api, len(codes), array)

    def fail_no_more(self, api: int) -> None:
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, api)

    def down(self, broker: int) -> None:
        """Drop a broker's connections and refuse new ones; leaders stay. -1: all."""
        assert 0 == self._library.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def up(self, broker: int) -> None:
        assert 0 == self._library.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def set_rtt(self, broker: int, rtt_ms: int) -> None:
        """Let answers of a broker take this long. -1: all."""
        assert 0 == self._library.rd_kafka_mock_broker_set_rtt(self._cluster, broker, rtt_ms)


def _library() -> ctypes.CDLL:
    spec = find_spec("confluent_kafka")
    found = [] if spec is None else sorted(Path(spec.origin or "").parents[1].glob(_INSIDE_WHEEL))
    if not found:
        lacking = f"this test needs librdkafka's mock cluster: install the wheel confluent-kafka ({_INSIDE_WHEEL})"
        pytest.fail(lacking, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(lacking)
    library = ctypes.CDLL(str(found[0]))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
