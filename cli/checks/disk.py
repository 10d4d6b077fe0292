"""Room for what Triage keeps on this machine. Kafka's own disks are Kafka's to watch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cli.checks.finding import Finding, error, ok, warning
from streams.settings import Settings

CHECK = "disk"
GIB = 1 << 30
_LITTLE_BYTES, _NOTHING_BYTES = 1 * GIB, GIB // 10


def folder(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Return where this machine's files go: gateway.data_dir, else the user's cache."""
    home = environ.get("XDG_CACHE_HOME")
    return settings.gateway.data_dir or (Path(home) if home else Path.home() / ".cache")


def look(path: Path) -> list[Finding]:
    """Look at the file system of `path`, which need not be there yet."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    try:
        free_bytes = shutil.disk_usage(there).free
    except OSError as failure:
        return [error(CHECK, f"{there}: {failure.strerror}", _ELSEWHERE)]
    return room(path, free_bytes, is_writable=there.is_dir() and os.access(there, os.W_OK))


def room(path: Path, free_bytes: int, *, is_writable: bool) -> list[Finding]:
    if not is_writable:
        return [error(CHECK, f"{path} cannot be written by this user", _ELSEWHERE)]
    found = f"{free_bytes / GIB:.1f} GiB free for {path}"
    if free_bytes >= _LITTLE_BYTES:
        return [ok(CHECK, found)]
    level = error if free_bytes < _NOTHING_BYTES else warning
    return [level(CHECK, found, f"make room there, or {_ELSEWHERE}")]


_ELSEWHERE = "set gateway.data_dir (or XDG_CACHE_HOME) to a folder with room that this user may write"
