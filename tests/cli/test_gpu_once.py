"""`triage gpu-publisher --once`."""

from __future__ import annotations

import json

import pytest

from cli.errors import SettingsError
from cli.gpu_publisher import line, once
from schemas.codec import decode
from schemas.gpu import GpuId, GPUMetrics, GpuSource
from streams.settings import GpuSettings


def test_json_is_one_sample_per_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert once(GpuSettings(source="simulated:2"), as_json=True) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [decode(GPUMetrics, row.encode()).gpu.index for row in rows] == [0, 1]
    assert json.loads(rows[0])["source"] == "simulated"


def test_a_person_gets_a_line_per_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert once(GpuSettings(source="simulated:2"), as_json=False) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert all("/24.0 GiB" in row for row in rows)


@pytest.mark.parametrize("as_json", [True, False])
def test_without_a_card_there_is_one_sentence_on_stderr(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert once(GpuSettings(source="none"), as_json) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == 'No GPU: GPU readings are switched off: gpus.source is "none".\n'


def test_a_source_that_is_not_there_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="dcgm"):
        once(GpuSettings(source="dcgm"), as_json=False)


def test_what_is_absent_is_a_dash_and_a_lost_card_says_so() -> None:
    bare = GPUMetrics(GpuId("GPU-1", 3, "NVIDIA L4", "h"), GpuSource.NVML, 0, memory_used_bytes=1 << 30)
    assert line(bare) == "3  NVIDIA L4  1.0/– GiB  – %  – °C  – W  GPU-1"
    lost = GPUMetrics(bare.gpu, GpuSource.NVML, 0, lost=True)
    assert line(lost) == "3  NVIDIA L4  lost  GPU-1"
