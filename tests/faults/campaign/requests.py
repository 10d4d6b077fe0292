"""What the campaign asks: requests as producers write them, good ones and such that can only fail."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import orjson

from schemas.topics import MIB, Lane

TENANTS = ("default", "ward7", "ward8")
_LANES, _WEIGHTS = list(Lane), (15, 25, 35, 25)
# Within ten minutes of its deadline a task that must wait is parked for 5 s; later ones for 60 s, which a drain would wait for.
_LONGEST_S = 300.0
_SHORT = (1.0, 20.0)
_RECENT = 50


@dataclass(frozen=True, slots=True)
class Wanted:
    """A record to be written. `task_id` None: the request carries no id that can be read."""

    lane: Lane
    key: bytes | None
    value: bytes | None
    nonce: str
    tenant: str
    task_id: str | None
    is_sent_twice: bool = False


@dataclass
class Requests:
    """Makes requests from a seed; `run` keeps the ids of runs apart. Prompts carry a nonce, a few share an earlier one's."""

    rng: random.Random
    run: str
    _numbers: count[int] = field(default_factory=count)
    _recent: list[tuple[str, str]] = field(default_factory=list)

    def lane(self) -> Lane:
        return self.rng.choices(_LANES, _WEIGHTS)[0]

    def nonce(self) -> str:
        return f"nonce-{self.run}x{next(self._numbers)}"

    def due_s(self) -> float:
        """Return seconds to the deadline: for a third of the tasks so few that a fault makes them late."""
        return self.rng.uniform(*_SHORT) if self.rng.random() < 0.3 else _LONGEST_S

    def body(self, nonce: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"Say {nonce}."}], "parameters": {"max_tokens": 16}}

    def good(self, now_ms: int, lane: Lane | None = None, due_s: float | None = None) -> Wanted:
        """Return a request that can be answered; one in seven has no id, one in twenty is written twice."""
        lane = lane or self.lane()
        tenant, nonce = self._asked()
        due_s = self.due_s() if due_s is None else due_s
        body = self.body(nonce) | {"tenant": tenant}
        if lane in (Lane.NORMAL, Lane.LOW) or self.rng.random() < 0.5:
            body |= {"created_at_ms": now_ms, "deadline_at_ms": now_ms + int(due_s * 1000)}
        if self.rng.random() < 1 / 7:
            return Wanted(lane, None, orjson.dumps(body), nonce, tenant, None)
        task_id = f"task-{self.run}-{next(self._numbers)}"
        value = orjson.dumps(body | {"task_id": task_id})
        return Wanted(lane, task_id.encode(), value, nonce, tenant, task_id, self.rng.random() < 0.05)

    def poison(self) -> Wanted:
        """Return a request that can only fail."""
        task_id, lane = f"poison-{self.run}-{next(self._numbers)}", self.lane()
        ask = self.body(self.nonce()) | {"task_id": task_id}
        named: list[dict[str, Any]] = [
            {**ask, "messages": "no list"},
            {**ask, "schema_version": 99},
            {**ask, "parameters": {"n": 2}},
            {**ask, "messages": [{"role": "user", "content": "x" * (MIB + 1000)}]},
        ]
        nameless = [b"\xff\xfe\x00", b"", None, b"\x00\x00\x00\x00\x07" + orjson.dumps(ask), b"[" * 5000]
        if self.rng.random() < 0.5:
            return Wanted(lane, None, self.rng.choice(nameless), self.nonce(), "default", None)
        value = orjson.dumps(self.rng.choice(named))
        # What is too large is not read, so its id is not known.
        own = task_id if len(value) <= MIB else None
        return Wanted(lane, task_id.encode(), value, self.nonce(), "default", own)

    def _asked(self) -> tuple[str, str]:
        if self._recent and self.rng.random() < 0.03:
            return self.rng.choice(self._recent)
        asked = (self.rng.choice(TENANTS), self.nonce())
        self._recent = [*self._recent[-_RECENT:], asked]
        return asked
