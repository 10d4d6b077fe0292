"""`triage gpu-publisher`: GPU readings onto Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streams.settings import Settings

DEFAULT_METRICS_PORT = 8402


def gpu_publisher(
    once: Annotated[bool, typer.Option("--once", help="Print one sample per GPU and end; needs no broker.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: a sample a line, or a ready line.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")] = None,
) -> None:
    """Publish a sample per GPU and period; ends cleanly on SIGTERM."""
    from cli.configuration import load
    from cli.gpu_publisher import once as print_once
    from wire import logs

    if once:
        raise typer.Exit(print_once(load(config, refuse_unsafe=False).settings.gpus.source, as_json))
    settings = load(config).settings
    logs.configure(settings.logging.format, settings.logging.level)
    _serve(settings, as_json=as_json)


def _serve(settings: Settings, *, as_json: bool) -> None:
    import json
    import os

    import uvloop
    from aiokafka import AIOKafkaProducer
    from prometheus_client import CollectorRegistry, start_http_server

    from agents.gpu_metrics import GpuSeries
    from agents.gpu_publisher import publish, sender
    from agents.gpu_sources import reader
    from cli.stopping import stop_on_signals
    from wire.connection import producer_options, wait_for_brokers
    from wire.logs import get_logger

    async def main() -> None:
        stop = stop_on_signals()
        registry = CollectorRegistry()
        series = GpuSeries(registry)
        port = DEFAULT_METRICS_PORT if settings.metrics.port is None else settings.metrics.port
        server, _ = start_http_server(port, settings.metrics.host, registry)
        source = reader(settings.gpus.source)
        await wait_for_brokers(settings.kafka, log=get_logger(__name__), stop=stop)
        # Not idempotent: a lost sample is worth nothing, and must not block its partition for ever.
        options = producer_options(settings.kafka, client_id="triage-gpu-publisher") | {"enable_idempotence": False}
        async with AIOKafkaProducer(**options) as producer:
            line = {"event": "ready", "metrics_port": server.server_port, "pid": os.getpid()}
            typer.echo(json.dumps(line) if as_json else f"publishing GPU samples from {settings.gpus.source}")
            send = sender(producer, settings.kafka.names.gpu_metrics)
            await publish(source, send, stop=stop, period_s=settings.gpus.period_s, series=series)
        source.close()
        server.shutdown()
        server.server_close()

    uvloop.run(main())
