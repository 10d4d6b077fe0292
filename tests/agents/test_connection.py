"""The options of every Kafka client, and waiting for brokers."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from schemas.topics import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES
from streams.settings import KafkaSettings
from wire.connection import (
    BrokersUnreachable,
    CredentialsUnusable,
    broker_urls,
    client_options,
    consumer_options,
    faust_credentials,
    producer_options,
    wait_for_brokers,
)

NOBODY = KafkaSettings(bootstrap="127.0.0.1:1")


@dataclass
class Told:
    """A log that keeps what it is told."""

    events: list[str] = field(default_factory=list)
    warned: asyncio.Event = field(default_factory=asyncio.Event)

    def info(self, event: str, **fields: Any) -> None:
        self.events.append(event)

    def warning(self, event: str, **fields: Any) -> None:
        self.events.append(event)
        self.warned.set()


def secured(tmp_path: Path, **changed: object) -> KafkaSettings:
    (tmp_path / "password").write_text("hunter2\n")
    given = {"security": "SASL_SSL", "username": "triage", "password_file": tmp_path / "password", **changed}
    return KafkaSettings.model_validate(given)


def test_several_brokers_may_be_named() -> None:
    kafka = KafkaSettings(bootstrap="a:1, b:2,")
    assert client_options(kafka, client_id="x")["bootstrap_servers"] == ["a:1", "b:2"]
    assert broker_urls(kafka) == ["aiokafka://a:1", "aiokafka://b:2"]


async def test_the_clients_take_their_options() -> None:
    AIOKafkaAdminClient(**client_options(NOBODY, client_id="x"))
    producer = AIOKafkaProducer(**producer_options(NOBODY, client_id="x"))
    reader = AIOKafkaConsumer(**consumer_options(NOBODY, client_id="x"))
    member = AIOKafkaConsumer(**consumer_options(NOBODY, client_id="x", group="g"))
    await asyncio.gather(producer.stop(), reader.stop(), member.stop())


@pytest.mark.parametrize("limit", [MAX_RECORD_BYTES, MAX_DEAD_LETTER_BYTES])
def test_no_batch_is_larger_than_its_topic_takes(limit: int) -> None:
    options = producer_options(NOBODY, client_id="x", max_record_bytes=limit)
    assert options["max_request_size"] == options["max_batch_size"] == limit - 200
    assert (options["acks"], options["enable_idempotence"]) == ("all", True)


def test_nothing_is_committed_by_itself_nor_read_uncommitted() -> None:
    options = consumer_options(NOBODY, client_id="x", group="g")
    assert tuple(options[name] for name in ("enable_auto_commit", "isolation_level", "auto_offset_reset")) == (
        False,
        "read_committed",
        "earliest",
    )
    assert options["request_timeout_ms"] > options["session_timeout_ms"] > 3 * options["heartbeat_interval_ms"]


def test_faust_and_aiokafka_are_secured_alike(tmp_path: Path) -> None:
    kafka = secured(tmp_path)
    options, credentials = client_options(kafka, client_id="x"), faust_credentials(kafka)
    assert isinstance(credentials, faust.SASLCredentials)
    assert (
        options["security_protocol"],
        options["sasl_mechanism"],
        options["sasl_plain_username"],
        options["sasl_plain_password"],
    ) == ("SASL_SSL", "SCRAM-SHA-512", "triage", "hunter2")
    assert (
        credentials.protocol.value,
        credentials.mechanism.value,
        credentials.username,
        credentials.password,
    ) == ("SASL_SSL", "SCRAM-SHA-512", "triage", "hunter2")
    for context in (options["ssl_context"], credentials.ssl_context):
        assert context is not None
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_tls_alone_and_nothing(tmp_path: Path) -> None:
    assert isinstance(faust_credentials(secured(tmp_path, security="SSL")), faust.SSLCredentials)
    assert faust_credentials(NOBODY) is None
    assert "ssl_context" not in client_options(NOBODY, client_id="x")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"username": None}, "kafka.username is missing"),
        ({"password_file": None}, "kafka.password_file is missing"),
        ({"password_file": Path("/nowhere")}, "kafka.password_file /nowhere cannot be read"),
        ({"ca_file": Path("/nowhere")}, "kafka.ca_file, cert_file or key_file cannot be used"),
        ({"key_file": Path("/nowhere")}, "kafka.cert_file is missing"),
    ],
)
def test_unusable_credentials_are_named(changed: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(CredentialsUnusable, match=told):
        client_options(secured(tmp_path, **changed), client_id="x")


async def test_waiting_ends_in_a_sentence_when_nobody_answers() -> None:
    told = Told()
    with pytest.raises(BrokersUnreachable, match=r"does not answer at 127.0.0.1:1 .*check that the brokers run"):
        await wait_for_brokers(NOBODY, log=told, timeout_s=0.6)
    assert len(told.events) == 1


async def test_waiting_for_ever_is_said_and_ends_when_told_to_stop() -> None:
    told, stop = Told(), asyncio.Event()
    waiting = asyncio.create_task(wait_for_brokers(NOBODY, log=told, stop=stop))
    async with asyncio.timeout(10):
        await told.warned.wait()
        stop.set()
        await waiting
    assert (told.events) == [
        "waiting for Kafka at 127.0.0.1:1: check that the brokers run and that kafka.bootstrap is right"
    ]
