"""Shows people that something is fetched: a bar on a terminal, one line elsewhere."""

from __future__ import annotations

import sys

from cli.embedded.errors import DevExtraMissing
from cli.embedded.jars import KAFKA_VERSION
from cli.embedded.jvm import Jvm, ensure_jvm


def ensure_jvm_shown() -> Jvm:
    """Return the Java runtime with Kafka's jars; what must be fetched is shown on stderr, otherwise nothing.

    Raises: EmbeddedError, as `ensure_jvm`.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError as error:
        raise DevExtraMissing("rich") from error
    if not sys.stderr.isatty():
        return ensure_jvm(report=_print_once)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(_what(), total=None, visible=False)
        return ensure_jvm(report=lambda done, total: bar.update(row, completed=done, total=total, visible=True))


def _print_once(done: int, total: int) -> None:
    if done == 0:
        print(f"{_what()}: {total} files, once on this machine", file=sys.stderr, flush=True)


def _what() -> str:
    return f"Fetching Apache Kafka {KAFKA_VERSION}"
