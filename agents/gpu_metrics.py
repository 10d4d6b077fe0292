"""The publisher's Prometheus series: the newest reading of each card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.gpu import GPUMetrics
from wire.clock import wall_ms

_GAUGES: tuple[tuple[str, str, Callable[[GPUMetrics], float | None]], ...] = (
    ("triage_gpu_memory_used_bytes", "Memory in use.", lambda sample: sample.memory_used_bytes),
    ("triage_gpu_memory_total_bytes", "Memory of the card.", lambda sample: sample.memory_total_bytes),
    ("triage_gpu_temperature_celsius", "Temperature of the card.", lambda sample: sample.temperature_c),
    ("triage_gpu_utilization_ratio", "Share of the time in which any kernel ran.", lambda s: s.utilization_ratio),
    ("triage_gpu_power_watts", "Power drawn.", lambda sample: sample.power_w),
)


class GpuSeries(Collector):
    """The series of the cards of the last read.

    They are made when Prometheus asks, so a reading that is absent has no series, one that stopped coming shows its age,
    and the energy is a counter whose value is the driver's.
    """

    def __init__(self, registry: CollectorRegistry, *, now_ms: Callable[[], int] = wall_ms) -> None:
        self._samples: Sequence[GPUMetrics] = ()
        self._now_ms = now_ms
        registry.register(self)

    def show(self, samples: Sequence[GPUMetrics]) -> None:
        """Show these samples instead of the last ones."""
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with one series per card that has the reading."""
        samples, now_ms = self._samples, self._now_ms()
        for name, text, reading in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["gpu"])
            for sample in samples:
                value = reading(sample)
                if value is not None:
                    gauge.add_metric([sample.gpu.uuid], value)
            yield gauge
        energy = CounterMetricFamily("triage_gpu_energy_joules", "Energy since the driver was loaded.", labels=["gpu"])
        age = GaugeMetricFamily("triage_gpu_sample_age_seconds", "Age of the card's newest sample.", labels=["gpu"])
        for sample in samples:
            if sample.energy_joules_total is not None:
                energy.add_metric([sample.gpu.uuid], sample.energy_joules_total)
            age.add_metric([sample.gpu.uuid], (now_ms - sample.sampled_at_ms) / 1000)
        yield energy
        yield age
