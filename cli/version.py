"""`triage version`."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Annotated

import typer

from cli.embedded.jars import KAFKA_VERSION
from schemas import __version__


def version(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Print the versions of Triage and of what it stands on."""
    found = versions()
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        typer.echo(f"{name:10} {value}")


def versions() -> dict[str, str]:
    """Return name -> version; of an optional part that is not installed, `not installed`."""
    return {
        "triage": _installed("triage-kafka", __version__),
        "python": platform.python_version(),
        "faust": _installed("faust-streaming"),
        "aiokafka": _installed("aiokafka"),
        "kafka": f"{KAFKA_VERSION} (embedded)",
    }


def _installed(distribution: str, otherwise: str = "not installed") -> str:
    try:
        return installed(distribution)
    except PackageNotFoundError:
        return otherwise
