"""How far a batch is, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from wire.clock import monotonic_s

_EVERY_S = 5.0


class Progress:
    """Says how many of `total` requests are done. Use as `with`."""

    def __init__(self, total: int) -> None:
        self._total, self._said_s = total, monotonic_s()
        self._bar: Any = _bar() if sys.stderr.isatty() else None
        self._shown: AbstractContextManager[Any] = self._bar or nullcontext()

    def __enter__(self) -> Progress:
        self._shown.__enter__()
        if self._bar is not None:
            self._task = self._bar.add_task("requests", total=self._total)
        return self

    def __exit__(self, *error: Any) -> None:
        self._shown.__exit__(*error)

    def show(self, done: int, *, failed: int) -> None:
        """Show how many are done, and how many of those did not complete."""
        told = f", {failed} of them not completed" if failed else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"requests{told}")
        elif done < self._total and monotonic_s() - self._said_s >= _EVERY_S:
            self._said_s = monotonic_s()
            print(f"triage: {done} of {self._total} done{told}", file=sys.stderr, flush=True)


def _bar() -> Any:
    """Return a progress bar, None without the extra `dev`, which has it."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
