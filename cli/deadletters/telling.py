"""What the verbs say: a line for each dead letter, or one object for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import typer

from cli.deadletters.letters import Letter, Plan, Prefix, counted, shown
from cli.deadletters.reading import Found
from cli.deadletters.replaying import Replays
from cli.deadletters.showing import place, printable, with_reasons
from cli.errors import FAILED, INTERRUPTED, Failed
from streams.replay import DeadLetter


class Told:
    """Tells of each dead letter what a replay did with it: for people at once, for machines in one object at the end."""

    def __init__(self, found: Found, plan: Plan, *, as_json: bool, dry_run: bool, by_name: bool) -> None:
        self._found, self._plan, self._as_json, self._dry_run = found, plan, as_json, dry_run
        if not as_json:
            for letter in plan.done if by_name else ():
                self._line(letter, f"already replayed: {self._replay_of(letter)} as {letter.replay_id}")
            for letter, why in plan.skipped:
                self._line(letter, f"left alone: {why}")

    def one(self, letter: Letter, refused: str | None) -> None:
        if not self._as_json:
            self._line(letter, f"refused: {refused}" if refused else f"-> {letter.replay_id}")

    def all(self, done: Replays | None) -> int:
        """Tell what came of it and return the exit code."""
        replayed, refused = (done.replayed, done.refused) if done else ([], [])
        is_interrupted = done is not None and done.is_interrupted
        if self._as_json:
            self._object(replayed, refused, is_interrupted)
        else:
            would = "would be " if self._dry_run else ""
            counts = f"{len(replayed)} {would}replayed, {len(self._plan.done)} already replayed"
            rest = f"{len(self._plan.skipped)} left alone, {len(refused)} {would}refused"
            left = len(self._plan.go) - len(replayed) - len(refused)
            typer.echo(f"{counts}, {rest}" + (f"; interrupted with {left} left" if is_interrupted else ""))
        if is_interrupted:
            return INTERRUPTED
        return FAILED if refused else 0

    def _object(self, replayed: list[Letter], refused: list[tuple[Letter, str]], is_interrupted: bool) -> None:
        def rows(letters: list[Letter]) -> list[dict[str, Any]]:
            return [
                {**place(each), "replay": {"task_id": each.replay_id, "status": self._replay_of(each)}}
                for each in letters
            ]

        told = {
            "dry_run": self._dry_run,
            "replayed": rows(replayed),
            "already": rows(self._plan.done),
            "skipped": with_reasons(self._plan.skipped),
            "refused": with_reasons(refused),
            "interrupted": is_interrupted,
        }
        typer.echo(orjson.dumps(told))

    def _replay_of(self, letter: Letter) -> str | None:
        return self._found.standings[letter.place].replay

    def _line(self, letter: Letter, told: str) -> None:
        typer.echo(f"{shown(letter.place)}  {printable(letter.task_id or '-')}  {told}")


def tell_purge(plan: Prefix, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        before = {str(partition): offset for partition, offset in plan.before.items()}
        rows = [place(each) for each in plan.letters]
        typer.echo(
            orjson.dumps({"dry_run": dry_run, "purged": rows, "before": before, "kept": with_reasons(plan.kept)})
        )
        return
    would = "would be " if dry_run else ""
    for letter, why in plan.kept:
        typer.echo(f"{shown(letter.place)}  {printable(letter.task_id or '-')}  stays: {why}")
    for partition, offset in sorted(plan.before.items()):
        typer.echo(f"partition {partition}: all before offset {offset} {would}removed")
    typer.echo(f"{counted(len(plan.letters))} {would}removed, {len(plan.kept)} cannot be")


def print_payload(which: str, records: Sequence[DeadLetter]) -> None:
    if len(records) > 1:
        places = ", ".join(f"{each.partition}/{each.offset}" for each in records)
        raise typer.BadParameter(
            f"{which} has {len(records)} dead letters: {places}; name one.", param_hint="--payload"
        )
    for record in records:
        if record.request_bytes > record.kept_bytes:
            raise Failed(f"The request of {record.request_bytes} bytes was too large to be kept.")
        typer.echo(record.value or b"", nl=False)
