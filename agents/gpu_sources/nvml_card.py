"""What one card says through NVML, call by call.

A driver, a card or a mode (MIG, vGPU, a container) may refuse any single reading. Whatever it refuses is None with the
driver's reason, never 0: a card that does not tell its temperature is not cold.
Source: the units and the bits are those of `nvml.h` (milliwatts, millijoules, bytes, MHz, per cent).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from schemas.gpu import GpuId, GPUMetrics, GpuProcess, GpuSource, ReadingError
from streams.faults import FaultLog

# Bits of nvmlDeviceGetCurrentClocksEventReasons, by position.
CLOCK_EVENT_REASONS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "display_clock_setting",
    "board_limit",
    "reliability",
)
# More reports than this between two reads say no more.
_MOST_EVENTS = 16
_NOT_OF_AN_INSTANCE = "not told for an instance (MIG), only for its card"

_T = TypeVar("_T")


class CardLost(Exception):
    """The card has fallen off the bus."""


@dataclass
class Asking:
    """Asks one card call by call, and notes which readings are not there."""

    nvml: Any
    errors: list[ReadingError] = field(default_factory=list)
    needs_reset: bool = False

    def get(self, name: str, *calls: Callable[[], _T]) -> _T | None:
        """Return what the first call gives that this driver has. Raises: CardLost."""
        failure: Exception | None = None
        for call in calls:
            try:
                return call()
            except self.nvml.NVMLError_GpuIsLost as error:
                raise CardLost(reason(error)) from error
            except (self.nvml.NVMLError_FunctionNotFound, self.nvml.NVMLLibraryMismatchError) as error:
                failure = error  # an older driver: the next call is the older name
            except failures(self.nvml) as error:
                failure = error
                self.needs_reset |= isinstance(error, self.nvml.NVMLError_ResetRequired)
                break
        self.note(name, reason(failure))
        return None

    def quietly(self, call: Callable[[], _T]) -> _T | None:
        """Return what a call gives that many cards do not have, without a word when this one has not. Raises: CardLost."""
        kept = list(self.errors)
        found = self.get("", call)
        self.errors[:] = kept
        return found

    def note(self, name: str, why: str) -> None:
        """Note that a reading is not there; of many processes the first says it for all."""
        if all(error.field != name for error in self.errors):
            self.errors.append(ReadingError(name, why))


def failures(nvml: Any) -> tuple[type[Exception], ...]:
    """Return what the module raises when the driver refuses."""
    return nvml.NVMLError, nvml.NVMLLibraryMismatchError, UnicodeDecodeError


@dataclass
class Watch:
    """The faults of one card: its error reports since the watch began, and what it says of its memory."""

    nvml: Any
    log: FaultLog = field(default_factory=FaultLog)
    _events: Any = None
    _has_begun: bool = False

    def begin(self, handle: Any) -> None:
        """Ask once for the card's error reports; a driver or a container that gives none leaves the rest to be watched."""
        if self._has_begun:
            return
        self._has_begun, nvml = True, self.nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
            wanted = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
            nvml.nvmlDeviceRegisterEvents(handle, wanted, self._events)
        except failures(nvml):
            self._end_reports()

    def end(self) -> None:
        """Let go of the driver; what was found so far is kept."""
        self._end_reports()
        self._has_begun = False

    def _end_reports(self) -> None:
        """Ask for no more error reports."""
        if self._events is not None:
            with suppress(*failures(self.nvml)):
                self.nvml.nvmlEventSetFree(self._events)
        self._events = None

    def look(self, asking: Asking, handle: Any, now_ms: int) -> list[str]:
        """Return the faults that hold now. Raises: CardLost."""
        nvml = self.nvml
        for code in self._reports():
            self.log.xid(code, now_ms=now_ms)
        uncorrected = asking.quietly(
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            )
        )
        if uncorrected is not None:
            self.log.uncorrected(uncorrected, now_ms=now_ms)
        rows = asking.quietly(lambda: nvml.nvmlDeviceGetRemappedRows(handle))
        found = self.log.active(now_ms=now_ms)
        if rows is not None and rows[3]:
            found.append("row_remap_failed")
        if asking.needs_reset:
            found.append("reset_required")
        if self._events is None:
            asking.note("faults", "the driver gives no error reports here")
        return found

    def _reports(self) -> list[int]:
        found: list[int] = []
        while self._events is not None and len(found) < _MOST_EVENTS:
            try:
                report = self.nvml.nvmlEventSetWait_v2(self._events, 0)
            except failures(self.nvml):  # none, as a time-out
                break
            if report.eventType == self.nvml.nvmlEventTypeXidCriticalError:
                found.append(report.eventData)
        return found


