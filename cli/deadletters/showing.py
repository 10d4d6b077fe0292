"""How dead letters look on a terminal and to machines. What a record says of itself may be anybody's, so it is made printable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cli.deadletters.letters import Letter, Standing, Standings, is_undecided, shown
from gateway.rendering import rfc3339
from schemas.result import Source
from streams.replay import DeadLetter, NotReplayable, replayed

_HEADING = ("PLACE", "TASK", "LANE", "TENANT", "ERROR", "ATTEMPTS", "AGE", "OUTCOME", "REPLAY")
_LONGEST = 300
_AGES_S = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def table(letters: Sequence[Letter], standings: Standings, *, now_ms: int) -> list[str]:
    """Return a heading and a line per dead letter; - where nothing is known or there is none."""
    rows = [_HEADING, *(_row(each, standings[each.place], now_ms) for each in letters)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADING))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def body(letter: Letter, standing: Standing, *, now_ms: int) -> dict[str, Any]:
    """Return a dead letter as JSON has it; `outcome` null: not written yet, or no longer kept."""
    partition, offset = letter.place
    return {
        "partition": partition,
        "offset": offset,
        "task_id": letter.task_id,
        "lane": letter.lane,
        "tenant": standing.tenant,
        "error": {"type": letter.reason, "detail": letter.detail},
        "attempts": letter.attempts,
        "dead_at": rfc3339(letter.at_ms),
        "age_s": round(max(now_ms - letter.at_ms, 0) / 1000, 3),
        "source": _source(letter.source),
        "bytes": letter.request_bytes,
        "outcome": standing.outcome,
        "outcome_pending": is_undecided(letter, standing, now_ms=now_ms),
        "replay": {"task_id": letter.replay_id, "status": standing.replay},
    }


def whole(record: DeadLetter, letter: Letter, standing: Standing, *, now_ms: int) -> dict[str, Any]:
    """Return a dead letter as JSON has it, with its key, its headers and whether it can be replayed, but not its bytes."""
    return {
        **body(letter, standing, now_ms=now_ms),
        "kept_bytes": record.kept_bytes,
        "not_replayable": obstacle(record),
        "key": None if record.key is None else _text(record.key),
        "headers": [[name, _text(value)] for name, value in record.headers],
    }


def lines(record: DeadLetter, letter: Letter, standing: Standing, *, now_ms: int) -> list[str]:
    """Return a dead letter as lines for people."""
    why_not = obstacle(record)
    rows = {
        "lane": letter.lane,
        "tenant": standing.tenant,
        "error": ": ".join(filter(None, (letter.reason, letter.detail))),
        "attempts": None if letter.attempts is None else str(letter.attempts),
        "dead since": f"{rfc3339(letter.at_ms)} ({_age(now_ms - letter.at_ms)})",
        "request": letter.source,
        "size": f"{letter.request_bytes} byte{'s' * (letter.request_bytes != 1)}{'' if record.kept_bytes else ', not kept'}",
        "key": None if record.key is None else _text(record.key),
        "outcome": _outcome(letter, standing, now_ms),
        "replay": _replay(letter, standing) or (f"not possible: {why_not}" if why_not else "none yet"),
    }
    told = [f"  {name:11} {printable(str(value))}" for name, value in rows.items() if value]
    heads = [f"    {printable(name)}: {printable(_text(value))}" for name, value in record.headers]
    return [f"{shown(letter.place)} {printable(letter.task_id or '-')}", *told, "  headers", *heads]


def obstacle(record: DeadLetter) -> str | None:
    """Return why the dead letter cannot be replayed, None when it can."""
    try:
        replayed(record)
    except NotReplayable as why:
        return str(why)
    return None


def with_reasons(letters: Sequence[tuple[Letter, str]]) -> list[dict[str, Any]]:
    """Return dead letters and why something was not done with them, as JSON has it."""
    return [{**place(letter), "because": why} for letter, why in letters]


def place(letter: Letter) -> dict[str, Any]:
    return {"partition": letter.place[0], "offset": letter.place[1], "task_id": letter.task_id}


def printable(text: str) -> str:
    """Return the text on one line and without control characters."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= _LONGEST else f"{clean[:_LONGEST]}…"


def _row(letter: Letter, standing: Standing, now_ms: int) -> tuple[str, ...]:
    cells = (
        shown(letter.place),
        letter.task_id,
        letter.lane,
        standing.tenant,
        letter.reason,
        None if letter.attempts is None else str(letter.attempts),
        _age(now_ms - letter.at_ms),
        _outcome(letter, standing, now_ms),
        standing.replay,
    )
    return tuple(printable(cell) if cell else "-" for cell in cells)


def _outcome(letter: Letter, standing: Standing, now_ms: int) -> str:
    if standing.outcome is None:
        return "not yet" if is_undecided(letter, standing, now_ms=now_ms) else "not kept"
    return standing.outcome


def _replay(letter: Letter, standing: Standing) -> str | None:
    return standing.replay and f"{standing.replay} as {letter.replay_id}"


def _age(age_ms: int) -> str:
    age_s = max(age_ms, 0) // 1000
    return next((f"{age_s // unit_s}{unit}" for unit_s, unit in _AGES_S if age_s >= unit_s), "0s")


def _source(text: str | None) -> dict[str, Any] | None:
    try:
        return asdict(Source.parse(text or ""))
    except ValueError:
        return None


def _text(value: bytes) -> str:
    """Return bytes as text, as hex where they are none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
