"""Replay: from a dead letter to the request that runs its task again, as a new task on the same partition number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from schemas import headers as names
from schemas.codec import DecodeError, decode_request
from schemas.headers import Headers
from schemas.ids import is_task_id, replay_id
from schemas.topics import Lane
from streams.deadlines import deadline_ms
from streams.errors import InvalidRequest

REPLAY_OF = "replay_of"
_COUNT = re.compile(r"[0-9]{1,19}")
# Written beside the request's own headers when it was dead-lettered, or about one task of one producer's batch.
_NOT_KEPT = ("triage.", "__dlq.")


class NotReplayable(ValueError):
    """The dead letter cannot run again; the message is a clause that says why, without any of its text."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the dead-letter topic, its bytes included. `lane` and `task_id` None: Triage did not write it.

    `at_ms` is broker time. `kept_bytes` and `request_bytes` differ when the request was too large to be kept.
    """

    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def mark(self, name: str) -> str | None:
        """Return what the worker wrote under `name`: its headers come last, behind any that the producer gave the same name."""
        return names.find(reversed(self.headers), name)

    @property
    def task_id(self) -> str | None:
        text = self.mark(names.TASK_ID)
        return text if is_task_id(text) else None

    @property
    def lane(self) -> Lane | None:
        try:
            return Lane(self.mark(names.LANE) or "")
        except ValueError:
            return None

    @property
    def replay_id(self) -> str | None:
        """The id under which it runs again, the same each time."""
        task_id = self.task_id
        return None if task_id is None else replay_id(task_id, self.partition, self.offset)

    @property
    def kept_bytes(self) -> int:
        return len(self.value or b"")

    @property
    def request_bytes(self) -> int:
        told = None if self.value else self.number(names.VALUE_BYTES)
        return self.kept_bytes if told is None else told

    def number(self, name: str) -> int | None:
        """Return a mark that counts something; None when it is absent or no count."""
        text = self.mark(name)
        return int(text) if text is not None and _COUNT.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class Replayed:
    """The request to be appended to the lane's topic, on the dead letter's partition number."""

    task_id: str
    lane: Lane
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers


def replayed(letter: DeadLetter) -> Replayed:
    """Return the request that runs the letter's task again; everything that is not named here stays as it was.

    The body gets its new `task_id` and `metadata.replay_of`, the old one. A deadline with `created_at_ms` counts from the new
    record on; one without was a point in time that says nothing now, and is dropped.

    Raises: NotReplayable.
    """
    task_id, lane, new_id = letter.task_id, letter.lane, letter.replay_id
    if task_id is None or lane is None or new_id is None:
        raise NotReplayable("it does not say whose request it was: no worker of Triage wrote it")
    if letter.request_bytes > letter.kept_bytes:
        place = letter.mark(names.SOURCE)
        raise NotReplayable(f"the request of {letter.request_bytes} bytes was too large to be kept; it was at {place}")
    value = _renamed(letter.value, task_id, new_id)
    return Replayed(new_id, lane, letter.partition, letter.key, value, _kept(letter.headers))


def _renamed(value: bytes | None, task_id: str, new_id: str) -> bytes:
    try:
        request = decode_request(value)
    except DecodeError as error:
        raise NotReplayable(error.detail) from None
    body = orjson.loads(value or b"")
    if request.created_at_ms is None:
        body.pop("deadline_at_ms", None)
    renamed: bytes = orjson.dumps(
        {**body, "task_id": new_id, "metadata": {**(request.metadata or {}), REPLAY_OF: task_id}}
    )
    try:
        # It was valid, but now it is longer, has one entry more in its metadata, and its deadline counts from now.
        deadline_ms(decode_request(renamed), 0)
    except (DecodeError, InvalidRequest) as error:
        raise NotReplayable(f"as a new task it would be refused: {error.detail}") from None
    return renamed


def _kept(headers: Iterable[tuple[str, bytes]]) -> Headers:
    return [(name, value) for name, value in headers if not name.startswith(_NOT_KEPT)]
