"""The record that ends a task from outside of the workers."""

from __future__ import annotations

from collections.abc import Callable

from gateway.ports import Logs, Stored
from gateway.records import metadata_of
from gateway.view import Unfinished
from schemas import headers as names
from schemas.codec import encode
from schemas.result import Result, Source
from schemas.topics import TopicNames
from streams.outcome import result_headers


async def end(entry: Unfinished, ending: Callable[..., Result], topics: TopicNames, logs: Logs) -> int:
    """Write what `ending` (`cancelled` or `expired` of `streams/outcome.py`) says of a task; returns its offset once it is durable.

    Another outcome may have come first, and counts then. Raises: Unavailable; OutcomeUnknown; RecordTooLarge.
    """
    topic = topics.requests(entry.lane)
    request = await logs.read(topic, entry.partition, entry.offset) or Stored(None, ())
    result = ending(
        entry.task_id,
        entry.tenant,
        entry.lane,
        Source(topic, entry.partition, entry.offset),
        agent_type=entry.agent_type,
        batch_id=entry.batch_id,
        metadata=metadata_of(request.value),
        attempts=entry.attempts,
        created_at_ms=entry.created_at_ms,
        dispatched_at_ms=entry.started_at_ms,
        now_ms=logs.now_ms,
    )
    key, headers = entry.task_id.encode(), result_headers(result, names.copied(request.headers), None)
    return await logs.append(topics.results, entry.partition, key=key, value=encode(result), headers=headers)
