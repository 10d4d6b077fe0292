"""Readers of GPU samples: what they say, and what they say when they cannot."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agents.gpu_sources import NoReader, UnknownSource, reader
from agents.gpu_sources.dcgm import DCGMReader
from agents.gpu_sources.nvml import NVMLReader
from agents.gpu_sources.simulated import TOTAL_BYTES, SimulatedReader
from schemas.codec import decode, encode
from schemas.gpu import GPUMetrics, GpuSource, ReadingError
from streams.settings import GpuSettings

NOW_MS = 1_795_420_000_000


def test_the_real_module_without_a_driver_gives_nothing_and_says_why() -> None:
    gpus = reader("nvml")
    samples = gpus.read(now_ms=NOW_MS)
    gpus.close()
    assert bool(samples) == (gpus.unavailable_reason is None)
    assert all(sample.source is GpuSource.NVML for sample in samples)


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
    [sample] = SimulatedReader(1).read(now_ms=NOW_MS)
    assert decode(GPUMetrics, encode(sample)) == sample


def test_the_source_setting_names_the_reader() -> None:
    assert isinstance(reader("nvml"), NVMLReader)
    assert isinstance(reader("none"), NoReader)
    assert isinstance(reader("dcgm", GpuSettings(dcgm_url="http://h:9400/metrics")), DCGMReader)
    assert len(reader("simulated:3").read(now_ms=NOW_MS)) == 3
    assert reader("none").read(now_ms=NOW_MS) == []


@pytest.mark.parametrize(
    ("source", "told"), [("dcgm", "needs the exporter's address"), ("simulated:", "none of"), ("rocm", "none of")]
)
def test_a_source_that_is_not_there_is_refused_with_a_sentence(source: str, told: str) -> None:
    with pytest.raises(UnknownSource, match=told):
        reader(source)
