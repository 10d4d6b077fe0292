"""Who is there and what they say: the newest snapshot of each worker, and the newest sample of each GPU.

Ages are told in broker time, by when a record was appended: the clocks of hosts differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import orjson

from schemas.codec import DecodeError, decode
from schemas.gpu import GPUMetrics
from schemas.progress import WorkerSnapshot
from schemas.topics import HOUR_MS
from streams.workers import Workers

GATEWAY_KEY = "gateway/"
LIVE_MS = 5_000
# A position told from an older picture of the workers would be a guess. A worker speaks each second while something waits, and is a
# second late at most; where nothing waits and nothing changes it speaks every three, and until then its last word holds.
FRESH_MS, FRESH_IDLE_MS = 2_000, 4_000
# As long as its topic keeps a sample: a card that was taken out is stale for an hour and then forgotten.
GPU_KEPT_MS = HOUR_MS

_Record = TypeVar("_Record")


class _Heard(NamedTuple):
    """A record, parsed only when somebody asks. `fresh_ms` is for how long it tells how things are."""

    at_ms: int
    value: bytes
    fresh_ms: int = FRESH_MS


@dataclass(frozen=True, slots=True)
class BackendView:
    """A backend as the live workers see it together: up when one of them sees it up; `reason` says why it is not."""

    name: str
    kind: str
    up: bool
    in_flight: int
    limit: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class GpuView:
    """A GPU and how old its newest sample is; `stale`: too old to say anything of the card."""

    uuid: str
    host: str
    age_s: float
    stale: bool
    lost: bool


@dataclass
class Fleet:
    """The newest record of each worker and GPU. Gateways are kept apart and count for nothing here."""

    stale_after_s: float = 5.0
    _workers: dict[str, _Heard] = field(default_factory=dict)
    _gpus: dict[str, _Heard] = field(default_factory=dict)
    _together: tuple[list[_Heard], Workers] = field(default_factory=lambda: ([], Workers.of([])))

    def snapshot(self, key: bytes | None, value: bytes | None, appended_ms: int) -> None:
        """Take note of a record of the workers' topic; without a value its sender is gone."""
        sender = (key or b"").decode(errors="replace")
        if not sender.startswith(GATEWAY_KEY):
            _keep(self._workers, sender, value, appended_ms, FRESH_IDLE_MS if _is_idle(value) else FRESH_MS)

    def sample(self, key: bytes | None, value: bytes | None, appended_ms: int) -> None:
        """Take note of a record of the GPU topic; without a value the card is gone."""
        _keep(self._gpus, (key or b"").decode(errors="replace"), value, appended_ms)

    def workers(self, now_ms: int) -> int:
        """Return how many workers were heard of within five seconds."""
        return len(self._live(now_ms))

    def together(self, now_ms: int) -> Workers:
        """Return what the live workers say together. Parsed once for all who ask until another is heard of, or one falls silent."""
        live = self._live(now_ms)
        if live != self._together[0]:
            self._together = (live, Workers.of(_parsed(WorkerSnapshot, live)))
        return self._together[1]

    def is_fresh(self, now_ms: int) -> bool:
        """Whether some worker's newest snapshot still tells how things are."""
        return any(now_ms - heard.at_ms <= heard.fresh_ms for heard in self._workers.values())

    def backends(self, now_ms: int) -> list[BackendView]:
        """Return every backend that a live worker names, by name."""
        found: dict[str, BackendView] = {}
        for snapshot in self.together(now_ms).snapshots:
            for row in snapshot.backends:
                seen = BackendView(row.name, row.kind, row.up, row.in_flight, row.limit, row.reason)
                known = found.get(row.name)
                found[row.name] = seen if known is None else _merged(known, seen)
        return [found[name] for name in sorted(found)]

    def gpus(self, now_ms: int) -> list[GpuView]:
        """Return every GPU that was sampled within the last hour, by uuid."""
        self._gpus = {uuid: heard for uuid, heard in self._gpus.items() if now_ms - heard.at_ms < GPU_KEPT_MS}
        found = []
        for uuid in sorted(self._gpus):
            heard = self._gpus[uuid]
            for sample in _parsed(GPUMetrics, [heard]):
                age_s = max(now_ms - heard.at_ms, 0) / 1000
                found.append(GpuView(uuid, sample.gpu.host, age_s, age_s > self.stale_after_s, sample.lost))
        return found

    def _live(self, now_ms: int) -> list[_Heard]:
        self._workers = {name: heard for name, heard in self._workers.items() if now_ms - heard.at_ms < LIVE_MS}
        return list(self._workers.values())


def _keep(heard: dict[str, _Heard], key: str, value: bytes | None, appended_ms: int, fresh_ms: int = FRESH_MS) -> None:
    if value is None:
        heard.pop(key, None)
    elif key:
        heard[key] = _Heard(appended_ms, value, fresh_ms)


def _is_idle(value: bytes | None) -> bool:
    """Whether a snapshot says of lanes that nothing waits in them."""
    try:
        lanes = orjson.loads(value or b"")["lanes"]
        return bool(lanes) and all(lane["waiting"] == 0 for lane in lanes.values())
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return False


def _parsed(kind: type[_Record], heard: list[_Heard]) -> Iterator[_Record]:
    """Yield what can be read; of another version's records at least their time is known."""
    for each in heard:
        try:
            yield decode(kind, each.value)
        except DecodeError:
            continue


def _merged(one: BackendView, other: BackendView) -> BackendView:
    up = one.up or other.up
    return BackendView(
        one.name,
        one.kind,
        up,
        one.in_flight + other.in_flight,
        one.limit + other.limit,
        None if up else one.reason or other.reason,
    )
