"""`triage gpu-publisher --once`: one sample per card on stdout, no broker needed."""

from __future__ import annotations

import sys

from agents.gpu_sources import UnknownSource, reader
from agents.gpu_sources.bounded import Bounded
from cli.errors import OK, SettingsError
from schemas.codec import encode
from schemas.gpu import GPUMetrics
from streams.settings import GpuSettings
from wire.clock import wall_ms

GIB = 1 << 30


def once(settings: GpuSettings, as_json: bool) -> int:
    """Print a line per card and return the exit code; without a card, one sentence on stderr and exit code 0.

    Raises: SettingsError for a source that is not there.
    """
    try:
        gpus = Bounded(reader(settings.source, settings))
    except UnknownSource as error:
        raise SettingsError(str(error)) from error
    try:
        samples = gpus.read(now_ms=wall_ms())
    finally:
        gpus.close()
    for sample in samples:
        print(encode(sample).decode() if as_json else line(sample))
    if not samples:
        print(f"No GPU: {gpus.unavailable_reason}", file=sys.stderr)
    return OK


def line(sample: GPUMetrics) -> str:
    """Return a sample for a person: `0  simulated 24 GB  8.8/24.0 GiB  8 %  49 °C  53 W  GPU-simulated-0`; `–` is absent."""
    gpu = sample.gpu
    if sample.lost:
        return f"{gpu.index}  {gpu.name}  lost  {gpu.uuid}"
    cells = [
        f"{_of(sample.memory_used_bytes, 1 / GIB, 1)}/{_of(sample.memory_total_bytes, 1 / GIB, 1)} GiB",
        f"{_of(sample.utilization_ratio, 100)} %",
        f"{_of(sample.temperature_c)} °C",
        f"{_of(sample.power_w)} W",
        *sample.clock_event_reasons,
        *sample.faults,
    ]
    return "  ".join([str(gpu.index), gpu.name, *cells, gpu.uuid])


def _of(value: float | None, factor: float = 1, digits: int = 0) -> str:
    return "–" if value is None else f"{value * factor:.{digits}f}"
