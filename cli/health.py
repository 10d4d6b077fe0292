"""`triage health`: one line per part."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import FAILED, NOT_REACHABLE, OK, explain

_TOPICS_S = 4.0


def health(
    gateway: Annotated[
        str | None, typer.Option(metavar="URL", help="As this gateway sees it; absent: as Kafka shows it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")] = None,
) -> None:
    """Say how each part is, a line each. Exit code 0 healthy, 1 not, 3 not reachable."""
    import orjson

    from cli.parts import lines

    try:
        body = _through_kafka(config) if gateway is None else _through_gateway(gateway)
    except Exception as error:
        code, sentence = explain(error)
        if as_json and code == NOT_REACHABLE:
            typer.echo(orjson.dumps({"status": "unhealthy", "reasons": [sentence]}))
        raise
    typer.echo(orjson.dumps(body) if as_json else "\n".join(lines(body)))
    raise typer.Exit(OK if body.get("status") == "healthy" else FAILED)


def _through_gateway(url: str) -> dict[str, Any]:
    from cli.remote import Gateway

    remote = Gateway(url)
    return {**remote.health(), "gateway": remote.url}


def _through_kafka(config: Path | None) -> dict[str, Any]:
    from cli.checks.topics import as_on_this_machine
    from cli.configuration import load, unsafe
    from cli.heard import look
    from cli.parts import picture
    from wire.logs import configure

    loaded = load(config)
    settings = loaded.settings
    configure("console", "error")
    kafka = asyncio.run(as_on_this_machine(loaded, _TOPICS_S))
    seen = asyncio.run(look(kafka))
    risks = unsafe(settings) if settings.allow_insecure_dev else None
    return picture(seen, bootstrap=kafka.bootstrap, stale_after_s=settings.gpus.stale_after_s, insecure=risks)
