"""`triage dlq`: requests that failed, kept with why; look at them, run them again, remove them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer

from cli.deadletters.asking import audited, confirm, filters_of, named, names_of, rate_of
from cli.deadletters.letters import counted, plan_purge, plan_replay
from schemas.topics import Lane

if TYPE_CHECKING:
    from cli.deadletters.reading import Found
    from cli.deadletters.replaying import Replays
    from streams.settings import KafkaSettings
    from wire.reading import LogReader

_T = TypeVar("_T")

app = typer.Typer(
    no_args_is_help=True,
    help="Look at requests that failed, run them again, or remove them. No text of theirs is shown.",
)

Config: TypeAlias = Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")]
Reason: TypeAlias = Annotated[str | None, typer.Option(metavar="TYPE", help="Only this error type.")]
Tenant: TypeAlias = Annotated[str | None, typer.Option(help="Only this tenant's, as far as results are kept: 7 days.")]
OfLane: TypeAlias = Annotated[str | None, typer.Option("--lane", metavar="|".join(Lane), help="Only this lane's.")]
Older: TypeAlias = Annotated[str | None, typer.Option(metavar="1h", help="Dead for longer: 30s, 10m, 1h, 2d.")]
Newer: TypeAlias = Annotated[str | None, typer.Option(metavar="1h", help="Dead for less long.")]
Limit: TypeAlias = Annotated[int | None, typer.Option(min=1, help="At most so many, the oldest.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command("list")
def list_(
    reason: Reason = None,
    tenant: Tenant = None,
    lane: OfLane = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: Limit = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: dead_letters, and how many there are.")
    ] = False,
    config: Config = None,
) -> None:
    """List dead letters, the oldest first: place, task, why, and beside it how the task ended and its replay.

    \b
    Example:
      triage dlq list --reason backend_timeout --newer-than 1h
    """
    import orjson

    from cli.deadletters.showing import body, table

    filters = filters_of(reason, tenant, lane, older_than, newer_than)
    found, now_ms = _run(_find, config)
    chosen = filters.chosen(found.letters, found.standings, now_ms=now_ms)[:limit]
    if as_json:
        rows = [body(each, found.standings[each.place], now_ms=now_ms) for each in chosen]
        typer.echo(orjson.dumps({"dead_letters": rows, "total": len(found.letters)}))
        return
    if not found.letters:
        typer.echo("no dead letters")
        return
    if chosen:
        typer.echo("\n".join(table(chosen, found.standings, now_ms=now_ms)))
    if len(chosen) < len(found.letters):
        print(f"triage: {len(chosen)} of {counted(len(found.letters))}", file=sys.stderr)


@app.command()
def show(
    which: Annotated[str, typer.Argument(metavar="PARTITION/OFFSET|TASK_ID", help="A place, or all of a task.")],
    payload: Annotated[
        bool, typer.Option("--payload", help="Print the request's own bytes, prompt and all, and nothing else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each, a line each.")] = False,
    config: Config = None,
) -> None:
    """Show a dead letter's headers, size and standing, and why it cannot be replayed if it cannot; not what it says.

    Exit code 4 when there is none.

    \b
    Example:
      triage dlq show 3/17
    """
    import orjson

    from cli.deadletters.showing import lines, whole
    from cli.deadletters.telling import print_payload

    names = names_of([which])

    async def look(reader: LogReader, kafka: KafkaSettings) -> Any:
        from cli.deadletters.reading import letters, read_again, standings

        found = {each.place: each for each in named(names, await letters(reader, kafka.names))}
        records = [record async for record in read_again(reader, kafka.names, found)]
        return found, records, await standings(reader, kafka, found.values())

    (found, records, standings), now_ms = _run(look, config)
    if payload:
        print_payload(which, records)
        return
    for record in records:
        letter = found[record.partition, record.offset]
        shown = (record, letter, standings[letter.place])
        typer.echo(orjson.dumps(whole(*shown, now_ms=now_ms)) if as_json else "\n".join(lines(*shown, now_ms=now_ms)))


@app.command()
def replay(
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="PARTITION/OFFSET|TASK_ID", help="These; without any, all that the filters leave."),
    ] = None,
    reason: Reason = None,
    tenant: Tenant = None,
    lane: OfLane = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: Limit = None,
    rate: Annotated[str, typer.Option(metavar="10/s", help="No faster: 10, 10/s, 600/m.")] = "50/s",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: replayed, already, skipped, refused.")
    ] = False,
    config: Config = None,
) -> None:
    """Run dead letters again, each as a new task; the old outcome stays. Doing it twice runs none twice.

    Ctrl-C stops it cleanly. Exit code 1 when one was refused, 4 when there is no such dead letter.

    \b
    Example:
      triage dlq replay --reason backend_unavailable --older-than 10m --rate 10/s --yes
    """
    from cli.deadletters.telling import Told

    filters, names, rate_per_s = (
        filters_of(reason, tenant, lane, older_than, newer_than),
        names_of(which or []),
        rate_of(rate),
    )
    if names and (filters != filters_of() or limit is not None):
        raise typer.BadParameter("name dead letters or filter them, not both.", param_hint="PARTITION/OFFSET|TASK_ID")
    found, now_ms = _run(_find, config)
    letters, standings, is_named = found.letters, found.standings, bool(names)
    chosen = named(names, letters) if names else filters.chosen(letters, standings, now_ms=now_ms)
    plan = plan_replay(chosen, letters, standings, now_ms=now_ms, by_name=is_named, limit=limit)
    if plan.go and not dry_run and not is_named:
        confirm(f"Replay {counted(len(plan.go))}?", yes)
    told = Told(found, plan, as_json=as_json, dry_run=dry_run, by_name=is_named)
    asked = {"named": " ".join(which)} if which else audited(filters, limit)

    async def act(reader: LogReader, kafka: KafkaSettings) -> Replays:
        from cli.deadletters import replaying

        if dry_run:
            return await replaying.rehearse(reader, kafka, plan.go, told.one)
        return await replaying.replay(reader, kafka, plan.go, filters=asked, rate_per_s=rate_per_s, tell=told.one)

    raise typer.Exit(told.all(_run(act, config)[0] if plan.go else None))


@app.command()
def purge(
    reason: Reason = None,
    tenant: Tenant = None,
    lane: OfLane = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: purged, before, kept.")] = False,
    config: Config = None,
) -> None:
    """Remove dead letters for good, in each partition from the oldest on up to the first that is not meant.

    Kafka can remove nothing in between; that stays until it is 14 days old, and is named.

    \b
    Example:
      triage dlq purge --older-than 7d --dry-run
    """
    from cli.deadletters.telling import tell_purge

    filters = filters_of(reason, tenant, lane, older_than, newer_than)
    found, now_ms = _run(_find, config)
    chosen = filters.chosen(found.letters, found.standings, now_ms=now_ms)[:limit]
    plan = plan_purge(chosen, found.letters, found.standings, now_ms=now_ms)
    if plan.letters and not dry_run:
        confirm(f"Remove {counted(len(plan.letters))} for good?", yes)

        async def act(reader: LogReader, kafka: KafkaSettings) -> None:
            from cli.deadletters.purging import purge as remove

            await remove(reader, kafka, plan, filters=audited(filters, limit))

        _run(act, config)
    tell_purge(plan, as_json=as_json, dry_run=dry_run)


# What is done


def _run(act: Callable[[LogReader, KafkaSettings], Coroutine[Any, Any, _T]], config: Path | None) -> tuple[_T, int]:
    """Return what `act` returns, and the time now, for ages."""
    from cli.configuration import load
    from wire.clock import wall_ms
    from wire.logs import configure
    from wire.reading import log_reader

    kafka = load(config).settings.kafka
    configure("console", "error")

    async def run() -> _T:
        async with log_reader(kafka, client_id="triage-dlq") as reader:
            return await act(reader, kafka)

    return asyncio.run(run()), wall_ms()


async def _find(reader: LogReader, kafka: KafkaSettings) -> Found:
    from cli.deadletters.reading import find

    return await find(reader, kafka)
