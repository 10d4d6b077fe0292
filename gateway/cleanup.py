"""Forget finished tasks: a time in the compacted state topic, up to which every gateway answers 410 for what a tenant's tasks ended as."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.callers import Caller
from gateway.ports import Logs
from gateway.submission import faults_of, parsed
from gateway.view import CLEANUP, View
from schemas.topics import TopicNames

_MOST_S = 10 * 365 * 86_400
_TRIES = 5


class CleanupBody(BaseModel):
    """Which finished tasks are to be forgotten: those that ended so long ago; 0 means all of them."""

    model_config = ConfigDict(frozen=True, strict=True)

    older_than_s: Annotated[float, Field(ge=0, le=_MOST_S)]


class Cleanup:
    """The cleanup route, for the caller's own tenant."""

    def __init__(self, topics: TopicNames, view: View, logs: Logs) -> None:
        self._topics, self._view, self._logs = topics, view, logs

    async def forget(self, caller: Caller, body: bytes) -> dict[str, Any]:
        """Forget, and return how many tasks that are which were not forgotten before. An earlier cleanup is never taken back.

        Raises: Problem; Unavailable, also when it is written and this gateway has not read it yet.
        """
        self._logs.require()
        older_than_s = _validated(parsed(body)).older_than_s
        await self._logs.reach(None)
        await self._logs.reach_state()
        finished, tenant = self._view.finished, caller.tenant
        before_ms = finished.forgotten_ms(tenant)
        # A result may carry a broker's time that is ahead of this clock's.
        newest_ms = max(self._logs.now_ms, self._view.newest_ms)
        through_ms = newest_ms - round(older_than_s * 1000)
        if through_ms <= before_ms:
            return {"forgotten": 0}
        forgotten = 0
        for count in finished.count_ended(tenant, before_ms, through_ms):
            forgotten += count
            await asyncio.sleep(0)
        await self._write(tenant, through_ms)
        return {"forgotten": forgotten}

    async def _write(self, tenant: str, through_ms: int) -> None:
        """Write the time, and again while another call's, a later one, lies before it: the last of a key is what is kept."""
        key = f"{CLEANUP}{tenant}".encode()
        for _ in range(_TRIES):
            value = orjson.dumps({"schema_version": 1, "through_ms": through_ms})
            await self._logs.append(self._topics.state, 0, key=key, value=value)
            await self._logs.reach_state()
            known_ms = self._view.finished.forgotten_ms(tenant)
            if known_ms <= through_ms:
                return
            through_ms = known_ms


def _validated(raw: dict[str, Any]) -> CleanupBody:
    try:
        return CleanupBody.model_validate(raw)
    except ValidationError as error:
        raise faults_of(error) from None
