"""`triage topics` on a real broker."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cli.main import main
from schemas.topics import Lane, catalogue
from streams.catalogue import Action
from streams.settings import KafkaSettings
from wire.connection import BrokersUnreachable, client_options
from wire.topics import TopicsRefused, apply, verify

pytestmark = pytest.mark.kafka


@pytest.fixture
def settings(kafka: str) -> KafkaSettings:
    return KafkaSettings(bootstrap=kafka, prefix=f"t{uuid.uuid4().hex[:8]}", partitions=3, replication=1)


async def set_config(settings: KafkaSettings, topic: str, config: dict[str, str]) -> None:
    """Replace what is set on `topic`, and return when the broker shows it."""
    admin = AIOKafkaAdminClient(**client_options(settings, client_id="test"))
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])
    finally:
        await admin.close()
    async with asyncio.timeout(10):
        while await own_config(settings, topic) != config:  # noqa: ASYNC110 - Kafka tells nobody when a change is seen
            await asyncio.sleep(0.02)


async def own_config(settings: KafkaSettings, topic: str) -> dict[str, str]:
    """Return what is set on `topic` itself."""
    admin = AIOKafkaAdminClient(**client_options(settings, client_id="test"))
    await admin.start()
    try:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    [resource] = answer.to_object()["resources"]
    entries = resource["config_entries"]
    return {each["config_names"]: each["config_value"] for each in entries if each["config_source"] == 1}


async def test_creates_what_is_missing_once(settings: KafkaSettings) -> None:
    names = [topic.name for topic in catalogue(settings.names, partitions=3)]
    assert names == [each.topic for each in await verify(settings)]
    applied = await apply(settings)
    assert (names, []) == ([each.topic for each in applied.done], applied.left)
    assert await verify(settings) == []
    assert (await apply(settings)).done == []


async def test_several_may_apply_at_once(settings: KafkaSettings) -> None:
    for applied in await asyncio.gather(*(apply(settings) for _ in range(3))):
        assert applied.left == []


async def test_puts_a_changed_setting_right_and_keeps_what_others_set(settings: KafkaSettings) -> None:
    await apply(settings)
    topic = settings.names.requests(Lane.HIGH)
    wanted = await own_config(settings, topic)
    await set_config(settings, topic, {"segment.ms": "1000", "compression.type": "lz4"})
    found = await verify(settings)
    assert {topic} == {each.topic for each in found}
    assert {"message.timestamp.type", "max.message.bytes", "segment.ms", "retention.ms"} == {e.what for e in found}
    assert (await apply(settings)).left == []
    assert {**wanted, "compression.type": "lz4"} == await own_config(settings, topic)


async def test_never_changes_a_partition_count(settings: KafkaSettings) -> None:
    await apply(settings)
    applied = await apply(settings.model_copy(update={"partitions": 4}))
    assert applied.done == []
    assert {("partitions", "4", "3", Action.NONE)} == {(e.what, e.wanted, e.found, e.action) for e in applied.left}


async def test_says_when_there_are_fewer_brokers_than_copies(settings: KafkaSettings) -> None:
    with pytest.raises(TopicsRefused, match=r"fewer brokers than kafka.replication = 3"):
        await apply(settings.model_copy(update={"replication": 3}))


async def test_no_broker_is_an_exception_within_five_seconds() -> None:
    async with asyncio.timeout(5):
        with pytest.raises(BrokersUnreachable, match="check that the brokers run"):
            await verify(KafkaSettings(bootstrap="127.0.0.1:1"))


def test_verbs_and_their_exit_codes(
    settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def triage(*arguments: str, partitions: int = 3) -> tuple[int, str]:
        monkeypatch.setenv("TRIAGE_KAFKA__PARTITIONS", str(partitions))
        code = main(["topics", *arguments])
        return code, capsys.readouterr().out

    monkeypatch.setenv("ALLOW_INSECURE_DEV", "true")
    monkeypatch.setenv("TRIAGE_KAFKA__BOOTSTRAP", settings.bootstrap)
    monkeypatch.setenv("TRIAGE_KAFKA__PREFIX", settings.prefix)
    monkeypatch.setenv("TRIAGE_KAFKA__REPLICATION", "1")
    code, told = triage("verify")
    assert (code, told.count("is missing")) == (1, 17)
    code, told = triage("plan")
    assert (code, told.count("create ")) == (0, 17)
    assert triage("apply") == (0, "17 topics created, 0 settings changed\n")
    assert triage("verify") == (0, "17 topics match\n")
    assert triage("plan") == (0, "nothing to do: 17 topics match\n")
    code, told = triage("apply", "--json", partitions=4)
    assert (1, {"partitions"}) == (code, {each["what"] for each in json.loads(told)["differences"]})


def test_no_broker_is_exit_code_3_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIAGE_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    assert main(["topics", "verify", "--timeout", "0.5"]) == 3
    told = capsys.readouterr().err
    assert told.startswith("triage: Kafka does not answer at 127.0.0.1:1 (connection refused): check ")
    assert told.count("\n") == 1
