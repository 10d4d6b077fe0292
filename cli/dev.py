"""`triage dev` and `triage demo`: all of it on this machine."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import INTERRUPTED, SettingsError

if TYPE_CHECKING:
    from cli.embedded.stack import DevStack

_WATCH_S = 0.2


class _Stopped(BaseException):
    """A signal came before the stack was ready."""


def dev(
    port: Annotated[int, typer.Option(help="The gateway's port; there is no gateway yet.")] = 8400,
    kafka_port: Annotated[int, typer.Option(help="Kafka's port; 0 takes any free one.")] = 9092,
    data: Annotated[Path | None, typer.Option(help="Folder to keep; default a throw-away one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    backend_url: Annotated[list[str] | None, typer.Option(help="Own model server; may be repeated.")] = None,
    backend_kind: Annotated[list[str] | None, typer.Option(help="openai, llamacpp or vllm, in the same order.")] = None,
    gpus: Annotated[str | None, typer.Option(help="nvml, simulated:K or none; default nvml where a driver is.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One ready line for machines.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="Settings file whose lanes, models and so on are taken over.")
    ] = None,
) -> None:
    """Run Kafka, a worker, a GPU publisher and a small real language model until Ctrl-C."""
    from cli.embedded.fetching import ensure_jvm_shown  # noqa: F401 - says that the extra `dev` is missing before anything starts
    from cli.embedded.stack import DevStack, Options

    backends = _pairs(backend_url or [], backend_kind or [])
    options = Options(kafka_port, data, workers, backends, gpus, config)
    said = _to_stderr if as_json else typer.echo
    stack = DevStack(options, said=said)

    def ready(record: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(record))
        else:
            _welcome(stack, record)

    run(stack, ready)


def run(stack: DevStack, ready: Callable[[dict[str, Any]], None], until: Callable[[], bool] = lambda: False) -> bool:
    """Run a stack until a signal or until `until` says so; return whether a signal ended it. A second signal ends all at once."""
    stop, is_starting = threading.Event(), True

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            stack.kill()
            os._exit(INTERRUPTED)
        stop.set()
        if is_starting:
            raise _Stopped

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        record = stack.start()
        is_starting = False
        ready(record)
        while not stop.wait(_WATCH_S) and not until():
            stack.watch()
    except _Stopped:
        pass
    finally:
        is_starting = False
        stack.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    return stop.is_set()


def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long requests are produced.")] = 30,
) -> None:
    """Half a minute of the real thing: mixed requests over the four lanes, answered by a real small model, and a recap."""
    from cli.demo import run_demo

    raise typer.Exit(run_demo(seconds))


def _pairs(urls: list[str], kinds: list[str]) -> list[tuple[str, str]]:
    if len(kinds) > len(urls):
        raise SettingsError("More --backend-kind than --backend-url: each kind belongs to a url, in the same order.")
    known = ("openai", "llamacpp", "vllm")
    wrong = [kind for kind in kinds if kind not in known]
    if wrong:
        raise SettingsError(f"--backend-kind {wrong[0]} is not one of {', '.join(known)}.")
    return [(kinds[number] if number < len(kinds) else "openai", url) for number, url in enumerate(urls)]


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)


def _welcome(stack: DevStack, record: dict[str, Any]) -> None:
    config = f"--config {stack.config}"
    model = f"{stack.model.note} Any model name is accepted, and it answers." if stack.model else "your own servers"
    typer.echo(
        f"""
Triage is ready after {record["took_s"]} s. Ctrl-C ends all of it.

  Kafka     {record["kafka"]}
  models    {", ".join(map(str, record["backends"]))}: {model}
  GPUs      {stack.gpus}
  settings  {stack.config}
  logs      {stack.folder / "logs"}

Ask it something from another terminal:

  triage submit {config} --priority high --wait "What is the capital of France?"
  triage watch {config}
"""
    )
