"""`triage kafka`: the embedded Apache Kafka on its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.embedded.errors import BrokerDied, EmbeddedError, NotReady
from cli.embedded.processes import ends_on_signals
from wire.clock import monotonic_s

if TYPE_CHECKING:
    from cli.embedded.kafka import KafkaCluster

app = typer.Typer(name="kafka", no_args_is_help=True, help="An Apache Kafka on this machine, without Java or Docker.")

_DEFAULT_PORT = 9092


@app.callback()
def _group() -> None:
    """An Apache Kafka on this machine, without Java or Docker."""


@app.command()
def run(
    port: Annotated[int, typer.Option(help="The first broker's port; 0 takes free ones.", min=0, max=65535)] = (
        _DEFAULT_PORT
    ),
    brokers: Annotated[int, typer.Option(help="1, or 3 that replicate.", metavar="1|3")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="Keep the log in this folder; without it, it is thrown away.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Run a real Apache Kafka in the foreground until Ctrl-C.

    The first run fetches it (45 MB) into ~/.cache/triage; later ones need no network.

    Example: triage kafka run --port 9092 --data ./kafka-data
    """
    if brokers not in (1, 3):
        raise typer.BadParameter("must be 1 or 3", param_hint="--brokers")
    try:
        _run(port, brokers, data, as_json=as_json)
    except EmbeddedError as error:
        if isinstance(error, BrokerDied | NotReady):
            print(error.log_tail, file=sys.stderr)
        print(f"triage kafka run: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _run(port: int, brokers: int, data: Path | None, *, as_json: bool) -> None:
    from cli.embedded.fetching import ensure_jvm_shown
    from cli.embedded.kafka import KafkaCluster

    with ends_on_signals():
        began_s = monotonic_s()
        jvm = ensure_jvm_shown()
        cluster = KafkaCluster(brokers=brokers, port=port, data=data, jvm=jvm)
        try:
            cluster.start()
            _announce(cluster, monotonic_s() - began_s, as_json=as_json, kept=data is not None)
            cluster.wait_died()
        finally:
            cluster.stop()


def _announce(cluster: KafkaCluster, took_s: float, *, as_json: bool, kept: bool) -> None:
    if as_json:
        ready = {"event": "ready", "bootstrap": cluster.bootstrap, "data": str(cluster.data), "pids": cluster.pids}
        print(json.dumps({**ready, "took_s": round(took_s, 2)}), flush=True)
        return
    where = f"data in {cluster.data}" if kept else "data thrown away at the end"
    print(f"Kafka is ready at {cluster.bootstrap} ({took_s:.1f} s; {where}). Ctrl-C stops it.", flush=True)


if __name__ == "__main__":
    app()
