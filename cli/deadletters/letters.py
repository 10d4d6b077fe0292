"""Dead letters as they are listed and chosen: everything but their bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from schemas import headers as names
from schemas.result import Outcome
from schemas.topics import DAY_MS, Lane
from streams.replay import DeadLetter

Place: TypeAlias = tuple[int, int]
"""Partition number and offset in the dead-letter topic."""

# The results log is kept for 7 days; a segment more, and clocks that differ.
RESULT_KEPT_MS = 8 * DAY_MS
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter without its bytes. `lane`, `task_id` and `replay_id` None: no worker of Triage wrote it.

    Times are broker time: `at_ms` of the dead letter, `appended_ms` of the request.
    """

    place: Place
    at_ms: int
    appended_ms: int | None
    task_id: str | None
    replay_id: str | None
    lane: Lane | None
    reason: str | None
    detail: str | None
    attempts: int | None
    source: str | None
    request_bytes: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a dead letter's task ended, and its replay.

    `outcome` None: its result is not written yet, or no longer kept. `replay` is an outcome too, `unfinished` while it waits or
    runs, None when there was none.
    """

    outcome: str | None = None
    tenant: str | None = None
    replay: str | None = None


Standings: TypeAlias = Mapping[Place, Standing]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which dead letters are meant; None does not ask. Ages are milliseconds before now."""

    reason: str | None = None
    tenant: str | None = None
    lane: Lane | None = None
    older_than_ms: int | None = None
    newer_than_ms: int | None = None

    def matches(self, letter: Letter, standing: Standing, *, now_ms: int) -> bool:
        age_ms = now_ms - letter.at_ms
        return (
            self.reason in (None, letter.reason)
            and self.tenant in (None, standing.tenant)
            and self.lane in (None, letter.lane)
            and (self.older_than_ms is None or age_ms > self.older_than_ms)
            and (self.newer_than_ms is None or age_ms < self.newer_than_ms)
        )

    def chosen(self, letters: Iterable[Letter], standings: Standings, *, now_ms: int) -> list[Letter]:
        """Return those that are meant, the oldest first."""
        found = [each for each in letters if self.matches(each, standings[each.place], now_ms=now_ms)]
        return in_order(found)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay will do: `go`, and what is left alone with a clause that says why. `done` has been replayed before."""

    go: list[Letter] = field(default_factory=list)
    done: list[Letter] = field(default_factory=list)
    skipped: list[tuple[Letter, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a purge will do: the records of each partition before an offset go, `letters` of them; `kept` stay, with a clause that says why.

    Kafka deletes from the oldest record of a partition on, and nothing in between.
    """

    before: dict[int, int] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    kept: list[tuple[Letter, str]] = field(default_factory=list)


def letter_of(record: DeadLetter) -> Letter:
    """Return what is listed of a dead letter."""
    return Letter(
        place=(record.partition, record.offset),
        at_ms=record.at_ms,
        appended_ms=record.number(names.APPENDED_MS),
        task_id=record.task_id,
        replay_id=record.replay_id,
        lane=record.lane,
        reason=record.mark(names.ERROR_TYPE),
        detail=record.mark(names.DLQ_MESSAGE),
        attempts=record.number(names.ATTEMPTS),
        source=record.mark(names.SOURCE),
        request_bytes=record.request_bytes,
    )


def dead_letter(record: Any) -> DeadLetter:
    """Return a record of the dead-letter topic as the decisions take it."""
    return DeadLetter(
        partition=record.partition,
        offset=record.offset,
        at_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=[(name, value or b"") for name, value in record.headers],
    )


def in_order(letters: Iterable[Letter]) -> list[Letter]:
    """Return the oldest first."""
    return sorted(letters, key=lambda each: (each.at_ms, each.place))


def plan_replay(
    chosen: Sequence[Letter],
    letters: Iterable[Letter],
    standings: Standings,
    *,
    now_ms: int,
    by_name: bool,
    limit: int | None = None,
) -> Plan:
    """Return what to replay of the chosen, `limit` at most. `letters` are all there are; `by_name`: the user named each of the chosen.

    A task that was dead-lettered twice is replayed once, by its oldest letter. One that ended otherwise after all (its cancellation
    or another worker's answer was first in the log) runs again only when it is named.
    """
    first: dict[tuple[str | None, int], Place] = {}
    for each in sorted(letters, key=lambda each: each.place):
        first.setdefault((each.task_id, each.place[0]), each.place)
    plan = Plan()
    for letter in chosen:
        standing = standings[letter.place]
        oldest = first[letter.task_id, letter.place[0]]
        if standing.replay is not None:
            plan.done.append(letter)
        elif letter.task_id is not None and oldest != letter.place:
            plan.skipped.append((letter, f"its task has an older dead letter, {shown(oldest)}"))
        elif is_undecided(letter, standing, now_ms=now_ms):
            plan.skipped.append((letter, "the result of its task is not written yet"))
        elif not by_name and standing.outcome not in (None, Outcome.FAILED):
            plan.skipped.append((letter, f"its task ended as {standing.outcome}; name it to run it again"))
        elif limit is None or len(plan.go) < limit:
            plan.go.append(letter)
    return plan


def plan_purge(chosen: Collection[Letter], letters: Iterable[Letter], standings: Standings, *, now_ms: int) -> Prefix:
    """Return what can be removed of the chosen: in each partition those before the first that is not chosen or must stay."""
    wanted = {each.place for each in chosen}
    plan = Prefix()
    stopped: dict[int, Place] = {}
    for letter in sorted(letters, key=lambda each: each.place):
        partition, offset = letter.place
        undecided = is_undecided(letter, standings[letter.place], now_ms=now_ms)
        if letter.place in wanted and undecided:
            plan.kept.append((letter, "the result of its task is not written yet"))
        elif letter.place in wanted and partition in stopped:
            plan.kept.append((letter, f"{shown(stopped[partition])} before it stays"))
        elif letter.place in wanted:
            plan.letters.append(letter)
            plan.before[partition] = offset + 1
        if letter.place not in wanted or undecided:
            stopped.setdefault(partition, letter.place)
    return plan


def is_undecided(letter: Letter, standing: Standing, *, now_ms: int) -> bool:
    """Whether the `failed` result that follows a dead letter is still to come. A result that is no longer kept was written."""
    ours = letter.task_id is not None
    return ours and standing.outcome is None and now_ms - letter.at_ms < RESULT_KEPT_MS


def spans(letters: Iterable[Letter]) -> dict[str, tuple[int, int]]:
    """Return the first and the last offset by partition number."""
    found: dict[str, tuple[int, int]] = {}
    for partition, offset in sorted(each.place for each in letters):
        first, _ = found.get(str(partition), (offset, offset))
        found[str(partition)] = (first, offset)
    return found


def shown(place: Place) -> str:
    return f"{place[0]}/{place[1]}"


def counted(number: int) -> str:
    return f"{number} dead letter{'s' * (number != 1)}"
