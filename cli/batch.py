"""`triage batch`: an OpenAI batch file in, another out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import FAILED, SettingsError
from cli.tasks import Config, Gateway, duration_ms, kafka_of, lane_of
from schemas.topics import Lane

if TYPE_CHECKING:
    from cli.batches.lines import BadLine, Line
    from cli.batches.output import Output


def batch(
    source: Annotated[
        Path, typer.Argument(metavar="IN.jsonl", help="OpenAI batch lines: custom_id, method, url, body.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.jsonl", help="Where the answers go, as they come.")
    ],
    priority: Annotated[str, typer.Option(metavar="|".join(Lane), help="The lane.")] = Lane.LOW.value,
    deadline: Annotated[
        str | None, typer.Option(metavar="24h", help="For each answer, from when it is sent; absent: 71h.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Another name asks all of it anew; absent: the path of IN.jsonl.")
    ] = None,
    gateway: Gateway = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: total, completed, failed, bad_lines, output.")
    ] = False,
    config: Config = None,
) -> None:
    """Ask every line of a batch file, with what the budget for batches leaves, and write the answers by custom_id.

    After Ctrl-C the same command goes on: what is in the output file, or has an outcome, is not asked again. Lines that are no requests
    are named on stderr and left out. Exit code 0 when every line completed, 1 when one did not or is no request.
    """
    from cli.batches.lines import read
    from cli.batches.output import Output as File

    lane, due_ms = lane_of(priority), duration_ms(deadline)
    try:
        with source.open("rb") as file:
            lines, bad = read(file, run or str(source.resolve()))
    except OSError as error:
        raise SettingsError(f"{source} cannot be read: {error.strerror}.") from None
    with File(output) as answers:
        left = answers.left(lines)
        if left:
            bad = bad + _ask(left, answers, lane, due_ms, gateway, config, len(lines))
        ours = [answers.done[line.custom_id] for line in lines if line.custom_id in answers.done]
    _tell(source, output, ours, sorted(bad, key=lambda each: each.number), as_json=as_json)
    if bad or not all(ours):
        raise typer.Exit(FAILED)


def _ask(
    left: dict[str, Line],
    answers: Output,
    lane: Lane,
    due_ms: int | None,
    url: str | None,
    config: Path | None,
    total: int,
) -> list[BadLine]:
    from cli.batches.progress import Progress

    with Progress(total) as progress:

        def show() -> None:
            progress.show(total - len(left) + answers.written_count, failed=answers.failed_count)

        show()
        try:
            return asyncio.run(_run(left, answers, lane, due_ms, url, config, show))
        except KeyboardInterrupt:
            print("triage: the same command goes on where this one stopped", file=sys.stderr)
            raise


async def _run(
    left: dict[str, Line],
    answers: Output,
    lane: Lane,
    due_ms: int | None,
    url: str | None,
    config: Path | None,
    show: Callable[[], None],
) -> list[BadLine]:
    from cli.batches import direct, remote

    try:
        if url is not None:
            return await remote.run(url.rstrip("/"), lane, left, answers, due_ms, show)
        await direct.run(kafka_of(config), lane, left, answers, due_ms, show)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return []


def _tell(source: Path, output: Path, ours: list[bool], bad: list[BadLine], *, as_json: bool) -> None:
    import orjson

    for each in bad:
        print(f"triage: {source}:{each.number}: {each.why}", file=sys.stderr)
    completed, failed = ours.count(True), ours.count(False)
    if as_json:
        counts = {"total": len(ours) + len(bad), "completed": completed, "failed": failed, "bad_lines": len(bad)}
        typer.echo(orjson.dumps({**counts, "output": str(output)}))
        return
    told = [f"{completed} completed", *([f"{failed} failed"] if failed else [])]
    if bad:
        told.append(f"{len(bad)} {'line is' if len(bad) == 1 else 'lines are'} bad")
    typer.echo(f"{', '.join(told)}: {output}")
