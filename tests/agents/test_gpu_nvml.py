"""The real nvidia-ml-py and the real reader on a library that answers what a card or a driver may answer."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from structlog.testing import capture_logs

from agents.gpu_publisher import publish
from agents.gpu_sources.bounded import Bounded
from agents.gpu_sources.nvml import READS_PER_RETRY, NVMLReader
from agents.gpu_sources.nvml_card import clock_event_reasons
from cli.gpu_publisher import once
from schemas.codec import decode
from schemas.gpu import GpuId, GPUMetrics, GpuProcess, GpuSource, ReadingError
from streams.settings import GpuSettings
from tests.support.nvml import GIB, NAME, Machine, build, cards_or_skip, loaded

NOW_MS = 1_795_420_000_000
LOST, TIMEOUT, RESET_REQUIRED, NO_PERMISSION, NOT_SUPPORTED, NO_DRIVER = 15, 10, 16, 4, 3, 9
# Every call that a sample is made of, and the field whose error says that it was refused.
CALLS = {
    "MemoryInfo": "memory",
    "UtilizationRates": "utilization_ratio",
    "PowerUsage": "power_w",
    "TotalEnergyConsumption": "energy_joules_total",
    "TemperatureV": "temperature_c",
    "CurrentClocksEventReasons": "clock_event_reasons",
    "ClockInfo": "sm_clock_mhz",
    "ComputeRunningProcesses": "processes",
    "RegisterEvents": "faults",
    "UUID": "gpu.uuid",
    "Name": "gpu.name",
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of today's driver."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine whose driver pynvml calls, without a card so far."""
    with loaded(library):
        yield Machine(tmp_path / "machine", monkeypatch)


@pytest.fixture
def gpus(machine: Machine) -> Iterator[NVMLReader]:
    """A reader of that machine."""
    found = NVMLReader(host="h")
    yield found
    found.close()


def test_should_read_a_card_in_base_units(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(pids=1, pid__0=7, pid__0__used=500)
    machine.set({"pid.7.name": "/opt/llama/llama-server --model /secret/path"})
    assert [
        GPUMetrics(
            GpuId("GPU-0", 0, "NVIDIA L4", "h"),
            GpuSource.NVML,
            NOW_MS,
            memory_total_bytes=24 * GIB,
            memory_used_bytes=6 * GIB,
            memory_free_bytes=18 * GIB,
            utilization_ratio=0.37,
            temperature_c=61.0,
            power_w=71.5,
            energy_joules_total=1234.567,
            sm_clock_mhz=2040,
            clock_event_reasons=["sw_power_cap", "hw_thermal_slowdown"],
            processes=[GpuProcess(7, "llama-server", 500)],
            temperature_limit_c=90.0,
        )
    ] == gpus.read(now_ms=NOW_MS)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, TIMEOUT])
@pytest.mark.parametrize("call", CALLS)
def test_should_tell_why_a_reading_is_absent(machine: Machine, gpus: NVMLReader, call: str, code: int) -> None:
    machine.card(**{f"fail__{call}": code})
    [sample] = gpus.read(now_ms=NOW_MS)
    assert [CALLS[call]] == [error.field for error in sample.errors]
    assert str(pynvml.NVMLError(code)) == sample.errors[0].reason or call == "RegisterEvents"
    assert not sample.lost


@pytest.mark.parametrize("call", ["TemperatureThreshold", "TotalEccErrors", "RemappedRows", "MigMode"])
def test_should_say_nothing_of_what_many_cards_do_not_have(machine: Machine, gpus: NVMLReader, call: str) -> None:
    machine.card(**{f"fail__{call}": NOT_SUPPORTED})
    [sample] = gpus.read(now_ms=NOW_MS)
    assert ([], []) == (sample.errors, sample.faults)


