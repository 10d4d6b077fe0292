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
from streams.ports import GpuReader
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


def scenario(tmp_path: Path, text: str) -> GpuReader:
    """Return a reader of two cards that do what the text says."""
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return reader("simulated:2", GpuSettings(scenario=path))


def after(gpus: GpuReader, *seconds: int) -> list[GPUMetrics]:
    """Return what card 0 shows at those seconds of the scenario."""
    gpus.read(now_ms=NOW_MS)
    return [gpus.read(now_ms=NOW_MS + second * 1000)[0] for second in seconds]


def test_should_do_what_the_scenario_says(tmp_path: Path) -> None:
    gpus = scenario(
        tmp_path,
        """
        [[cards]]
        profile = "h100"
        load = [[0, 0.2], [60, 0.8]]
        memory_ratio = [[10, 0.25], [20, 0.75]]
        lost = [[40, 50]]
        faults = [["xid_94", 20, 30]]
        absent = [["power_w", 20, 30]]
        """,
    )
    first, rising, faulty, lost, back = after(gpus, 0, 15, 25, 40, 60)
    assert ("simulated H100 80 GB", 80 << 30, 0.2) == (
        first.gpu.name,
        first.memory_total_bytes,
        first.utilization_ratio,
    )
    assert (40 << 30, 40 << 30) == (rising.memory_used_bytes, rising.memory_free_bytes)
    assert (["xid_94"], None) == (faulty.faults, faulty.power_w)
    assert [ReadingError("power_w", "absent by the scenario")] == faulty.errors
    assert (True, None) == (lost.lost, lost.memory_used_bytes)
    assert (0.8, 60 << 30, [], []) == (back.utilization_ratio, back.memory_used_bytes, back.faults, back.errors)


def test_should_begin_a_scenario_anew_where_it_repeats(tmp_path: Path) -> None:
    gpus = scenario(tmp_path, "[[cards]]\nrepeat_s = 10\nload = [[0, 0.0], [10, 1.0]]\n")
    assert [0.5, 0.0, 0.5] == [sample.utilization_ratio for sample in after(gpus, 5, 10, 15)]


def test_should_let_a_second_reader_of_a_seed_see_the_same_noise(tmp_path: Path) -> None:
    text = "seed = 3\n[[cards]]\nnoise_ratio = 0.02\nmemory_ratio = [[0, 0.5]]\n"
    used = [[s.memory_used_bytes for s in after(scenario(tmp_path, text), *range(30))] for _ in range(2)]
    assert used[0] == used[1]
    assert len(set(used[0])) == 30


def test_should_slow_down_a_card_whose_fan_fails_and_let_it_recover(tmp_path: Path) -> None:
    gpus = scenario(
        tmp_path, "[[cards]]\nload = [[0, 0.9]]\ncooling = [[60, 1.0], [61, 0.4], [300, 0.4], [301, 1.0]]\n"
    )
    cool, hot, recovered = after(gpus, 59, 290, 500)
    assert ([], []) == (cool.clock_event_reasons, recovered.clock_event_reasons)
    assert ["sw_thermal_slowdown"] == hot.clock_event_reasons
    assert (hot.sm_clock_mhz or 0) < (cool.sm_clock_mhz or 0) == recovered.sm_clock_mhz
    assert (hot.power_w or 0) < (cool.power_w or 0)
    assert 85 < (hot.temperature_c or 0) < (hot.temperature_limit_c or 0)


def test_should_heat_a_card_by_an_override_of_its_cooling(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    gpus = reader("simulated:1", GpuSettings(overrides=path))
    cool, *_ = after(gpus, 0)
    write(path, {"0": {"load": 1.0, "cooling": 0.2, "faults": ["xid_48"]}}, 1)
    hot = [gpus.read(now_ms=NOW_MS + second * 1000)[0] for second in range(1, 200)][-1]
    assert (["hw_slowdown", "hw_thermal_slowdown"], ["xid_48"], 1.0) == (
        hot.clock_event_reasons,
        hot.faults,
        hot.utilization_ratio,
    )
    assert (cool.temperature_c or 0) < (hot.temperature_limit_c or 0) <= (hot.temperature_c or 0)


def test_should_take_the_scenario_that_is_documented(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    [text] = [block for block in page.split("```toml\n") if block.startswith("seed")]
    [hot, *_] = after(scenario(tmp_path, text.partition("```")[0]), 90)
    assert ("simulated H100 80 GB", 0.9) == (hot.gpu.name, hot.utilization_ratio)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[cards]]\nprofile = 'h999'\n", "cards.0.profile: Value error, none of generic, t4"),
        ("[[cards]]\nload = [[0, 1.5]]\n", "cards.0.load.0.1: Input should be less than or equal to 1"),
        ("[[cards]]\nload = [[5, 1], [5, 0]]\n", "seconds must rise"),
        ("[[cards]]\nlaod = [[5, 1]]\n", "cards.0.laod: Extra inputs are not permitted"),
        ("[[cards]", "scenario.toml"),
    ],
)
def test_should_refuse_what_is_no_scenario_with_a_sentence(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UnknownSource, match=r"gpus\.scenario cannot be used: ") as refused:
        scenario(tmp_path, text)
    assert told in str(refused.value)
