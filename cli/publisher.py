"""`triage gpu-publisher`: GPU readings onto Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import Failed, SettingsError

if TYPE_CHECKING:
    import asyncio

    from aiokafka import AIOKafkaProducer

    from streams.settings import KafkaSettings, Settings

DEFAULT_METRICS_PORT = 8402


def gpu_publisher(
    once: Annotated[bool, typer.Option("--once", help="Print one sample per GPU and end; needs no broker.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: a sample a line, or a ready line.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")] = None,
) -> None:
    """Publish a sample per GPU and period; ends cleanly on SIGTERM."""
    _load_structlog_alone()
    from cli.configuration import load
    from cli.gpu_publisher import once as print_once
    from wire import logs

    if once:
        raise typer.Exit(print_once(load(config, refuse_unsafe=False).settings.gpus, as_json))
    settings = load(config).settings
    logs.configure(settings.logging.format, settings.logging.level)
    _serve(settings, as_json=as_json)


def _load_structlog_alone() -> None:
    """Load structlog as where rich is not installed: it loads rich for tracebacks that no line of ours shows, 4 MB of 55."""
    import sys

    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


def _serve(settings: Settings, *, as_json: bool) -> None:
    import json
    import os

    import uvloop
    from prometheus_client import CollectorRegistry, start_http_server

    from agents.gpu_metrics import GpuSeries
    from agents.gpu_publisher import publish, sender
    from agents.gpu_sources import UnknownSource, reader
    from agents.gpu_sources.bounded import Bounded
    from cli.stopping import stop_on_signals

    port = DEFAULT_METRICS_PORT if settings.metrics.port is None else settings.metrics.port
    registry = CollectorRegistry()
    series = GpuSeries(registry)
    try:
        source = reader(settings.gpus.source, settings.gpus)
    except UnknownSource as error:
        raise SettingsError(str(error)) from error
    try:
        server, _ = start_http_server(port, settings.metrics.host, registry)
    except OSError as error:
        where = f"{settings.metrics.host}:{port}"
        raise Failed(f"Metrics cannot be served at {where} ({error.strerror}): set metrics.port, 0 for any.") from error

    async def main() -> None:
        stop = stop_on_signals()
        producer = await _started_producer(settings.kafka, stop)
        if producer is None:
            return
        try:
            line = {"event": "ready", "metrics_port": server.server_port, "pid": os.getpid()}
            typer.echo(json.dumps(line) if as_json else f"publishing GPU samples from {settings.gpus.source}")
            send = sender(producer, settings.kafka.names.gpu_metrics)
            await publish(source, send, stop=stop, period_s=settings.gpus.period_s, series=series)
        finally:
            await producer.stop()

    try:
        uvloop.run(main())
    finally:
        Bounded(source).close()
        server.shutdown()
        server.server_close()


async def _started_producer(kafka: KafkaSettings, stop: asyncio.Event) -> AIOKafkaProducer | None:
    """Return a producer that has found a broker, None when `stop` was set before there was one."""
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import KafkaConnectionError

    from wire.connection import producer_options, wait_for_brokers
    from wire.logs import get_logger

    # Not idempotent: a lost sample is worth nothing, and must not block its partition for ever.
    options = producer_options(kafka, client_id="triage-gpu-publisher") | {"enable_idempotence": False}
    log = get_logger(__name__)
    while not stop.is_set():
        await wait_for_brokers(kafka, log=log, stop=stop)
        if stop.is_set():
            break
        producer = AIOKafkaProducer(**options)
        try:
            await producer.start()
        except KafkaConnectionError:  # it went away again
            await producer.stop()
        else:
            return producer
    return None
