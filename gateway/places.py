"""Where the view's file lies: one of eight in the data folder, whichever no other gateway of this machine has open."""

from __future__ import annotations

import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

_MOST = 8


@dataclass
class Place:
    """A file of one gateway's own until `release`. `path` None: all eight are taken, so the file is kept in memory."""

    path: Path | None
    _lock: int | None = None

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def default_folder(cache_home: Path, origin: str) -> Path:
    """Return the folder for one cluster and prefix; `cache_home` is the user's cache folder."""
    return cache_home / "triage" / f"gateway-{hashlib.sha256(origin.encode()).hexdigest()[:12]}"


def claim(folder: Path) -> Place:
    """Take the first file of `folder` that no running gateway has. A lock ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in range(_MOST):
        lock = os.open(folder / f"view-{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return Place(folder / f"view-{number}.sqlite", lock)
    return Place(None)
