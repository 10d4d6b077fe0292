"""GPU samples from NVIDIA's driver, through NVML.

A driver, a card or a mode (MIG, vGPU, a container) may refuse any single reading. Whatever it refuses is None with the
driver's reason, never 0: a card that does not tell its temperature is not cold.
Source: the units and the bits are those of `nvml.h` (milliwatts, millijoules, bytes, MHz, per cent).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pynvml

from schemas.gpu import GpuId, GPUMetrics, GpuProcess, GpuSource, ReadingError

# A driver that was absent is looked for again after this many reads; each look costs a search for the library.
READS_PER_RETRY = 10

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

_T = TypeVar("_T")


class _CardLost(Exception):
    """The card has fallen off the bus."""


class NVMLReader:
    """A `GpuReader` of this host's NVIDIA cards; `nvml` is the module `pynvml` or one with its names.

    Without a driver `read` gives nothing, `unavailable_reason` says why, and every tenth read looks again. The cards are
    counted at each read.
    """

    def __init__(self, nvml: Any = pynvml, *, host: str | None = None) -> None:
        self._nvml = nvml
        self._host = host or socket.gethostname()
        self._errors = (nvml.NVMLError, nvml.NVMLLibraryMismatchError, UnicodeDecodeError)
        self._ids: dict[int, GpuId] = {}  # a lost card no longer tells its own name
        self._is_open = False
        self._reads_until_retry = 0
        self.unavailable_reason: str | None = None

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return one sample per card, [] when there is none."""
        if not self._open():
            return []
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._errors as error:
            self.close()
            self._unavailable(error)
            return []
        self.unavailable_reason = None if count else "the NVIDIA driver is loaded and sees no GPU."
        return [self._sample(index, now_ms) for index in range(count)]

    def close(self) -> None:
        """Let go of the driver; a later `read` opens it again."""
        if self._is_open:
            self._is_open = False
            try:
                self._nvml.nvmlShutdown()
            except self._errors as error:  # it is gone already
                self.unavailable_reason = _reason(error)

    def _open(self) -> bool:
        if self._is_open:
            return True
        if self._reads_until_retry > 0:
            self._reads_until_retry -= 1
            return False
        try:
            self._nvml.nvmlInit()
        except self._errors as error:
            self._unavailable(error)
            return False
        self._is_open = True
        return True

    def _unavailable(self, error: Exception) -> None:
        self._reads_until_retry = READS_PER_RETRY - 1
        self.unavailable_reason = f"NVML does not answer: {_reason(error)}; is the NVIDIA driver loaded here?"

    def _sample(self, index: int, now_ms: int) -> GPUMetrics:
        card = _Card(self._nvml, self._errors)
        try:
            handle = card.get("gpu", lambda: self._nvml.nvmlDeviceGetHandleByIndex(index))
            if handle is None:
                return GPUMetrics(self._known(index), GpuSource.NVML, now_ms, errors=card.errors)
            self._ids[index] = self._identify(card, handle, index)
            return _readings(self._nvml, card, handle, self._ids[index], now_ms)
        except _CardLost as lost:
            errors = [ReadingError("gpu", str(lost))]
            return GPUMetrics(self._known(index), GpuSource.NVML, now_ms, lost=True, errors=errors)

    def _identify(self, card: _Card, handle: Any, index: int) -> GpuId:
        known = self._known(index)
        uuid = card.get("gpu.uuid", lambda: self._nvml.nvmlDeviceGetUUID(handle))
        name = card.get("gpu.name", lambda: self._nvml.nvmlDeviceGetName(handle))
        return GpuId(uuid or known.uuid, index, name or known.name, self._host)

    def _known(self, index: int) -> GpuId:
        # The uuid is a record's key, so a card that never told its own gets one that no other card has.
        return self._ids.get(index) or GpuId(f"GPU-unknown-{self._host}-{index}", index, "unknown", self._host)


@dataclass
class _Card:
    """Takes readings one by one, and notes which are not there."""

    nvml: Any
    failures: tuple[type[Exception], ...]
    errors: list[ReadingError] = field(default_factory=list)

    def get(self, name: str, *calls: Callable[[], _T]) -> _T | None:
        """Return what the first call gives that this driver has. Raises: _CardLost."""
        failure: Exception | None = None
        for call in calls:
            try:
                return call()
            except self.nvml.NVMLError_GpuIsLost as error:
                raise _CardLost(_reason(error)) from error
            except (self.nvml.NVMLError_FunctionNotFound, self.nvml.NVMLLibraryMismatchError) as error:
                failure = error  # an older driver: the next call is the older name
            except self.failures as error:
                failure = error
                break
        self.note(name, _reason(failure))
        return None

    def note(self, name: str, reason: str) -> None:
        """Note that a reading is not there; of many processes the first says it for all."""
        if all(error.field != name for error in self.errors):
            self.errors.append(ReadingError(name, reason))


def _readings(nvml: Any, card: _Card, handle: Any, gpu: GpuId, now_ms: int) -> GPUMetrics:
    sensor = nvml.NVML_TEMPERATURE_GPU
    # The first form of the memory call, whose `used` includes what the driver reserves: used + free is the total.
    memory = card.get("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    rates = card.get("utilization_ratio", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power_mw = card.get("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    energy_mj = card.get("energy_joules_total", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    temperature_c = card.get(
        "temperature_c",
        lambda: nvml.nvmlDeviceGetTemperatureV(handle, sensor),
        lambda: nvml.nvmlDeviceGetTemperature(handle, sensor),
    )
    reasons = card.get(
        "clock_event_reasons",
        lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    return GPUMetrics(
        gpu,
        GpuSource.NVML,
        now_ms,
        memory_total_bytes=None if memory is None else memory.total,
        memory_used_bytes=None if memory is None else memory.used,
        memory_free_bytes=None if memory is None else memory.free,
        utilization_ratio=None if rates is None else rates.gpu / 100,
        temperature_c=None if temperature_c is None else float(temperature_c),
        power_w=None if power_mw is None else power_mw / 1000,
        energy_joules_total=None if energy_mj is None else energy_mj / 1000,
        sm_clock_mhz=card.get("sm_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        clock_event_reasons=clock_event_reasons(reasons or 0),
        processes=_processes(nvml, card, handle),
        errors=card.errors,
    )


def _processes(nvml: Any, card: _Card, handle: Any) -> list[GpuProcess]:
    running = card.get(
        "processes",
        lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle),
        lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle),
    )
    return [_process(nvml, card, each.pid, each.usedGpuMemory) for each in running or []]


def _process(nvml: Any, card: _Card, pid: int, used_bytes: int | None) -> GpuProcess:
    if used_bytes is None:
        card.note("processes.used_bytes", "the driver does not say here (container, MIG or vGPU)")
    name = card.get("processes.name", lambda: nvml.nvmlSystemGetProcessName(pid))
    # Only the program: its folder and its arguments are nobody's business on a topic.
    return GpuProcess(pid, name and name.partition(" ")[0].rpartition("/")[2], used_bytes)


def clock_event_reasons(bits: int) -> list[str]:
    """Return the names of the bits that are set, `bit_<n>` for one without a name. 0x48 -> hw_slowdown, hw_thermal_slowdown."""
    names = dict(enumerate(CLOCK_EVENT_REASONS))
    return [names.get(n, f"bit_{n}") for n in range(bits.bit_length()) if bits >> n & 1]


def _reason(error: Exception | None) -> str:
    return str(error) or type(error).__name__