@pytest.mark.parametrize("call", ["HandleByIndex", *(call for call in CALLS if call != "RegisterEvents")])
def test_should_report_a_card_lost_at_any_call(machine: Machine, gpus: NVMLReader, call: str) -> None:
    machine.card()
    gpus.read(now_ms=NOW_MS)
    machine.card(**{f"fail__{call}": LOST})
    [sample] = gpus.read(now_ms=NOW_MS)
    errors = [ReadingError("gpu", "GPU is lost")]
    assert GPUMetrics(GpuId("GPU-0", 0, "NVIDIA L4", "h"), GpuSource.NVML, NOW_MS, lost=True, errors=errors) == sample


def test_should_report_a_card_that_needs_a_reset_as_broken(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(fail=RESET_REQUIRED)
    [sample] = gpus.read(now_ms=NOW_MS)
    assert (["reset_required"], False, None) == (sample.faults, sample.lost, sample.memory_used_bytes)


def test_should_see_a_card_go_and_come_back(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(0)
    machine.card(1)
    assert [False, False] == [sample.lost for sample in gpus.read(now_ms=NOW_MS)]
    machine.card(1, fail=LOST)
    told = [[(s.gpu.uuid, s.lost) for s in gpus.read(now_ms=NOW_MS)] for _ in range(READS_PER_RETRY)]
    assert [[("GPU-0", False), ("GPU-1", True)]] * READS_PER_RETRY == told
    machine.set(count=1)  # the driver that is opened anew no longer lists it
    told = [[(s.gpu.uuid, s.lost) for s in gpus.read(now_ms=NOW_MS)] for _ in range(READS_PER_RETRY)]
    assert [[("GPU-0", False), ("GPU-1", True)]] * READS_PER_RETRY == told
    machine.set({"count": 2, "1.fail": None})
    told = [[(s.gpu.uuid, s.lost) for s in gpus.read(now_ms=NOW_MS)] for _ in range(READS_PER_RETRY)]
    assert [("GPU-0", False), ("GPU-1", False)] == told[-1]


def test_should_know_a_card_by_its_uuid_when_another_takes_its_place(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(0)
    machine.card(1)
    gpus.read(now_ms=NOW_MS)
    machine.card(0, fail=LOST)
    for _ in range(READS_PER_RETRY):
        gpus.read(now_ms=NOW_MS)
    machine.set({"count": 1, "0.uuid": "GPU-1", "0.fail": None})
    told = {sample.gpu.uuid: sample.lost for sample in gpus.read(now_ms=NOW_MS)}
    assert {"GPU-1": False, "GPU-0": True} == told


def test_should_wait_for_a_driver_that_is_not_loaded(machine: Machine, gpus: NVMLReader) -> None:
    machine.card()
    machine.set({"init.fail": NO_DRIVER})
    assert [] == gpus.read(now_ms=NOW_MS)
    assert "NVML does not answer: Driver Not Loaded; is the NVIDIA driver loaded here?" == gpus.unavailable_reason
    machine.set({"init.fail": None})
    assert 1 == sum(len(gpus.read(now_ms=NOW_MS)) for _ in range(READS_PER_RETRY))


def test_should_open_a_driver_anew_that_was_loaded_anew(machine: Machine, gpus: NVMLReader) -> None:
    machine.card()
    gpus.read(now_ms=NOW_MS)
    machine.set({"count.fail": NO_DRIVER})
    assert [] == gpus.read(now_ms=NOW_MS)
    machine.set({"count.fail": None})
    assert 1 == sum(len(gpus.read(now_ms=NOW_MS)) for _ in range(READS_PER_RETRY))


def test_should_say_that_a_driver_sees_no_card_and_find_one_later(machine: Machine, gpus: NVMLReader) -> None:
    assert [] == gpus.read(now_ms=NOW_MS)
    assert "the NVIDIA driver is loaded and sees no GPU." == gpus.unavailable_reason
    machine.card()
    assert 1 == sum(len(gpus.read(now_ms=NOW_MS)) for _ in range(READS_PER_RETRY))


@pytest.mark.parametrize(
    ("values", "absent"),
    [
        ({"power": 0xFFFFFFFF}, {"power_w"}),
        ({"temperature": -273}, {"temperature_c"}),
        ({"temperature": 255}, {"temperature_c"}),
        ({"utilization": 4711}, {"utilization_ratio"}),
        ({"clock": 0xFFFFFFFF}, {"sm_clock_mhz"}),
        ({"energy": 2**64 - 1}, {"energy_joules_total"}),
        ({"slowdown": 0xFFFFFFFF}, {"temperature_limit_c"}),
        ({"total": 0, "used": 0}, {"memory_total_bytes"}),
        ({"used": 25 * GIB}, {"memory_free_bytes"}),
        ({"used": 2**64 - 1}, {"memory_used_bytes"}),
    ],
)
def test_should_not_believe_an_absurd_value(
    machine: Machine, gpus: NVMLReader, values: dict[str, int], absent: set[str]
) -> None:
    machine.card(**values)
    [sample] = gpus.read(now_ms=NOW_MS)
    assert {None} == {getattr(sample, name) for name in absent}
    assert absent <= {error.field for error in sample.errors}
    assert all(error.reason.startswith("implausible: ") for error in sample.errors)


def test_should_report_a_hardware_error_until_the_reader_is_started_anew(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(xid=79, xid__serial=0)
    assert [[]] == [sample.faults for sample in gpus.read(now_ms=NOW_MS)]
    machine.card(xid=48, xid__serial=1)
    assert [["xid_48"]] == [sample.faults for sample in gpus.read(now_ms=NOW_MS)]
    gpus.close()
    assert [["xid_48"]] == [sample.faults for sample in gpus.read(now_ms=NOW_MS + 3_600_000)]
    again = NVMLReader(host="h")
    assert [[]] == [sample.faults for sample in again.read(now_ms=NOW_MS)]
    again.close()


def test_should_report_contained_memory_errors_for_a_while(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(ecc=3)
    assert [[]] == [sample.faults for sample in gpus.read(now_ms=NOW_MS)]
    machine.card(ecc=4, xid=94, xid__serial=1)
    assert [["xid_94", "ecc_uncorrected"]] == [sample.faults for sample in gpus.read(now_ms=NOW_MS)]
    assert [[]] == [sample.faults for sample in gpus.read(now_ms=NOW_MS + 60_000)]


def test_should_leave_an_applications_own_error_alone(machine: Machine, gpus: NVMLReader) -> None:
    machine.card()
    gpus.read(now_ms=NOW_MS)
    machine.card(xid=31, xid__serial=1)
    assert [[]] == [sample.faults for sample in gpus.read(now_ms=NOW_MS)]


def test_should_report_memory_that_can_no_longer_be_repaired(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(remap__failure=1)
    assert [["row_remap_failed"]] == [sample.faults for sample in gpus.read(now_ms=NOW_MS)]


def split(machine: Machine) -> None:
    """Put in a card of two instances in places 0 and 3 of 7."""
    machine.card(mig=1, mig__count=7, fail__UtilizationRates=NOT_SUPPORTED, ecc=0)
    for place in (0, 3):
        values = {"uuid": f"MIG-{place}", "name": "NVIDIA A100 MIG 1g.5gb", "total": 5 * GIB, "used": (1 + place) * GIB}
        machine.set({f"0/{place}.{key}": value for key, value in values.items()})


def test_should_read_the_instances_of_a_card(machine: Machine, gpus: NVMLReader) -> None:
    split(machine)
    card, first, second = gpus.read(now_ms=NOW_MS)
    assert (["GPU-0", "MIG-0", "MIG-3"], [0, 0, 0]) == (
        [each.gpu.uuid for each in (card, first, second)],
        [each.gpu.index for each in (card, first, second)],
    )
    assert (5 * GIB, 4 * GIB, 61.0) == (second.memory_total_bytes, second.memory_used_bytes, second.temperature_c)
    assert (None, None, None) == (first.utilization_ratio, first.power_w, first.energy_joules_total)
    assert ["utilization_ratio", "power_w", "energy_joules_total"] == [error.field for error in first.errors]
    assert card.utilization_ratio is None


def test_should_report_an_instance_that_is_gone_as_lost(machine: Machine, gpus: NVMLReader) -> None:
    split(machine)
    gpus.read(now_ms=NOW_MS)
    machine.set({"0/3.uuid": None})
    assert {"GPU-0": False, "MIG-0": False, "MIG-3": True} == {
        sample.gpu.uuid: sample.lost for sample in gpus.read(now_ms=NOW_MS)
    }
    machine.card(fail=LOST)
    assert {True} == {sample.lost for sample in gpus.read(now_ms=NOW_MS)}


def test_should_ask_an_older_driver_by_the_older_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(build(tmp_path, "-DOLD_DRIVER")):
        machine = Machine(tmp_path / "machine", monkeypatch)
        machine.card(temperature=60, reasons=8, pids=1, pid__0=7, pid__0__used=500)
        machine.set({"pid.7.name": "server"})
        gpus = NVMLReader(host="h")
        [sample] = gpus.read(now_ms=NOW_MS)
        gpus.close()
    assert (60.0, ["hw_slowdown"], [GpuProcess(7, "server", 500)], []) == (
        sample.temperature_c,
        sample.clock_event_reasons,
        sample.processes,
        sample.errors,
    )


def test_should_tell_once_that_processes_have_no_name_or_size(machine: Machine, gpus: NVMLReader) -> None:
    unknown = 2**64 - 1
    machine.card(pids=2, pid__0=1, pid__0__used=unknown, pid__1=2, pid__1__used=unknown)
    [sample] = gpus.read(now_ms=NOW_MS)
    assert [GpuProcess(1, None, None), GpuProcess(2, None, None)] == sample.processes
    assert ["processes.used_bytes", "processes.name"] == [error.field for error in sample.errors]


def test_should_do_without_a_name_that_is_not_text(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(pids=1, pid__0=7, pid__0__used=500)
    machine.set({"pid.7.name": "\udcff"})
    assert [[GpuProcess(7, None, 500)]] == [sample.processes for sample in gpus.read(now_ms=NOW_MS)]


def test_should_not_take_a_card_that_may_not_be_opened_for_lost(machine: Machine, gpus: NVMLReader) -> None:
    machine.card(fail__HandleByIndex=NO_PERMISSION)
    [sample] = gpus.read(now_ms=NOW_MS)
    assert (False, "GPU-unknown-h-0", None) == (sample.lost, sample.gpu.uuid, sample.memory_used_bytes)
    assert [ReadingError("gpu", "Insufficient Permissions")] == sample.errors


def test_should_not_hide_bits_without_a_name() -> None:
    assert [] == clock_event_reasons(0)
    assert ["gpu_idle", "hw_power_brake_slowdown", "bit_12"] == clock_event_reasons(0x1 | 0x80 | 0x1000)


def test_should_come_back_from_a_call_that_hangs(machine: Machine) -> None:
    machine.card(hang="PowerUsage")
    gpus = Bounded(NVMLReader(host="h"), timeout_s=0.1)
    assert [] == gpus.read(now_ms=NOW_MS)
    assert "reading the GPUs hangs, for more than 0.1 s" == gpus.unavailable_reason
    machine.card(hang=None)
    gpus.timeout_s = 30.0
    assert 1 == len(gpus.read(now_ms=NOW_MS))
    gpus.close()


async def test_should_publish_through_a_hang_without_a_stale_sample(machine: Machine) -> None:
    machine.card(power=1000)
    stop, told, sent = asyncio.Event(), asyncio.Event(), list[GPUMetrics]()

    async def send(_: bytes, value: bytes) -> None:
        sent.append(decode(GPUMetrics, value))
        if len(sent) == 1:
            machine.card(hang="PowerUsage")
        elif sent[-1].power_w == 2.0:
            stop.set()

    def telling(_: object, __: str, line: Any) -> Any:
        told.set()
        return line

    with capture_logs([telling]) as logs:
        gpus = NVMLReader(host="h")
        publishing = asyncio.create_task(publish(gpus, send, stop=stop, period_s=0.001, read_timeout_s=0.1))
        await asyncio.wait_for(told.wait(), 30)
        before = len(sent)
        machine.card(power=2000, hang=None)
        await asyncio.wait_for(publishing, 30)
        gpus.close()
    assert ["warning", "info"] == [line["log_level"] for line in logs]
    assert {2.0} == {sample.power_w for sample in sent[before:]}


@pytest.fixture(params=["library", pytest.param("driver", marks=pytest.mark.gpu)])
def some_cards(request: pytest.FixtureRequest) -> int:
    """How many cards this machine has: one of the library, and where a real driver shows cards those as well."""
    if request.param == "library":
        request.getfixturevalue("machine").card()
        return 1
    return cards_or_skip()


def test_should_read_cards_that_add_up(some_cards: int) -> None:
    gpus = NVMLReader()
    first, second = gpus.read(now_ms=NOW_MS), gpus.read(now_ms=NOW_MS + 1)
    gpus.close()
    assert some_cards <= len(first)
    assert [sample.gpu for sample in first] == [sample.gpu for sample in second]
    assert len(first) == len({sample.gpu.uuid for sample in first})
    for before, after in zip(first, second, strict=True):
        used, free, total = before.memory_used_bytes, before.memory_free_bytes, before.memory_total_bytes
        assert None in (used, free, total) or used + free == total  # type: ignore[operator]
        assert (before.energy_joules_total or 0) <= (after.energy_joules_total or 0)
        assert not before.lost
        assert all(error.reason and not error.reason.startswith("implausible") for error in before.errors)


async def test_should_publish_each_card_under_its_uuid(some_cards: int) -> None:
    stop, sent = asyncio.Event(), list[tuple[str, str]]()

    async def send(key: bytes, value: bytes) -> None:
        sent.append((key.decode(), decode(GPUMetrics, value).gpu.uuid))
        if len(sent) >= 3 * some_cards:
            stop.set()

    gpus = NVMLReader()
    await asyncio.wait_for(publish(gpus, send, stop=stop, period_s=0.001), 60)
    gpus.close()
    assert all(key == uuid for key, uuid in sent)


def test_should_print_a_line_for_each_card(some_cards: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == once(GpuSettings(source="nvml"), as_json=True)
    samples = [decode(GPUMetrics, line.encode()) for line in capsys.readouterr().out.splitlines()]
    assert {GpuSource.NVML} == {sample.source for sample in samples}
    assert some_cards <= len(samples)


def test_should_print_the_cards_of_a_machine_for_people_and_machines(machine: Machine, capsys: Any) -> None:
    machine.card(xid=0)
    assert 0 == once(GpuSettings(source="nvml"), as_json=False)
    assert "0  NVIDIA L4  6.0/24.0 GiB  37 %  61 °C  72 W  sw_power_cap  hw_thermal_slowdown  GPU-0\n" == (
        capsys.readouterr().out
    )


def test_should_load_the_library_as_a_driver_installs_it(library: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Machine(tmp_path / "machine", patch).card()
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library.parent),
        "FAKE_NVML": str(tmp_path / "machine"),
        "TRIAGE_GPUS__SOURCE": "nvml",
    }
    command = [sys.executable, "-m", "cli", "gpu-publisher", "--once", "--json"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (ended.returncode, ended.stderr)
    assert ("GPU-0", NAME) == (json.loads(ended.stdout)["gpu"]["uuid"], library.name)


def test_should_leave_no_thread_behind_that_still_reads(machine: Machine) -> None:
    machine.card()
    gpus = Bounded(NVMLReader(host="h"))
    gpus.read(now_ms=NOW_MS)
    gpus.close()
    assert [] == [thread.name for thread in threading.enumerate() if thread.name == "gpu-read"]
