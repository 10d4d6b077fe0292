"""What a retry record says of its task, beside the request's own bytes: its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas import headers as names
from schemas.headers import Headers
from schemas.ids import is_task_id
from schemas.result import Source
from schemas.topics import Lane, TopicNames

_MOST = 2**53


@dataclass(frozen=True, slots=True)
class Retry:
    """A task between two tries. `source` is its lane record; times are broker time."""

    task_id: str
    lane: Lane
    attempts: int
    hops: int
    not_before_ms: int
    deadline_ms: int
    appended_ms: int
    source: Source

    @classmethod
    def parse(cls, headers: Headers, partition: int, topics: TopicNames) -> Retry:
        """Return what the headers of a record on this partition number say.

        Raises: ValueError when they are not those of a retry: whoever may write the topic may write anything.
        """
        found: dict[str, str] = {}
        for name, value in headers:
            if name.startswith("triage.") and value is not None:
                found.setdefault(name, value.decode())  # UnicodeDecodeError is a ValueError
        try:
            task_id, source = found[names.TASK_ID], Source.parse(found[names.SOURCE])
        except KeyError as missing:
            raise ValueError(f"no header {missing}") from None
        lane = topics.lane_of(source.topic)
        if not is_task_id(task_id) or source.partition != partition or lane.value != found.get(names.LANE):
            raise ValueError("the headers name another task's place")
        return cls(
            task_id,
            lane,
            attempts=_number(found, names.ATTEMPTS),
            hops=_number(found, names.HOPS),
            not_before_ms=_number(found, names.NOT_BEFORE_MS),
            deadline_ms=_number(found, names.DEADLINE_MS),
            appended_ms=_number(found, names.APPENDED_MS),
            source=source,
        )


def _number(found: Mapping[str, str], name: str) -> int:
    text = found.get(name, "0" if name in (names.ATTEMPTS, names.HOPS) else "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 16) or int(text) > _MOST:
        raise ValueError(f"{name} is not a number")
    return int(text)
