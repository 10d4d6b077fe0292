"""Cards that are not there: for a machine without a GPU, for demonstrations and tests."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from agents.gpu_sources.scenario import CardScript, Course, Scenario
from agents.gpu_sources.silicon import GENERIC, Drive, Silicon
from schemas.gpu import GpuId, GPUMetrics, GpuSource, ReadingError

TOTAL_BYTES = GENERIC.memory_bytes
# The walk's seconds count from here: any fixed time will do, so that two readers of one seed agree.
_BEGAN_MS = 1_767_225_600_000
_DRIVES = ("load", "memory_ratio", "cooling")
_NUMBERS = (
    "memory_total_bytes",
    "memory_used_bytes",
    "utilization_ratio",
    "temperature_c",
    "power_w",
    "energy_joules_total",
    "sm_clock_mhz",
)
_LISTS = ("clock_event_reasons", "faults")


class SimulatedReader:
    """A `GpuReader` of `count` cards. What they show depends on the scenario, its seed and the time only.

    `overrides` is a JSON file that may change while the reader runs, `{"<index>": {"load": 1.0, "cooling": 0.3,
    "memory_used_bytes": 2e10, "lost": true}}`. What drives a card (load, memory_ratio, cooling) is set before its physics, so
    temperature and clock follow; the file's readings replace those of the card as they are, also by what cannot be, and null
    makes one absent. A file that is not there overrides nothing; one that cannot be read is told in the samples' errors, and the
    last good one holds.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        host: str | None = None,
        scenario: Scenario | None = None,
        overrides: Path | None = None,
    ) -> None:
        self._host = host or socket.gethostname()
        told = scenario or Scenario(seed=seed)
        scripts = [*told.cards[:count], *[CardScript()] * (count - len(told.cards))]
        self._courses = [Course(told.seed, index, script) for index, script in enumerate(scripts)]
        self._cards = [Silicon(course.profile) for course in self._courses]
        self._overrides = _Overrides(overrides)
        self._began_s: int | None = None
        self.unavailable_reason = None if count else "no card is simulated: gpus.source is simulated:0."

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return one sample per card."""
        self._overrides.refresh()
        second = (now_ms - _BEGAN_MS) // 1000
        self._began_s = second if self._began_s is None else self._began_s
        return [self._sample(index, second, now_ms) for index in range(len(self._cards))]

    def close(self) -> None:
        """Do nothing."""

    def _sample(self, index: int, second: int, now_ms: int) -> GPUMetrics:
        course, card, row = self._courses[index], self._cards[index], self._overrides.row(index)
        assert self._began_s is not None
        began_s, since_s = self._began_s, second - self._began_s
        drives = {name: row[name] for name in _DRIVES if row.get(name) is not None}

        def drive(at_s: float) -> Drive:
            return replace(course.drive(at_s, at_s - began_s), **drives)

        card.advance(second, drive)
        gpu = GpuId(f"GPU-simulated-{index}", index, card.profile.name, self._host)
        problem = self._overrides.errors
        if row.get("lost", course.is_lost(since_s)):
            why = "lost by override" if row.get("lost") else "lost by the scenario"
            return GPUMetrics(gpu, GpuSource.SIMULATED, now_ms, lost=True, errors=[*problem, ReadingError("gpu", why)])
        sample = replace(_shown(gpu, card, drive(second), now_ms), faults=course.faults(since_s), errors=problem)
        changes = {name: row[name] for name in (*_NUMBERS, *_LISTS) if name in row}
        sample = _changed(sample, dict.fromkeys(course.absent(since_s)), "absent by the scenario")
        return _changed(sample, changes, "absent by override")


def _shown(gpu: GpuId, card: Silicon, drive: Drive, now_ms: int) -> GPUMetrics:
    total_bytes = card.profile.memory_bytes
    used_bytes = int(total_bytes * drive.memory_ratio)
    return GPUMetrics(
        gpu,
        GpuSource.SIMULATED,
        now_ms,
        memory_total_bytes=total_bytes,
        memory_used_bytes=used_bytes,
        memory_free_bytes=total_bytes - used_bytes,
        utilization_ratio=round(drive.load, 2),
        temperature_c=round(card.temperature_c, 1),
        power_w=round(card.power_w(drive.load), 1),
        energy_joules_total=round(card.energy_joules, 3),
        sm_clock_mhz=card.sm_clock_mhz(drive.load),
        clock_event_reasons=card.clock_event_reasons(drive.load),
        temperature_limit_c=card.profile.limit_c,
    )


def _changed(sample: GPUMetrics, changes: dict[str, Any], why_absent: str) -> GPUMetrics:
    if not changes:
        return sample
    absent = [ReadingError(name, why_absent) for name, value in changes.items() if value is None]
    changed = replace(sample, **changes, errors=[*sample.errors, *absent])
    used, total = changed.memory_used_bytes, changed.memory_total_bytes
    free = None if used is None or total is None else max(total - used, 0)
    return replace(changed, memory_free_bytes=free)


class _Overrides:
    """The file of overrides, read again when it changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        self.errors: list[ReadingError] = []

    def refresh(self) -> None:
        if self._path is None:
            return
        try:
            stat = self._path.stat()
        except OSError:
            self._seen, self._rows, self.errors = None, {}, []
            return
        seen = (stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            self._seen = seen
            self._load(self._path)

    def row(self, index: int) -> dict[str, Any]:
        return self._rows.get(str(index), {})

    def _load(self, path: Path) -> None:
        try:
            rows = orjson.loads(path.read_bytes())
            self._rows = {index: _checked(row) for index, row in rows.items()}
            self.errors = []
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self.errors = [ReadingError("overrides", f"{path.name} cannot be used: {type(error).__name__}")]


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with whole bytes and clocks. Raises: TypeError, ValueError, AttributeError."""
    checked = dict(row.items())
    for name in (*_NUMBERS, *_DRIVES):
        if checked.get(name) is not None:
            whole = name.endswith(("_bytes", "_mhz"))
            checked[name] = int(checked[name]) if whole else float(checked[name])
    if any(not isinstance(checked.get(name, []), list) for name in _LISTS):
        raise TypeError("clock_event_reasons and faults are lists")
    return checked
