"""Which dead letters a command line means, and at what rate."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import TypeVar

import typer

from cli.deadletters.letters import Filters, Letter, Place, in_order, shown
from cli.errors import NoSuchTask
from schemas.ids import is_task_id
from schemas.result import ErrorType
from schemas.topics import Lane

_Kind = TypeVar("_Kind", Lane, ErrorType)

_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PER_S = {"s": 1, "m": 60, "h": 3600}


def filters_of(
    reason: str | None = None,
    tenant: str | None = None,
    lane: str | None = None,
    older_than: str | None = None,
    newer_than: str | None = None,
) -> Filters:
    """Return what is asked for. Raises: typer.BadParameter."""
    return Filters(
        reason=_one_of(ErrorType, reason, "--reason"),
        tenant=tenant,
        lane=_one_of(Lane, lane, "--lane"),
        older_than_ms=_duration_ms(older_than, "--older-than"),
        newer_than_ms=_duration_ms(newer_than, "--newer-than"),
    )


def _one_of(kind: type[_Kind], text: str | None, option: str) -> _Kind | None:
    if text is None:
        return None
    name = text.lower()
    try:
        return kind(name)
    except ValueError:
        near = get_close_matches(name, list(kind), n=1)
        told = f"did you mean {near[0]}?" if near else f"they are {', '.join(kind)}."
        raise typer.BadParameter(f"there is no {text!r}; {told}", param_hint=option) from None


def _duration_ms(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    parts = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)(s|m|h|d)", text.strip())
    if parts is None:
        raise typer.BadParameter(f"{text!r} is no duration such as 30s, 10m, 1h or 2d.", param_hint=option)
    return round(float(parts[1]) * _UNITS_MS[parts[2]])


def rate_of(text: str) -> float:
    """Return so many a second. Raises: typer.BadParameter."""
    parts = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(?:/(s|m|h))?", text.strip())
    rate_per_s = float(parts[1]) / _PER_S[parts[2] or "s"] if parts else 0.0
    if rate_per_s <= 0:
        raise typer.BadParameter(f"{text!r} is no rate such as 10/s or 600/m.", param_hint="--rate")
    return rate_per_s


def names_of(which: Sequence[str]) -> list[Place | str]:
    """Return the places and task_ids; what can be neither is as unknown as one that nobody has. Raises: NoSuchTask."""
    names: list[Place | str] = []
    for each in which:
        parts = re.fullmatch(r"(\d{1,9})/(\d{1,19})", each)
        if parts is None and not is_task_id(each):
            raise NoSuchTask("A dead letter is named by PARTITION/OFFSET or by its task_id.")
        names.append((int(parts[1]), int(parts[2])) if parts else each)
    return names


def named(names: Sequence[Place | str], letters: Sequence[Letter]) -> list[Letter]:
    """Return the letters at the places and those of the tasks, the oldest first. Raises: NoSuchTask."""
    for name in names:
        if not any(name in (each.place, each.task_id) for each in letters):
            raise NoSuchTask(f"There is no dead letter {shown(name) if isinstance(name, tuple) else f'of {name}'}.")
    return in_order(each for each in letters if each.place in names or each.task_id in names)


def audited(filters: Filters, limit: int | None) -> dict[str, str]:
    """Return what was asked for, as the audit record has it."""
    return {name: str(value) for name, value in {**asdict(filters), "limit": limit}.items() if value is not None}


def confirm(question: str, yes: bool) -> None:
    """Return when the user agrees. Raises: typer.Abort; typer.BadParameter when nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} Nobody is there to ask: say so with --yes.", param_hint="--yes")
    typer.confirm(question, abort=True, err=True)
