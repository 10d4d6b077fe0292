"""Cards that are not there: for a machine without a GPU, for demonstrations and tests."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, replace
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import orjson

from schemas.gpu import GpuId, GPUMetrics, GpuSource, ReadingError

GIB = 1 << 30
TOTAL_BYTES = 24 * GIB
# Energy counts from here: any fixed time will do, so that two readers of one seed agree.
_LOADED_MS = 1_767_225_600_000
_IDLE_W, _BUSY_W = 30.0, 320.0
_COOL_C, _WARM_C = 38.0, 40.0
# A card warms and cools behind its load.
_THERMAL_LAG_S = 15.0
_SLOW_CLOCK_MHZ, _FAST_CLOCK_MHZ = 1410, 2520
_NUMBERS = ("memory_total_bytes", "memory_used_bytes", "utilization_ratio", "temperature_c", "power_w", "sm_clock_mhz")


@dataclass(frozen=True, slots=True)
class Wave:
    """A smooth walk between 0 and 1: two sines around the middle. It is a function of the time alone."""

    periods_s: tuple[float, float]
    phases: tuple[float, float]
    amplitudes: tuple[float, float] = (0.35, 0.10)

    def at(self, t_s: float) -> float:
        """Return the value at `t_s`."""
        return 0.5 + sum(a * sin(2 * pi * t_s / period + phase) for a, period, phase in self._terms())

    def integral(self, t_s: float) -> float:
        """Return the area under the wave from 0 to `t_s`."""
        return 0.5 * t_s + sum(
            a * period / (2 * pi) * (cos(phase) - cos(2 * pi * t_s / period + phase))
            for a, period, phase in self._terms()
        )

    def _terms(self) -> zip[tuple[float, float, float]]:
        return zip(self.amplitudes, self.periods_s, self.phases, strict=True)


def _wave(dice: random.Random, slow_s: float, quick_s: float) -> Wave:
    return Wave(
        (slow_s * dice.uniform(0.8, 1.25), quick_s * dice.uniform(0.8, 1.25)),
        (dice.uniform(0, 2 * pi), dice.uniform(0, 2 * pi)),
    )


class SimulatedReader:
    """A `GpuReader` of `count` cards of 24 GiB. What they show depends on the seed and the time only.

    `overrides` is a JSON file that may change while the reader runs, `{"<index>": {"memory_used_bytes": 2e10,
    "temperature_c": 91, "lost": true}}`: the file's readings replace those of the walk, null makes one absent. A file that
    is not there overrides nothing; one that cannot be read is told in the samples' errors, and the last good one holds.
    """

    def __init__(self, count: int, *, seed: int = 0, host: str | None = None, overrides: Path | None = None) -> None:
        self._host = host or socket.gethostname()
        self._cards = [_cards_waves(seed, index) for index in range(count)]
        self._overrides = _Overrides(overrides)
        self.unavailable_reason = None if count else "no card is simulated: gpus.source is simulated:0."

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return one sample per card."""
        self._overrides.refresh()
        return [self._overrides.apply(self._sample(index, now_ms)) for index in range(len(self._cards))]

    def close(self) -> None:
        """Do nothing."""

    def _sample(self, index: int, now_ms: int) -> GPUMetrics:
        memory, load = self._cards[index]
        t_s = (now_ms - _LOADED_MS) / 1000
        used_bytes = int(TOTAL_BYTES * (0.1 + 0.8 * memory.at(t_s)))
        busy_w = _BUSY_W - _IDLE_W
        return GPUMetrics(
            GpuId(f"GPU-simulated-{index}", index, "simulated 24 GB", self._host),
            GpuSource.SIMULATED,
            now_ms,
            memory_total_bytes=TOTAL_BYTES,
            memory_used_bytes=used_bytes,
            memory_free_bytes=TOTAL_BYTES - used_bytes,
            utilization_ratio=round(load.at(t_s), 2),
            temperature_c=round(_COOL_C + _WARM_C * load.at(t_s - _THERMAL_LAG_S), 1),
            power_w=round(_IDLE_W + busy_w * load.at(t_s), 1),
            energy_joules_total=round(max(_IDLE_W * t_s + busy_w * load.integral(t_s), 0.0), 3),
            sm_clock_mhz=round(_SLOW_CLOCK_MHZ + (_FAST_CLOCK_MHZ - _SLOW_CLOCK_MHZ) * load.at(t_s)),
        )


def _cards_waves(seed: int, index: int) -> tuple[Wave, Wave]:
    dice = random.Random(f"{seed}/{index}")  # noqa: S311 - a walk, no secret
    return _wave(dice, 600.0, 150.0), _wave(dice, 90.0, 20.0)


class _Overrides:
    """The file of overrides, read again when it changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._problem: str | None = None

    def refresh(self) -> None:
        if self._path is None:
            return
        try:
            stat = self._path.stat()
        except OSError:
            self._seen, self._rows, self._problem = None, {}, None
            return
        seen = (stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            self._seen = seen
            self._load(self._path)

    def apply(self, sample: GPUMetrics) -> GPUMetrics:
        problem = [] if self._problem is None else [ReadingError("overrides", self._problem)]
        row = self._rows.get(str(sample.gpu.index), {})
        if row.get("lost") is True:
            errors = [*problem, ReadingError("gpu", "lost by override")]
            return GPUMetrics(sample.gpu, sample.source, sample.sampled_at_ms, lost=True, errors=errors)
        changes = {name: row[name] for name in _NUMBERS if name in row}
        absent = [ReadingError(name, "absent by override") for name, value in changes.items() if value is None]
        changed = replace(sample, **changes, errors=[*problem, *absent])
        used, total = changed.memory_used_bytes, changed.memory_total_bytes
        free = None if used is None or total is None else max(total - used, 0)
        reasons = list(row.get("clock_event_reasons", sample.clock_event_reasons))
        return replace(changed, memory_free_bytes=free, clock_event_reasons=reasons)

    def _load(self, path: Path) -> None:
        try:
            rows = orjson.loads(path.read_bytes())
            self._rows = {index: _checked(row) for index, row in rows.items()}
            self._problem = None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self._problem = f"{path.name} cannot be used: {type(error).__name__}"


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with whole bytes and clocks. Raises: TypeError, ValueError, AttributeError."""
    checked = dict(row.items())
    for name in _NUMBERS:
        if checked.get(name) is not None:
            whole = name.endswith(("_bytes", "_mhz"))
            checked[name] = int(checked[name]) if whole else float(checked[name])
    if not isinstance(checked.get("clock_event_reasons", []), list):
        raise TypeError("clock_event_reasons is a list")
    return checked
