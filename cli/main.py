"""The `triage` command: a table of verbs, each imported when it is used, so that `triage --help` stays quick."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import cli
from cli.errors import FAILED, INTERRUPTED, CommandError, Failed, explain

_OWN_PACKAGES = ("agents", "gateway", "schemas", "streams", "wire")


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb lives (`module:function`, or a Typer app for a group of verbs) and how it is presented."""

    target: str
    help: str
    example: str


VERBS: dict[str, Verb] = {
    "dev": Verb("cli.dev:dev", "Run all of it on this machine, with an embedded Apache Kafka.", "triage dev --port 0"),
    "demo": Verb("cli.dev:demo", "Watch it work for half a minute.", "triage demo --seconds 30"),
    "worker": Verb("cli.worker:worker", "Take requests and have them served.", "triage worker --config triage.toml"),
    "gateway": Verb("cli.gateway:gateway", "Answer over HTTP.", "triage gateway --config triage.toml"),
    "gpu-publisher": Verb("cli.publisher:gpu_publisher", "Publish GPU readings.", "triage gpu-publisher --once --json"),
    "kafka": Verb("cli.kafka:app", "Run an embedded Apache Kafka.", "triage kafka run --port 9092"),
    "topics": Verb("cli.topics:app", "Compare the topics with the catalogue, or make them so.", "triage topics verify"),
    "submit": Verb("cli.tasks:submit", "Send a request.", "triage submit --priority high --wait 'Is this urgent?'"),
    "result": Verb("cli.tasks:result", "Show a task's answer.", "triage result ward7-018f"),
    "status": Verb("cli.tasks:status", "Say where a task stands.", "triage status ward7-018f"),
    "explain": Verb("cli.tasks:explain", "Say what holds a task, or how it ended.", "triage explain ward7-018f"),
    "cancel": Verb("cli.tasks:cancel", "End a task that nobody needs any more.", "triage cancel ward7-018f"),
    "watch": Verb("cli.tasks:watch", "Print results as they arrive.", "triage watch --json"),
    "batch": Verb("cli.batch:batch", "Ask a file of requests.", "triage batch questions.jsonl -o answers.jsonl"),
    "dlq": Verb("cli.dlq:app", "List, show, replay or purge dead letters.", "triage dlq list --newer-than 1h"),
    "health": Verb("cli.health:health", "Say how each part is.", "triage health --json"),
    "doctor": Verb("cli.doctor:doctor", "Check all of it, and say how to mend what is wrong.", "triage doctor --json"),
    "top": Verb("cli.top:top", "Watch a cluster live.", "triage top --once"),
    "bench": Verb(
        "cli.bench:app", "Load against a running system, or in virtual time.", "triage bench --simulate overload"
    ),
    "config": Verb("cli.config:app", "Show the settings and where each comes from.", "triage config show"),
    "version": Verb("cli.version:version", "Print versions.", "triage version --json"),
}


class _Verbs(TyperGroup):
    """A group that imports a verb's module when the verb is used, and takes its help line from the table until then."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        verb = VERBS.get(cmd_name)
        if verb is not None:
            return load(cmd_name, verb)
        close = get_close_matches(cmd_name, VERBS, n=1)
        if close and not ctx.resilient_parsing:
            ctx.fail(f"No such command {cmd_name!r}. Did you mean {close[0]!r}?")
        return None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


def load(name: str, verb: Verb) -> Any:
    """Return the command object of `verb`, whose module is imported."""
    module, _, attribute = verb.target.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        app = found
        app.rich_markup_mode, app._add_completion = None, False
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(found)
    command = get_command(app)
    command.name = name
    command.epilog = command.epilog or f"Example: {verb.example}"
    return command


_app = typer.Typer(cls=_Verbs, add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@_app.callback(epilog="`triage VERB --help` explains a verb. Settings: triage.toml, TRIAGE_* variables, flags.")
def _triage() -> None:
    """Triage: an event-driven, priority-aware, GPU-aware inference queue on Kafka."""


def run() -> None:
    """Run the command line of this process and end the process."""
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone: nothing to say, and nothing to print at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or FAILED
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. What goes wrong is one sentence on stderr.

    With TRIAGE_DEBUG=1 a traceback comes before it.
    """
    try:
        refuse_foreign_packages()
        get_command(_app).main(list(arguments), prog_name="triage")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED if end.code else 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place that can turn it into a sentence
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    code, sentence = explain(error)
    if os.environ.get("TRIAGE_DEBUG") == "1":
        traceback.print_exception(error)
    if code != INTERRUPTED:
        print(f"triage: {sentence}", file=sys.stderr)
    return code


def refuse_foreign_packages() -> None:
    """Stop when Python would import somebody else's package under the name of one of ours.

    Raises: CommandError.
    """
    home = Path(cli.__file__).resolve().parent.parent
    for name in _OWN_PACKAGES:
        spec = find_spec(name)
        where = Path(spec.origin).resolve() if spec and spec.origin else None
        if where is None or where.parent.parent != home:
            raise Failed(
                f"Python finds the package {name!r} at {where or 'no place'}, not beside Triage's own in {home}: "
                "install triage-kafka into an environment of its own (pipx, uv tool, a container)."
            )


__all__ = ["VERBS", "CommandError", "main", "run"]
