"""Where each key of a TOML text stands: `tomllib` does not tell."""

from __future__ import annotations

import re
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str, ...]

_HEADER = re.compile(r"\s*(\[{1,2})\s*([^\[\]]+?)\s*\]{1,2}\s*(#.*)?$")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line of every table and key of a valid TOML text.

    An entry of an array of tables has its number in the path: `("backends", "0", "url")`. Keys within an inline table
    are not found, and a line of a multi-line string may be taken for one: good enough to say where to look.
    """
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    entries: dict[KeyPath, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _split(header[2])
            if header[1] == "[[":
                entries[table] = entries.get(table, -1) + 1
                found.setdefault(table, number)
                table = (*table, str(entries[table]))
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            path = (*table, *_split(key[1]))
            for length in range(len(table) + 1, len(path) + 1):
                found.setdefault(path[:length], number)
    return found


def _split(key: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in key.split("."))
