"""Appends the requests that run dead letters again, no faster than asked, until it is done or told to stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from cli.deadletters.auditing import Audit
from cli.deadletters.letters import Letter, spans
from cli.deadletters.reading import Progress, Reader, read_again
from cli.errors import NotReachable
from cli.lookup import partition_count
from cli.stopping import stop_on_signals
from streams.replay import DeadLetter, NotReplayable, replayed
from streams.settings import KafkaSettings
from wire.clock import monotonic_s
from wire.connection import BrokersUnreachable
from wire.producing import DurableProducer, NotAcknowledged, WriteRefused

_START_S = 10.0
_ACKNOWLEDGED_S = 10.0
REMOVED = "Kafka has removed it meanwhile"


@dataclass(slots=True)
class Replays:
    """What came of a replay. A clause beside what was refused says why."""

    replayed: list[Letter] = field(default_factory=list)
    refused: list[tuple[Letter, str]] = field(default_factory=list)
    is_interrupted: bool = False

    @property
    def counts(self) -> dict[str, int]:
        return {"replayed": len(self.replayed), "refused": len(self.refused)}


async def replay(
    reader: Reader,
    kafka: KafkaSettings,
    letters: list[Letter],
    *,
    filters: Mapping[str, str],
    rate_per_s: float,
    tell: Callable[[Letter, str | None], None],
) -> Replays:
    """Replay the letters and return what came of each; `tell` hears each at once, with a clause when it was refused.

    The first SIGINT or SIGTERM stops it behind the record on its way. It is on record in the audit topic before the first is
    appended.

    Raises: NotReachable, which tells how far it came; Failed without the audit topic.
    """
    await partition_count(reader, kafka.names.audit)
    stop, done = stop_on_signals(), Replays()
    async with opened_producer(kafka) as producer:
        audit = Audit(producer, kafka.names, "dlq.replay", filters)
        await audit.began({"chosen": len(letters)}, spans(letters))
        error: str | None = "it ended early"
        try:
            await _each(reader, kafka, letters, done, _Turns(Pace(rate_per_s), stop), producer, tell)
            error = "interrupted" if done.is_interrupted else None
        except NotAcknowledged as lost:
            told = f"{len(done.replayed)} of {len(letters)} are replayed, then: {lost}"
            raise NotReachable(f"{told} Run it again: none is replayed twice.") from lost
        finally:
            # Without Kafka there is no second record, and what went wrong is told already.
            with contextlib.suppress(NotReachable):
                await audit.ended(done.counts, spans(done.replayed), error)
    return done


async def rehearse(
    reader: Reader, kafka: KafkaSettings, letters: list[Letter], tell: Callable[[Letter, str | None], None]
) -> Replays:
    """Return what `replay` would do; appends nothing."""
    done = Replays()
    await _each(reader, kafka, letters, done, None, None, tell)
    return done


@dataclass(slots=True)
class Pace:
    """Lets so many pass a second, evenly; what came late is not made up for. Times are monotonic seconds."""

    rate_per_s: float
    _next_s: float = 0.0

    def delay_s(self, now_s: float) -> float:
        """Return how long the next has to wait, and count it."""
        delay_s = max(self._next_s - now_s, 0.0)
        self._next_s = now_s + delay_s + 1 / self.rate_per_s
        return delay_s


@contextlib.asynccontextmanager
async def opened_producer(kafka: KafkaSettings) -> AsyncIterator[DurableProducer]:
    """Raises: BrokersUnreachable."""
    producer = DurableProducer(kafka, client_id="triage-dlq")
    try:
        async with asyncio.timeout(_START_S):
            await producer.start()
    except TimeoutError:
        await producer.stop()
        raise BrokersUnreachable(kafka, f"no producer within {_START_S:g} s") from None
    try:
        yield producer
    finally:
        await producer.stop()


@dataclass(frozen=True, slots=True)
class _Turns:
    """Waits for the next turn."""

    pace: Pace
    stop: asyncio.Event

    async def next(self) -> bool:
        """Return True when it has come, False when it is told to stop before."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), self.pace.delay_s(monotonic_s()))
        return not self.stop.is_set()


async def _each(
    reader: Reader,
    kafka: KafkaSettings,
    letters: list[Letter],
    done: Replays,
    turns: _Turns | None,
    producer: DurableProducer | None,
    tell: Callable[[Letter, str | None], None],
) -> None:
    left = {each.place: each for each in letters}
    progress = Progress("replaying", len(letters))
    async with contextlib.aclosing(read_again(reader, kafka.names, frozenset(left))) as records:
        async for record in records:
            letter = left.get((record.partition, record.offset))
            if letter is None:
                continue
            if turns is not None and not await turns.next():
                done.is_interrupted = True
                return
            refused = await _one(kafka, record, producer)
            del left[letter.place]
            _note(done, letter, refused)
            tell(letter, refused)
            progress.step()
    for letter in left.values():
        _note(done, letter, REMOVED)
        tell(letter, REMOVED)


async def _one(kafka: KafkaSettings, record: DeadLetter, producer: DurableProducer | None) -> str | None:
    """Append the letter's request, unless there is no producer; return why it was refused."""
    try:
        request = replayed(record)
        if producer is not None:
            await producer.write(
                kafka.names.requests(request.lane),
                request.partition,
                key=request.key,
                value=request.value,
                headers=request.headers,
                timeout_s=_ACKNOWLEDGED_S,
            )
    except NotReplayable as refused:
        return str(refused)
    except WriteRefused as refused:
        return str(refused).rstrip(".")
    return None


def _note(done: Replays, letter: Letter, refused: str | None) -> None:
    if refused is None:
        done.replayed.append(letter)
    else:
        done.refused.append((letter, refused))
