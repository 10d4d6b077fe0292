"""Readers of GPU samples: what they say, and what they say when they cannot."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from agents.gpu_sources import NoReader, UnknownSource, reader
from agents.gpu_sources.nvml import READS_PER_RETRY, NVMLReader, clock_event_reasons
from agents.gpu_sources.simulated import TOTAL_BYTES, SimulatedReader
from schemas.codec import decode, encode
from schemas.gpu import GpuId, GPUMetrics, GpuProcess, GpuSource, ReadingError

NOW_MS = 1_795_420_000_000
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
LOST = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
NO_FUNCTION = pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
NO_DRIVER = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


class FakeNvml:
    """The part of `pynvml` that is used, for cards that are numbers. `answers` replaces what a function gives or raises."""

    NVMLError = pynvml.NVMLError
    NVMLError_GpuIsLost = pynvml.NVMLError_GpuIsLost
    NVMLError_FunctionNotFound = pynvml.NVMLError_FunctionNotFound
    NVMLLibraryMismatchError = pynvml.NVMLLibraryMismatchError
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = pynvml.NVML_TEMPERATURE_GPU, pynvml.NVML_CLOCK_SM

    def __init__(self, count: int = 1, **answers: Any) -> None:
        self.calls: list[str] = []
        self.answers: dict[str, Any] = {
            "Init": None,
            "Shutdown": None,
            "DeviceGetCount": count,
            "DeviceGetHandleByIndex": lambda index: index,
            "DeviceGetUUID": lambda handle: f"GPU-{handle}",
            "DeviceGetName": "NVIDIA L4",
            "DeviceGetMemoryInfo": SimpleNamespace(total=24_000, used=6_000, free=18_000),
            "DeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=5),
            "DeviceGetPowerUsage": 71_500,
            "DeviceGetTotalEnergyConsumption": 1_234_567,
            "DeviceGetTemperatureV": 61,
            "DeviceGetTemperature": 60,
            "DeviceGetCurrentClocksEventReasons": 0x44,
            "DeviceGetCurrentClocksThrottleReasons": 0x8,
            "DeviceGetClockInfo": 2040,
            "DeviceGetComputeRunningProcesses_v3": [SimpleNamespace(pid=7, usedGpuMemory=500)],
            "DeviceGetComputeRunningProcesses_v2": [],
            "SystemGetProcessName": "/opt/llama/llama-server --model /secret/path",
            **answers,
        }

    def __getattr__(self, name: str) -> Any:
        answer = self.answers[name.removeprefix("nvml")]

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            given = answer(*arguments[:1]) if callable(answer) else answer
            if isinstance(given, Exception):
                raise given
            return given

        return call


def one(nvml: FakeNvml) -> GPUMetrics:
    """Return the sample of the only card."""
    [sample] = NVMLReader(nvml, host="h").read(now_ms=NOW_MS)
    return sample


def test_a_card_is_read_in_base_units() -> None:
    assert one(FakeNvml()) == GPUMetrics(
        GpuId("GPU-0", 0, "NVIDIA L4", "h"),
        GpuSource.NVML,
        NOW_MS,
        memory_total_bytes=24_000,
        memory_used_bytes=6_000,
        memory_free_bytes=18_000,
        utilization_ratio=0.37,
        temperature_c=61.0,
        power_w=71.5,
        energy_joules_total=1234.567,
        sm_clock_mhz=2040,
        clock_event_reasons=["sw_power_cap", "hw_thermal_slowdown"],
        processes=[GpuProcess(7, "llama-server", 500)],
    )


@pytest.mark.parametrize(
    ("function", "reading", "absent"),
    [
        ("DeviceGetMemoryInfo", "memory", ["memory_total_bytes", "memory_used_bytes", "memory_free_bytes"]),
        ("DeviceGetUtilizationRates", "utilization_ratio", ["utilization_ratio"]),
        ("DeviceGetTemperatureV", "temperature_c", ["temperature_c"]),
        ("DeviceGetPowerUsage", "power_w", ["power_w"]),
        ("DeviceGetTotalEnergyConsumption", "energy_joules_total", ["energy_joules_total"]),
        ("DeviceGetClockInfo", "sm_clock_mhz", ["sm_clock_mhz"]),
    ],
)
def test_a_reading_that_the_driver_refuses_is_none_with_its_reason(
    function: str, reading: str, absent: list[str]
) -> None:
    expected: Any = dict.fromkeys(absent)
    sample = one(FakeNvml(**{function: NOT_SUPPORTED}))
    assert sample == replace(one(FakeNvml()), **expected, errors=[ReadingError(reading, "Not Supported")])


@pytest.mark.parametrize("function", ["DeviceGetCurrentClocksEventReasons", "DeviceGetComputeRunningProcesses_v3"])
def test_a_list_that_the_driver_refuses_is_empty_with_its_reason(function: str) -> None:
    sample = one(FakeNvml(**{function: NOT_SUPPORTED}))
    assert [error.reason for error in sample.errors] == ["Not Supported"]


def test_an_older_driver_is_asked_by_the_older_names() -> None:
    nvml = FakeNvml(
        DeviceGetTemperatureV=NO_FUNCTION,
        DeviceGetCurrentClocksEventReasons=pynvml.NVMLLibraryMismatchError("older"),
        DeviceGetComputeRunningProcesses_v3=NO_FUNCTION,
    )
    sample = one(nvml)
    assert (sample.temperature_c, sample.clock_event_reasons, sample.processes) == (60.0, ["hw_slowdown"], [])
    assert sample.errors == []


def test_processes_without_a_name_or_size_are_told_once() -> None:
    running = [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in (1, 2)]
    nvml = FakeNvml(DeviceGetComputeRunningProcesses_v3=running, SystemGetProcessName=NOT_SUPPORTED)
    sample = one(nvml)
    assert sample.processes == [GpuProcess(1, None, None), GpuProcess(2, None, None)]
    assert [error.field for error in sample.errors] == ["processes.used_bytes", "processes.name"]


def test_a_name_that_is_not_text_is_absent() -> None:
    broken = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    assert one(FakeNvml(SystemGetProcessName=broken)).processes == [GpuProcess(7, None, 500)]


def test_a_card_lost_while_it_is_read_keeps_its_name_and_no_reading() -> None:
    sample = one(FakeNvml(DeviceGetPowerUsage=LOST))
    assert sample == GPUMetrics(
        GpuId("GPU-0", 0, "NVIDIA L4", "h"),
        GpuSource.NVML,
        NOW_MS,
        lost=True,
        errors=[ReadingError("gpu", "GPU is lost")],
    )


def test_a_card_lost_later_is_known_by_what_it_said_before() -> None:
    nvml = FakeNvml(count=2)
    gpus = NVMLReader(nvml, host="h")
    gpus.read(now_ms=NOW_MS)
    nvml.answers["DeviceGetHandleByIndex"] = lambda index: LOST if index == 1 else index
    fine, lost = gpus.read(now_ms=NOW_MS)
    assert (fine.lost, lost.lost, lost.gpu.uuid) == (False, True, "GPU-1")


def test_a_card_that_may_not_be_opened_is_not_lost() -> None:
    sample = one(FakeNvml(DeviceGetHandleByIndex=pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)))
    assert (sample.lost, sample.gpu.uuid, sample.memory_used_bytes) == (False, "GPU-unknown-h-0", None)
    assert sample.errors == [ReadingError("gpu", "Insufficient Permissions")]


def test_cards_are_counted_at_each_read() -> None:
    nvml = FakeNvml(count=1)
    gpus = NVMLReader(nvml)
    counts = []
    for nvml.answers["DeviceGetCount"] in (1, 3, 0, 2):
        counts.append(len(gpus.read(now_ms=NOW_MS)))
    assert counts == [1, 3, 0, 2]


def test_a_driver_without_cards_says_so() -> None:
    gpus = NVMLReader(FakeNvml(count=0))
    assert gpus.read(now_ms=NOW_MS) == []
    assert gpus.unavailable_reason == "the NVIDIA driver is loaded and sees no GPU."


def test_a_driver_that_is_absent_is_looked_for_at_every_tenth_read_and_found() -> None:
    nvml = FakeNvml(Init=NO_DRIVER)
    gpus = NVMLReader(nvml)
    assert [gpus.read(now_ms=NOW_MS) for _ in range(READS_PER_RETRY)] == [[]] * 10
    assert nvml.calls == ["nvmlInit"]
    assert gpus.unavailable_reason is not None
    assert "NVML Shared Library Not Found" in gpus.unavailable_reason
    nvml.answers["Init"] = None
    assert len(gpus.read(now_ms=NOW_MS)) == 1
    assert gpus.unavailable_reason is None


def test_a_driver_that_goes_away_is_closed_and_opened_again() -> None:
    nvml = FakeNvml()
    gpus = NVMLReader(nvml)
    gpus.read(now_ms=NOW_MS)
    gone = pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    nvml.answers |= {"DeviceGetCount": gone, "Shutdown": gone}
    assert [gpus.read(now_ms=NOW_MS) for _ in range(READS_PER_RETRY)] == [[]] * 10
    nvml.answers |= {"DeviceGetCount": 1, "Shutdown": None}
    assert len(gpus.read(now_ms=NOW_MS)) == 1
    gpus.close()
    assert nvml.calls.count("nvmlInit") == 2
    assert nvml.calls[-1] == "nvmlShutdown"


def test_the_real_module_without_a_driver_gives_nothing_and_says_why() -> None:
    gpus = reader("nvml")
    samples = gpus.read(now_ms=NOW_MS)
    gpus.close()
    assert bool(samples) == (gpus.unavailable_reason is None)
    assert all(sample.source is GpuSource.NVML for sample in samples)


def test_bits_without_a_name_are_not_hidden() -> None:
    assert clock_event_reasons(0) == []
    assert clock_event_reasons(0x1 | 0x80 | 0x1000) == ["gpu_idle", "hw_power_brake_slowdown", "bit_12"]


def test_simulated_cards_depend_on_the_seed_and_the_time_only() -> None:
    first, again, other = (SimulatedReader(3, seed=seed, host="h") for seed in (1, 1, 2))
    first.read(now_ms=5)
    assert first.read(now_ms=NOW_MS) == again.read(now_ms=NOW_MS)
    assert first.read(now_ms=NOW_MS) != other.read(now_ms=NOW_MS)
    assert [sample.gpu.uuid for sample in other.read(now_ms=NOW_MS)] == [f"GPU-simulated-{n}" for n in range(3)]


def test_simulated_cards_walk_smoothly_within_what_a_card_can_do() -> None:
    gpus = SimulatedReader(1, seed=7)
    walk = [gpus.read(now_ms=NOW_MS + second * 1000)[0] for second in range(1200)]
    used = [sample.memory_used_bytes or 0 for sample in walk]
    warm = [sample.temperature_c or 0.0 for sample in walk]
    energy = [sample.energy_joules_total or 0.0 for sample in walk]
    assert all(0 < each < TOTAL_BYTES for each in used)
    assert max(abs(a - b) for a, b in pairwise(used)) < 0.01 * TOTAL_BYTES
    assert all(30 <= each <= 90 for each in warm)
    assert max(abs(a - b) for a, b in pairwise(warm)) < 3
    assert all(0 <= (sample.utilization_ratio or 0) <= 1 for sample in walk)
    assert all(30 <= later - sooner <= 320 for sooner, later in pairwise(energy))


def test_overrides_replace_readings_while_the_reader_runs(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    gpus = SimulatedReader(2, overrides=path)
    untouched = gpus.read(now_ms=NOW_MS)
    write(path, {"0": {"memory_used_bytes": 20e9, "temperature_c": None, "clock_event_reasons": ["hw_slowdown"]}}, 1)
    first, second = gpus.read(now_ms=NOW_MS)
    assert second == untouched[1]
    assert (first.memory_used_bytes, first.memory_free_bytes) == (20_000_000_000, TOTAL_BYTES - 20_000_000_000)
    assert (first.temperature_c, first.clock_event_reasons) == (None, ["hw_slowdown"])
    assert first.errors == [ReadingError("temperature_c", "absent by override")]
    write(path, {"1": {"lost": True}}, 2)
    first, second = gpus.read(now_ms=NOW_MS)
    assert (first, second.lost, second.memory_used_bytes) == (untouched[0], True, None)
    path.unlink()
    assert gpus.read(now_ms=NOW_MS) == untouched


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"0": 1}', '{"0": {"power_w": "much"}}', '{"0": {"clock_event_reasons": 1}}']
)
def test_overrides_that_cannot_be_used_leave_the_last_good_ones(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpus.json"
    gpus = SimulatedReader(1, overrides=path)
    write(path, {"0": {"temperature_c": 91}}, 1)
    gpus.read(now_ms=NOW_MS)
    path.write_text(text)
    os.utime(path, (2, 2))
    [sample] = gpus.read(now_ms=NOW_MS)
    assert sample.temperature_c == 91.0
    assert [error.field for error in sample.errors] == ["overrides"]


def write(path: Path, overrides: dict[str, Any], at_s: int) -> None:
    """Write the file as if at `at_s`, so that the change shows however quick the test is."""
    path.write_text(json.dumps(overrides))
    os.utime(path, (at_s, at_s))


def test_a_sample_survives_the_wire() -> None:
    sample = one(FakeNvml())
    assert decode(GPUMetrics, encode(sample)) == sample


def test_the_source_setting_names_the_reader() -> None:
    assert isinstance(reader("nvml"), NVMLReader)
    assert isinstance(reader("none"), NoReader)
    assert len(reader("simulated:3").read(now_ms=NOW_MS)) == 3
    assert reader("none").read(now_ms=NOW_MS) == []


@pytest.mark.parametrize(
    ("source", "told"), [("dcgm", "is not there yet"), ("simulated:", "none of"), ("rocm", "none of")]
)
def test_a_source_that_is_not_there_is_refused_with_a_sentence(source: str, told: str) -> None:
    with pytest.raises(UnknownSource, match=told):
        reader(source)
