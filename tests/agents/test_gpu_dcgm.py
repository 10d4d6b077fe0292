"""Samples from what a dcgm-exporter tells.

`scrapes/dcgm-exporter.prom` has the shape of the exporter's default counters: one whole card and one that is split in two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from agents.gpu_sources.dcgm import DCGMReader
from schemas.gpu import GpuId, GPUMetrics, GpuSource, ReadingError

NOW_MS = 1_795_420_000_000
SCRAPE = (Path(__file__).parent / "scrapes" / "dcgm-exporter.prom").read_text()
H100, A100 = "GPU-5fd4f087-1f2c-4a5e-9d3b-6f1f0c2b7a01", "GPU-0c3e1a52-77d0-4b0f-8a44-2d9f5b6e1c02"
MIB = 1 << 20
URL = "http://node-2:9400/metrics"
NO_PROCESSES = ReadingError("processes", "DCGM does not tell processes")
NO_REASONS = ReadingError("clock_event_reasons", "the exporter does not give DCGM_FI_DEV_CLOCKS_EVENT_REASONS")


def gpus(answer: Callable[[httpx.Request], httpx.Response]) -> DCGMReader:
    return DCGMReader(URL, client=httpx.Client(transport=httpx.MockTransport(answer)), host="h")


def telling(*texts: str) -> DCGMReader:
    """Return a reader of an exporter that answers with one text after the other."""
    rest = iter(texts)
    return gpus(lambda _: httpx.Response(200, text=next(rest)))


def by_uuid(samples: list[GPUMetrics]) -> dict[str, GPUMetrics]:
    return {sample.gpu.uuid: sample for sample in samples}


def test_should_read_a_card_in_base_units() -> None:
    sample = by_uuid(telling(SCRAPE).read(now_ms=NOW_MS))[H100]
    assert (
        GPUMetrics(
            GpuId(H100, 0, "NVIDIA H100 80GB HBM3", "node-2"),
            GpuSource.DCGM,
            NOW_MS,
            memory_total_bytes=(7012 + 74004 + 543) * MIB,
            memory_used_bytes=(74004 + 543) * MIB,
            memory_free_bytes=7012 * MIB,
            utilization_ratio=0.97,
            temperature_c=64.0,
            power_w=412.773,
            energy_joules_total=918273645.546,
            sm_clock_mhz=1980,
            errors=[NO_REASONS, NO_PROCESSES],
        )
        == sample
    )


def test_should_read_the_instances_of_a_card_with_its_heat() -> None:
    found = by_uuid(telling(SCRAPE).read(now_ms=NOW_MS))
    assert {H100, A100, f"MIG-{A100}/3", f"MIG-{A100}/7"} == found.keys()
    large = found[f"MIG-{A100}/3"]
    assert GpuId(f"MIG-{A100}/3", 1, "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "node-2") == large.gpu
    assert ((8100 + 70) * MIB, 37.0) == (large.memory_used_bytes, large.temperature_c)
    assert (None, None) == (large.power_w, large.energy_joules_total)


def test_should_tell_which_counter_a_reading_misses() -> None:
    sample = by_uuid(telling(SCRAPE).read(now_ms=NOW_MS))[A100]
    absent = {error.field: error.reason for error in sample.errors}
    assert (None, "the exporter does not give DCGM_FI_DEV_GPU_UTIL") == (
        sample.utilization_ratio,
        absent["utilization_ratio"],
    )


@pytest.mark.parametrize("blank", ["9223372036854775794", "2147483632", "140737488355328", "NaN"])
def test_should_take_a_blank_value_for_no_reading(blank: str) -> None:
    [sample] = telling(f'DCGM_FI_DEV_GPU_TEMP{{gpu="0",UUID="GPU-1"}} {blank}\n').read(now_ms=NOW_MS)
    assert sample.temperature_c is None
    assert "temperature_c" in {error.field for error in sample.errors}
    assert GpuId("GPU-1", 0, "unknown", "h") == sample.gpu


def test_should_read_counters_that_are_off_by_default() -> None:
    more = f'DCGM_FI_DEV_CLOCKS_EVENT_REASONS{{gpu="0",UUID="{H100}"}} 68\nDCGM_FI_DEV_SLOWDOWN_TEMP{{gpu="0",UUID="{H100}"}} 87\n'
    sample = by_uuid(telling(SCRAPE + more).read(now_ms=NOW_MS))[H100]
    assert (["sw_power_cap", "hw_thermal_slowdown"], 87.0) == (sample.clock_event_reasons, sample.temperature_limit_c)


def xid(code: int) -> str:
    return f'DCGM_FI_DEV_XID_ERRORS{{gpu="0",UUID="GPU-1"}} {code}\n'


@pytest.mark.parametrize(
    ("codes", "faults"),
    [
        ([0, 0], []),
        ([79], ["xid_79"]),
        ([0, 79, 31], ["xid_79"]),  # a later error of an application mends nothing
        ([94], []),  # who knows when that was
        ([0, 94], ["xid_94"]),
        ([31], []),
    ],
)
def test_should_report_hardware_errors(codes: list[int], faults: list[str]) -> None:
    reader = telling(*map(xid, codes))
    told = [reader.read(now_ms=NOW_MS)[0].faults for _ in codes]
    assert faults == told[-1]


def test_should_report_new_memory_errors_and_failed_repairs() -> None:
    texts = [f'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{gpu="0",UUID="GPU-1"}} {count}\n' for count in (2, 3)]
    reader = telling(texts[0], texts[1] + 'DCGM_FI_DEV_ROW_REMAP_FAILURE{gpu="0",UUID="GPU-1"} 1\n')
    assert [[], ["ecc_uncorrected", "row_remap_failed"]] == [reader.read(now_ms=NOW_MS)[0].faults for _ in range(2)]


@pytest.mark.parametrize(
    ("text", "status", "told"),
    [
        ("", 200, "answers HTTP 200 without a reading of DCGM's"),
        ("# HELP up\nup 1\n", 200, "answers HTTP 200 without a reading of DCGM's"),
        (SCRAPE, 503, "answers HTTP 503 without a reading of DCGM's"),
        ("<html>no such page", 200, "does not answer as dcgm-exporter: ValueError"),
    ],
)
def test_should_say_why_there_are_no_samples(text: str, status: int, told: str) -> None:
    reader = gpus(lambda _: httpx.Response(status, text=text))
    assert [] == reader.read(now_ms=NOW_MS)
    assert f"{URL} {told}" == reader.unavailable_reason


def test_should_outlive_an_exporter_that_goes_and_comes_back() -> None:
    answers = iter([httpx.ConnectError("away"), httpx.ReadTimeout("slow"), None])

    def answer(_: httpx.Request) -> httpx.Response:
        failure = next(answers)
        if failure is not None:
            raise failure
        return httpx.Response(200, text=SCRAPE)

    reader = gpus(answer)
    assert ([], f"{URL} does not answer as dcgm-exporter: ConnectError") == (
        reader.read(now_ms=NOW_MS),
        reader.unavailable_reason,
    )
    assert [] == reader.read(now_ms=NOW_MS)
    assert (4, None) == (len(reader.read(now_ms=NOW_MS)), reader.unavailable_reason)
    reader.close()
