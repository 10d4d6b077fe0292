"""`triage dev` and `triage demo`: all of it on this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cli.errors import INTERRUPTED, SettingsError

if TYPE_CHECKING:
    from cli.embedded.stack import DevStack

_WATCH_S = 0.2
_KINDS = ("openai", "llamacpp", "vllm")

Config: TypeAlias = Annotated[
    Path | None, typer.Option(help="Settings file whose lanes, models and so on are taken over.")
]


class _Stopped(BaseException):
    """A signal came before the stack was ready."""


def dev(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The gateway's port; 0 takes any free one.")] = 8400,
    kafka_port: Annotated[int, typer.Option(min=0, max=65535, help="Kafka's port; 0 takes any free one.")] = 9092,
    data: Annotated[Path | None, typer.Option(help="Folder to keep; default a throw-away one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    backend_url: Annotated[list[str] | None, typer.Option(help="Own model server; may be repeated.")] = None,
    backend_kind: Annotated[list[str] | None, typer.Option(help="openai, llamacpp or vllm, in the same order.")] = None,
    gpus: Annotated[str | None, typer.Option(help="nvml, simulated:K or none; default nvml where a driver is.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One ready line for machines.")] = False,
    config: Config = None,
) -> None:
    """Run Kafka, a gateway, a worker, a GPU publisher and a small real language model until Ctrl-C."""
    from cli.embedded.stack import DevStack, Options

    backends = _pairs(backend_url or [], backend_kind or [])
    options = Options(port, kafka_port, data, workers, backends, gpus, config)
    stack = DevStack(options, said=to_stderr if as_json else typer.echo)

    def ready(record: dict[str, Any]) -> None:
        typer.echo(json.dumps(record) if as_json else _welcome(stack, record))

    run(stack, ready)


def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long requests are produced.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Only the recap, as one JSON object.")] = False,
    config: Config = None,
) -> None:
    """Half a minute of the real thing: mixed requests over the four lanes, answered by a real small model, and a recap."""
    from cli.demo import run_demo

    raise typer.Exit(run_demo(seconds, as_json=as_json, config=config))


def run(
    stack: DevStack,
    ready: Callable[[dict[str, Any]], None],
    *,
    until: Callable[[], bool] = lambda: False,
    before_end: Callable[[], None] = lambda: None,
) -> bool:
    """Run a stack until a signal or until `until` says so; return whether a signal ended it.

    `before_end` ends what uses the stack. A second signal ends everything at once.
    """
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
        before_end()
    except _Stopped:
        pass
    finally:
        is_starting = False
        stack.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    return stop.is_set()


def _pairs(urls: list[str], kinds: list[str]) -> list[tuple[str, str]]:
    if len(kinds) > len(urls):
        raise SettingsError("More --backend-kind than --backend-url: each kind belongs to a url, in the same order.")
    wrong = [kind for kind in kinds if kind not in _KINDS]
    if wrong:
        raise SettingsError(f"--backend-kind {wrong[0]} is not one of {', '.join(_KINDS)}.")
    return [(kinds[number] if number < len(kinds) else "openai", url) for number, url in enumerate(urls)]


def to_stderr(line: str) -> None:
    typer.echo(line, err=True)


def _welcome(stack: DevStack, record: dict[str, Any]) -> str:
    command, config = _this_command(), f"--config {shlex.quote(str(stack.config))}"
    rows = [("Gateway", record["gateway"]), ("Kafka", record["kafka"]), *(("Model", url) for url in record["backends"])]
    if stack.model is not None:
        rows += [("", stack.model.note), ("", "A request may name any model; this one answers.")]
    rows += [("GPUs", stack.given.gpus), *(("Metrics", url) for url in stack.metrics)]
    rows += [("Settings", stack.config), ("Logs", stack.logs)]
    return "\n".join(
        [
            f"\nTriage is ready after {record['took_s']:.1f} s. Ctrl-C ends all of it.\n",
            *(f"  {name:10}{value}" for name, value in rows),
            "\nAsk it something from another terminal:\n",
            f"  {command} submit {config} \\",
            '    --priority high --wait "What is the capital of France?"',
            f"  {command} watch {config}\n",
            "or over HTTP:\n",
            f"  curl -s {record['gateway']}/v1/async/submit -H 'content-type: application/json' \\",
            """    -d '{"priority": "high", "messages": [{"role": "user", "content": "Name three fruits."}]}'\n""",
        ]
    )


def _this_command() -> str:
    """Return how this program was called, so that what is shown can be copied."""
    name = sys.argv[0]
    return shlex.quote(name) if Path(name).name == "triage" else f"{shlex.quote(sys.executable)} -m cli"
