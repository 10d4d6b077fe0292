"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. SKIPPED: it could not be looked at, for a reason that another finding names."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was seen. `remedy` is a command or a setting; None where there is nothing to mend."""

    check: str
    level: Level
    found: str
    remedy: str | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def skipped(check: str, found: str) -> Finding:
    return Finding(check, Level.SKIPPED, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.WARNING, found, remedy)


def error(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.ERROR, found, remedy)


def listed(names: list[str], most: int = 3) -> str:
    """Return `a, b, c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
