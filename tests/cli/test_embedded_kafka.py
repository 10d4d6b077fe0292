"""The embedded Kafka is a real one: it serves, keeps its log, survives a lost broker, and ends with its parent."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.embedded.aot import train_aot
from cli.embedded.errors import BrokerDied, DataInUse, DataMismatch, EmbeddedError
from cli.embedded.jvm import Jvm, ensure_jvm
from cli.embedded.kafka import KafkaCluster
from tests.support.kafka import (
    FAST_FAILOVER,
    FAST_GROUPS,
    KafkaRun,
    consume,
    create_topic,
    fresh_name,
    list_topics,
    produce,
)

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster(properties=FAST_GROUPS) as started:
        yield started


async def test_should_give_back_what_was_produced(cluster: KafkaCluster) -> None:
    topic = await create_topic(cluster.bootstrap, partitions=3)
    await produce(cluster.bootstrap, topic, b"one", b"two")
    received = await consume(
        cluster.bootstrap, topic, 2, group_id=fresh_name("group"), session_timeout_ms=1000, heartbeat_interval_ms=300
    )
    assert sorted(received) == [b"one", b"two"]


async def test_should_take_a_value_of_four_mebibytes(cluster: KafkaCluster) -> None:
    topic = await create_topic(cluster.bootstrap)
    value = bytes(4 * 1024 * 1024)
    await produce(cluster.bootstrap, topic, value, max_request_size=5_000_000, max_batch_size=5_000_000)
    assert [value] == await consume(cluster.bootstrap, topic, 1)


async def test_should_leave_no_topic_behind_when_it_becomes_ready(cluster: KafkaCluster) -> None:
    cluster.wait_ready()
    assert "triage-is-it-ready" not in await list_topics(cluster.bootstrap)


async def test_should_run_beside_another_cluster(cluster: KafkaCluster) -> None:
    topic = await create_topic(cluster.bootstrap)
    with KafkaCluster() as other:
        assert other.bootstrap != cluster.bootstrap
        assert topic not in await list_topics(other.bootstrap)
        throw_away = other.data
    assert throw_away
    assert not throw_away.exists()


def test_should_freeze_and_go_on(cluster: KafkaCluster) -> None:
    state = Path(f"/proc/{cluster.pids[0]}/stat")
    cluster.pause(1)
    frozen = state.read_text().split()[2]
    cluster.resume(1)
    assert frozen == "T"
    cluster.wait_ready()


async def test_should_keep_a_named_log_across_restarts(tmp_path: Path) -> None:
    data = tmp_path / "with space and ü"
    with KafkaCluster(data=data) as first:
        topic = await create_topic(first.bootstrap)
        await produce(first.bootstrap, topic, b"kept")
        with pytest.raises(DataInUse, match="Another embedded Kafka runs on"):
            KafkaCluster(data=data).start()
    with KafkaCluster(data=data) as second:
        assert await consume(second.bootstrap, topic, 1) == [b"kept"]
    with pytest.raises(DataMismatch, match=r"holds a cluster of 1 broker\(s\), not 3"):
        KafkaCluster(data=data, brokers=3).start()


@pytest.mark.faults
async def test_should_serve_with_one_of_three_killed_and_take_it_back() -> None:
    with KafkaCluster(brokers=3, properties=FAST_FAILOVER) as three:
        topic = await create_topic(three.bootstrap, partitions=3, replicas=3)
        three.kill(2)
        assert three.poll(2) == -signal.SIGKILL
        await produce(three.bootstrap, topic, b"while it was away")
        three.restart(2)
        assert len(three.pids) == 3
        assert await consume(three.bootstrap, topic, 1) == [b"while it was away"]


def test_should_start_a_broker_from_an_archive_made_for_it(tmp_path: Path) -> None:
    found = ensure_jvm()
    jvm = Jvm(found.java, found.jars, cache=tmp_path)
    archive = train_aot(jvm=jvm)
    with KafkaCluster(jvm=jvm) as cluster:
        assert f"-XX:AOTCache={archive}" in cluster.command(1)
        assert cluster.data
        # The runtime complains here about an archive that does not fit.
        assert (cluster.data / "broker-1" / "kafka.out").read_text() == ""


def test_should_say_how_a_broker_ended_that_cannot_start() -> None:
    cluster = KafkaCluster(properties={"log.segment.bytes": "none"})
    with pytest.raises(BrokerDied, match=r"Kafka broker 1 ended by itself \(exit code 1\)") as died:
        cluster.start()
    assert "log.segment.bytes" in died.value.log_tail
    assert cluster.data is None


def test_should_refuse_a_path_that_kafka_would_cut(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="comma"):
        KafkaCluster(data=tmp_path / "a,b").start()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_should_end_cleanly_by_signal(by: signal.Signals, tmp_path: Path) -> None:
    with KafkaRun("--port", "0", temporary=tmp_path) as run:
        assert {"event", "bootstrap", "data", "pids", "took_s"} == run.ready.keys()
        run.process.send_signal(by)
        assert run.process.communicate() == ("", "")
        assert run.process.returncode == 0
        assert run.jvms_end(0)
    assert list(tmp_path.glob("triage-kafka-*")) == []


def test_should_leave_no_broker_when_the_parent_is_killed(tmp_path: Path) -> None:
    with KafkaRun("--port", "0", temporary=tmp_path) as run:
        run.process.kill()
        assert run.jvms_end(10)


def test_should_end_with_a_sentence_when_the_broker_dies(tmp_path: Path) -> None:
    with KafkaRun("--port", "0", temporary=tmp_path) as run:
        signal.pidfd_send_signal(run.jvms[0], signal.SIGKILL)
        _, said = run.process.communicate()
        assert run.process.returncode == 1
    assert "triage kafka run: Kafka broker 1 ended by itself (exit code -9)" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_should_say_that_a_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "cli.kafka", "run", "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    expected = f"triage kafka run: Port {port} on 127.0.0.1 is taken: stop what listens there, or choose another port"
    assert ended.stderr.startswith(expected)
    assert len(ended.stderr.splitlines()) == 1


def test_should_refuse_two_brokers() -> None:
    command = [sys.executable, "-m", "cli.kafka", "run", "--brokers", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "must be 1 or 3" in ended.stderr