def readings(nvml: Any, handle: Any, gpu: GpuId, watch: Watch, asking: Asking, now_ms: int) -> GPUMetrics:
    """Return a sample of a card. Raises: CardLost."""
    sensor = nvml.NVML_TEMPERATURE_GPU
    rates = asking.get("utilization_ratio", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power_mw = asking.get("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    energy_mj = asking.get("energy_joules_total", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    temperature_c = asking.get(
        "temperature_c",
        lambda: nvml.nvmlDeviceGetTemperatureV(handle, sensor),
        lambda: nvml.nvmlDeviceGetTemperature(handle, sensor),
    )
    limit_c = asking.quietly(
        lambda: nvml.nvmlDeviceGetTemperatureThreshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    )
    reasons = asking.get(
        "clock_event_reasons",
        lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    return GPUMetrics(
        gpu,
        GpuSource.NVML,
        now_ms,
        **_memory(nvml, handle, asking),
        utilization_ratio=None if rates is None else rates.gpu / 100,
        temperature_c=None if temperature_c is None else float(temperature_c),
        power_w=None if power_mw is None else power_mw / 1000,
        energy_joules_total=None if energy_mj is None else energy_mj / 1000,
        sm_clock_mhz=asking.get("sm_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        clock_event_reasons=clock_event_reasons(reasons or 0),
        processes=_processes(nvml, handle, asking),
        faults=watch.look(asking, handle, now_ms),
        errors=asking.errors,
        temperature_limit_c=None if limit_c is None else float(limit_c),
    )


def instance_readings(nvml: Any, handle: Any, gpu: GpuId, card: GPUMetrics, asking: Asking) -> GPUMetrics:
    """Return a sample of an instance (MIG): its own memory and processes, its card's heat and faults. Raises: CardLost."""
    memory, processes = _memory(nvml, handle, asking), _processes(nvml, handle, asking)
    for name in ("utilization_ratio", "power_w", "energy_joules_total"):
        asking.note(name, _NOT_OF_AN_INSTANCE)
    return GPUMetrics(
        gpu,
        card.source,
        card.sampled_at_ms,
        **memory,
        temperature_c=card.temperature_c,
        sm_clock_mhz=card.sm_clock_mhz,
        clock_event_reasons=card.clock_event_reasons,
        processes=processes,
        faults=card.faults,
        errors=asking.errors,
        temperature_limit_c=card.temperature_limit_c,
    )


def _memory(nvml: Any, handle: Any, asking: Asking) -> dict[str, Any]:
    # The first form of the call, whose `used` includes what the driver reserves: used + free is the total.
    memory = asking.get("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    if memory is None:
        return {}
    return {
        "memory_total_bytes": memory.total,
        "memory_used_bytes": memory.used,
        "memory_free_bytes": memory.free,
    }


def _processes(nvml: Any, handle: Any, asking: Asking) -> list[GpuProcess]:
    running = asking.get(
        "processes",
        lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle),
        lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle),
    )
    return [_process(nvml, asking, each.pid, each.usedGpuMemory) for each in running or []]


def _process(nvml: Any, asking: Asking, pid: int, used_bytes: int | None) -> GpuProcess:
    if used_bytes is None:
        asking.note("processes.used_bytes", "the driver does not say here (container, MIG or vGPU)")
    name = asking.get("processes.name", lambda: nvml.nvmlSystemGetProcessName(pid))
    # Only the program: its folder and its arguments are nobody's business on a topic.
    return GpuProcess(pid, name and name.partition(" ")[0].rpartition("/")[2], used_bytes)


def clock_event_reasons(bits: int) -> list[str]:
    """Return the names of the bits that are set, `bit_<n>` for one without a name. 0x48 -> hw_slowdown, hw_thermal_slowdown."""
    names = dict(enumerate(CLOCK_EVENT_REASONS))
    return [names.get(n, f"bit_{n}") for n in range(bits.bit_length()) if bits >> n & 1]


def reason(error: Exception | None) -> str:
    """Return what an error says, else its name."""
    return str(error) or type(error).__name__
