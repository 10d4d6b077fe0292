"""`triage top`: the live picture of a cluster, read from its topics."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cli.errors import Failed

if TYPE_CHECKING:
    from cli.picture.feed import Feed
    from streams.settings import Settings

Ending: TypeAlias = tuple[asyncio.Task[Any], ...]
"""Tasks of which one's end ends the verb: the following of the topics, and the wait for a signal."""

_EVERY_S = 1.0
_READ_S = 4.0
_HEADING_EVERY = 20
_WIDTH = 100


def top(
    once: Annotated[bool, typer.Option("--once", help="Print the picture once, as text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object every second; with --once just one.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")] = None,
) -> None:
    """Watch a cluster: lanes, batches, backends, workers and GPUs. It reads the topics and joins no group.

    On a terminal a live picture until q or Ctrl-C, else a line every second.
    """
    from cli.configuration import load
    from wire.logs import configure

    for module in ("rich", "textual"):
        if find_spec(module) is None:
            raise Failed(f"The picture needs the Python module {module}: run `pip install 'triage-kafka[dev]'`.")
    settings = load(config).settings
    configure("console", "error")
    try:
        asyncio.run(_top(settings, once=once, as_json=as_json))
    except BrokenPipeError:
        return  # the reader of our output has gone, and `cli.main.run` deals with what is left of it


async def _top(settings: Settings, *, once: bool, as_json: bool) -> None:
    from cli.picture.feed import open_feed
    from cli.stopping import stop_on_signals

    stop = stop_on_signals()
    async with open_feed(settings, client_id="triage-top") as feed:
        following = asyncio.create_task(feed.run())
        stopping = asyncio.create_task(stop.wait())
        ending = (following, stopping)
        try:
            if once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
                await _tell(feed, settings, ending, once=once, as_json=as_json)
            else:
                await _watch(feed, settings, ending)
        finally:
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
        if not following.cancelled() and (error := following.exception()) is not None:
            raise error.exceptions[0] if isinstance(error, ExceptionGroup) else error


async def _tell(feed: Feed, settings: Settings, ending: Ending, *, once: bool, as_json: bool) -> None:
    """Print a frame every second until something of `ending` ends; with `once` one."""
    reading = asyncio.create_task(feed.has_read())
    await asyncio.wait((reading, *ending), timeout=_READ_S, return_when=asyncio.FIRST_COMPLETED)
    if not reading.done():
        reading.cancel()
        if not _has_ended(ending):
            print("triage: not all of the last minute is read yet", file=sys.stderr)
    number = 0
    while not _has_ended(ending):
        typer.echo(_told(feed, settings, number, once=once, as_json=as_json))
        sys.stdout.flush()
        if once:
            return
        number += 1
        await asyncio.wait(ending, timeout=_EVERY_S, return_when=asyncio.FIRST_COMPLETED)


def _told(feed: Feed, settings: Settings, number: int, *, once: bool, as_json: bool) -> str | bytes:
    from cli.picture.lines import heading, page, summary

    if as_json:
        import orjson

        return orjson.dumps(feed.frame())
    if once:
        import shutil

        return page(feed.frame(), width=shutil.get_terminal_size((_WIDTH, 0)).columns, title=_title(settings))
    line = feed.problem or summary(feed.frame())
    return line if number % _HEADING_EVERY else f"{heading()}\n{line}"


async def _watch(feed: Feed, settings: Settings, ending: Ending) -> None:
    from cli.picture.screen import Source, show

    source = Source(
        title=lambda: _title(settings),
        frame=feed.frame,
        notes=feed.notes,
        tick=lambda: _has_ended(ending),
    )
    await show(source)


def _has_ended(ending: Ending) -> bool:
    return any(task.done() for task in ending)


def _title(settings: Settings) -> str:
    return f"triage top  {settings.kafka.bootstrap}  {settings.kafka.prefix}.*"
