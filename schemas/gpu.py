"""The GPU sample: one reading of one card."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from schemas.request import SCHEMA_VERSION


class GpuSource(StrEnum):
    """Where a sample comes from."""

    NVML = "nvml"
    DCGM = "dcgm"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class GpuId:
    """A card, or an instance of one (MIG), whose `uuid` begins with `MIG-` and whose `index` is its card's.

    `uuid` is the key and stable; `index` may change over a restart of its host.
    """

    uuid: str
    index: int
    name: str
    host: str


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a card; `used_bytes` None when the driver does not say (containers, MIG)."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class ReadingError:
    """A reading that is not there, and why. Such a reading is None in its sample, never 0."""

    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class GPUMetrics:
    """One reading of one card, in base units.

    `utilization_ratio` is the share of the last moments in which any kernel ran: 1.0 is busy, not saturated.
    `energy_joules_total` counts since the driver was loaded. `temperature_limit_c` is where the card slows itself down.
    `lost`: the card has fallen off; its other readings are None. `faults` names what is broken about it (`xid_79`,
    `ecc_uncorrected`, `row_remap_failed`, `reset_required`); what was not asked for is not there.
    """

    gpu: GpuId
    source: GpuSource
    sampled_at_ms: int
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilization_ratio: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    energy_joules_total: float | None = None
    sm_clock_mhz: int | None = None
    clock_event_reasons: list[str] = field(default_factory=list)
    processes: list[GpuProcess] = field(default_factory=list)
    lost: bool = False
    errors: list[ReadingError] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION
    temperature_limit_c: float | None = None
    faults: list[str] = field(default_factory=list)
