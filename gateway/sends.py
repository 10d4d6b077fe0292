"""What this gateway is writing under ids that may come twice, until the logs can tell of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gateway.ports import OutcomeUnknown
from gateway.problems import Kind, Problem

MOST_UNKNOWN = 10_000


@dataclass
class _Send:
    """A task or a batch under its id, `claim`; `body_hash` stands for what is asked, `key_hash` for the idempotency key."""

    claim: str
    body_hash: str
    key_hash: str | None
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Sends:
    """Lets one write of an id be under way at a time; another call of the same waits for it and shares its end.

    A write that ended is forgotten, since the view, asked to reach the logs, knows it. Of one that was not acknowledged the last ten
    thousand are remembered: they may still come.
    """

    def __init__(self) -> None:
        self._running: dict[str, _Send] = {}
        self._unknown: OrderedDict[str, _Send] = OrderedDict()
        # Under a key is one of them at most: others are refused.
        self._by_key: dict[str, str] = {}

    def refuse_other(self, claim: str, body_hash: str, key_hash: str | None) -> None:
        """Raises: Problem when something else is being written under this id (409) or this key (422)."""
        if key_hash is not None and self._by_key.get(key_hash, claim) != claim:
            raise Problem(Kind.KEY_REUSED)
        known = self._running.get(claim) or self._unknown.get(claim)
        if known is not None and known.body_hash != body_hash:
            raise Problem(Kind.ID_TAKEN)

    async def once(
        self, claim: str, body_hash: str, key_hash: str | None, write: Callable[[], Awaitable[None]]
    ) -> bool:
        """Return whether this call wrote it; False when another call did, whose end this one waited for.

        Raises: as `refuse_other`, and what `write` raises, in every call that waits.
        """
        self.refuse_other(claim, body_hash, key_hash)
        running = self._running.get(claim)
        if running is not None:
            await asyncio.shield(running.done)
            return False
        send = self._running[claim] = _Send(claim, body_hash, key_hash)
        if key_hash is not None:
            self._by_key[key_hash] = claim
        try:
            await write()
        except BaseException as error:
            if isinstance(error, OutcomeUnknown | asyncio.CancelledError):
                self._remember(send)
            told = error if isinstance(error, Exception) else OutcomeUnknown("the call was given up")
            send.done.set_exception(told)
            send.done.exception()  # perhaps nobody waits for it
            raise
        else:
            self._unknown.pop(claim, None)
            send.done.set_result(None)
        finally:
            del self._running[claim]
            if claim not in self._unknown:
                self._forget(send)
        return True

    def _remember(self, send: _Send) -> None:
        self._unknown[send.claim] = send
        if len(self._unknown) > MOST_UNKNOWN:
            self._forget(self._unknown.popitem(last=False)[1])

    def _forget(self, send: _Send) -> None:
        if send.key_hash is not None and self._by_key.get(send.key_hash) == send.claim:
            del self._by_key[send.key_hash]
