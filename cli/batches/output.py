"""The output file of `triage batch`: what is in it is done, and is not asked again."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cli.batches.lines import ROW_BEGINS, Line, answer, done, unanswered
from cli.errors import Failed
from schemas.codec import DecodeError


class Output:
    """Appends a line for each request that has an outcome. Use as `with`; raises Failed when the file is not one of ours.

    `written_count` is of this run, `failed_count` of the whole file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO
        self.done: dict[str, bool] = {}
        self.written_count = self.failed_count = 0

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        except OSError as error:
            raise Failed(f"{self._path} cannot be written: {error.strerror}.") from None
        try:
            self.done = done(self._whole_rows())
        except ValueError as error:
            self._file.close()
            raise Failed(f"{self._path}: line {error} is no output of `triage batch`; name another file.") from None
        self.failed_count = list(self.done.values()).count(False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def _whole_rows(self) -> list[bytes]:
        """Return the rows of the file without half a one, which a run that was killed may have left, and which is cut off."""
        *rows, part = self._file.read().split(b"\n")
        if part[: len(ROW_BEGINS)] != ROW_BEGINS[: len(part)]:
            raise ValueError(len(rows) + 1)
        self._file.seek(-len(part), os.SEEK_END)
        self._file.truncate()
        return rows

    def left(self, lines: Collection[Line]) -> dict[str, Line]:
        """Return the lines without an outcome, by task id."""
        return {line.task_id: line for line in lines if line.custom_id not in self.done}

    def result(self, line: Line, value: bytes) -> None:
        """Write what a result record says of a request."""
        try:
            row = answer(line, value)
        except DecodeError as error:
            row = unanswered(line, "unreadable", f"the record in the results log is not a result: {error.detail}")
        self._write(line, row)

    def gone(self, line: Line, message: str) -> None:
        """Write that a request's result is no longer there."""
        self._write(line, unanswered(line, "gone", message))

    def _write(self, line: Line, row: bytes) -> None:
        self._file.write(row)
        self._file.flush()
        completed = done([row])
        self.done |= completed
        self.written_count += 1
        self.failed_count += list(completed.values()).count(False)
