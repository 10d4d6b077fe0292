"""Where GPU samples come from."""

from __future__ import annotations

from pathlib import Path

from agents.gpu_sources.nvml import NVMLReader
from agents.gpu_sources.simulated import SimulatedReader
from schemas.gpu import GPUMetrics
from streams.ports import GpuReader


class UnknownSource(ValueError):
    """The setting gpus.source names no source that is there; the message says what to set."""


class NoReader:
    """No cards, by choice."""

    unavailable_reason = 'GPU readings are switched off: gpus.source is "none".'

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return nothing."""
        return []

    def close(self) -> None:
        """Do nothing."""


def reader(source: str, *, overrides: Path | None = None) -> GpuReader:
    """Return the reader that the setting `gpus.source` names. `overrides` is for simulated cards only.

    Raises: UnknownSource.
    """
    kind, _, count = source.partition(":")
    if kind == "simulated" and count.isdecimal():
        return SimulatedReader(int(count), overrides=overrides)
    if source == "nvml":
        return NVMLReader()
    if source == "none":
        return NoReader()
    if source == "dcgm":
        raise UnknownSource('gpus.source = "dcgm" is not there yet; set "nvml", "simulated:K" or "none".')
    raise UnknownSource(f'gpus.source = "{source}" is none of "nvml", "simulated:K" and "none".')
