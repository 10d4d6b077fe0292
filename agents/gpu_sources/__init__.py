"""Where GPU samples come from. Each source is imported when it is asked for: none needs the others' libraries."""

from __future__ import annotations

from schemas.gpu import GPUMetrics
from streams.ports import GpuReader
from streams.settings import GpuSettings


class UnknownSource(ValueError):
    """The settings [gpus] name no source that is there; the message says what to set."""


class NoReader:
    """No cards, by choice."""

    unavailable_reason = 'GPU readings are switched off: gpus.source is "none".'

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return nothing."""
        return []

    def close(self) -> None:
        """Do nothing."""


def reader(source: str, settings: GpuSettings | None = None) -> GpuReader:
    """Return the reader that `source` names as the setting `gpus.source` does; `settings` has what some need besides.

    Raises: UnknownSource.
    """
    more = settings or GpuSettings()
    kind, _, count = source.partition(":")
    if kind == "simulated" and count.isdecimal():
        return _simulated(int(count), more)
    if source == "nvml":
        from agents.gpu_sources.nvml import NVMLReader

        return NVMLReader()
    if source == "dcgm":
        from agents.gpu_sources.dcgm import DCGMReader

        if more.dcgm_url is None:
            told = 'set gpus.dcgm_url = "http://HOST:9400/metrics"'
            raise UnknownSource(f'gpus.source = "dcgm" needs the exporter\'s address: {told}.')
        return DCGMReader(more.dcgm_url)
    if source == "none":
        return NoReader()
    raise UnknownSource(f'gpus.source = "{source}" is none of "nvml", "dcgm", "simulated:K" and "none".')


def _simulated(count: int, settings: GpuSettings) -> GpuReader:
    from agents.gpu_sources.scenario import BadScenario, load_scenario
    from agents.gpu_sources.simulated import SimulatedReader

    try:
        scenario = None if settings.scenario is None else load_scenario(settings.scenario)
    except BadScenario as error:
        raise UnknownSource(f"gpus.scenario cannot be used: {error}") from error
    return SimulatedReader(count, scenario=scenario, overrides=settings.overrides)
