"""GPU samples from NVIDIA's dcgm-exporter, for a container or a machine from which NVML cannot be asked.

The exporter looks at the cards at an interval of its own (30 s unless started with `--collect-interval`) and does not tell how
old a value is, so a sample is as old as that at worst.
Source: names and units are those of the exporter's default-counters.csv (MiB, per cent, millijoules, watts, MHz).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from agents.gpu_sources.nvml_card import clock_event_reasons
from schemas.gpu import GpuId, GPUMetrics, GpuSource, ReadingError
from streams.faults import FaultLog
from streams.plausible import plausible

_TIMEOUT_S = 4.0
_MIB = 1 << 20
_PREFIX = "DCGM_FI_DEV_"
# DCGM's blank values, one for each kind of number, begin here; each means that there is no reading.
_BLANK = 0x7FFFFFF0
_BLANK_LARGE = 1 << 47
_REASONS = ("CLOCKS_EVENT_REASONS", "CLOCK_THROTTLE_REASONS")
# What readings are made of, for the reason where it is missing.
_MADE_OF = {
    "memory": "FB_USED",
    "utilization_ratio": "GPU_UTIL",
    "temperature_c": "GPU_TEMP",
    "power_w": "POWER_USAGE",
    "energy_joules_total": "TOTAL_ENERGY_CONSUMPTION",
    "sm_clock_mhz": "SM_CLOCK",
    "clock_event_reasons": _REASONS[0],
    "faults": "XID_ERRORS",
}
# Counters of bytes or energy may be large; anything else at DCGM's 32-bit blank is none.
_LARGE = frozenset({"TOTAL_ENERGY_CONSUMPTION"})


@dataclass(frozen=True, slots=True)
class Entity:
    """A card, or an instance of one (MIG), with its values by DCGM's names without their prefix."""

    uuid: str
    instance: str | None
    labels: Mapping[str, str]
    values: dict[str, float] = field(default_factory=dict)


class DCGMReader:
    """A `GpuReader` of the cards that one exporter tells of. `host` stands where it does not tell its own."""

    def __init__(self, url: str, *, client: httpx.Client | None = None, host: str | None = None) -> None:
        self._url = url
        self._client = client or httpx.Client(timeout=_TIMEOUT_S, trust_env=False)
        self._host = host or socket.gethostname()
        self._faults: dict[str, FaultLog] = {}
        self._xids: dict[str, int] = {}
        self.unavailable_reason: str | None = None

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return one sample per card and instance, [] when the exporter does not answer."""
        try:
            reply = self._client.get(self._url)
            found = entities(reply.text) if reply.status_code == httpx.codes.OK else []
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            self.unavailable_reason = f"{self._url} does not answer as dcgm-exporter: {type(error).__name__}"
            return []
        if not found:
            self.unavailable_reason = f"{self._url} answers HTTP {reply.status_code} without a reading of DCGM's"
            return []
        self.unavailable_reason = None
        cards = {each.uuid: each for each in found if each.instance is None}
        return [plausible(self._sample(each, cards.get(each.uuid), now_ms)) for each in found]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _sample(self, entity: Entity, card: Entity | None, now_ms: int) -> GPUMetrics:
        own = entity.values
        shared = own if card is None else {**card.values, **own}  # heat and faults of an instance are its card's
        is_instance = entity.instance is not None
        of_card = {} if is_instance else own
        readings: dict[str, Any] = {
            **_memory(own),
            "utilization_ratio": _scaled(of_card, "GPU_UTIL", 0.01),
            "temperature_c": _scaled(shared, "GPU_TEMP", 1),
            "power_w": _scaled(of_card, "POWER_USAGE", 1),
            "energy_joules_total": _scaled(of_card, "TOTAL_ENERGY_CONSUMPTION", 0.001),
            "sm_clock_mhz": _whole(_scaled(shared, "SM_CLOCK", 1)),
            "temperature_limit_c": _scaled(shared, "SLOWDOWN_TEMP", 1),
        }
        bits = next((int(shared[name]) for name in _REASONS if name in shared), None)
        present = {name for name, value in readings.items() if value is not None}
        present |= {"memory"} & {name.partition("_")[0] for name in present}
        present |= ({"clock_event_reasons"} if bits is not None else set()) | (
            {"faults"} if "XID_ERRORS" in shared else set()
        )
        errors = [
            ReadingError(name, f"the exporter does not give {_PREFIX}{made_of}")
            for name, made_of in _MADE_OF.items()
            if name not in present
        ]
        return GPUMetrics(
            _identity(entity, self._host),
            GpuSource.DCGM,
            now_ms,
            **readings,
            clock_event_reasons=clock_event_reasons(bits or 0),
            faults=self._faults_of(entity.uuid, shared, now_ms),
            errors=[*errors, ReadingError("processes", "DCGM does not tell processes")],
        )

    def _faults_of(self, uuid: str, values: Mapping[str, float], now_ms: int) -> list[str]:
        log = self._faults.setdefault(uuid, FaultLog())
        code = int(values.get("XID_ERRORS", 0))  # the last one, for ever: only a new one has a time
        if self._xids.get(uuid) != code:
            is_first = uuid not in self._xids
            self._xids[uuid] = code
            log.xid(code, now_ms=now_ms, is_old=is_first)
        if "ECC_DBE_VOL_TOTAL" in values:
            log.uncorrected(int(values["ECC_DBE_VOL_TOTAL"]), now_ms=now_ms)
        found = log.active(now_ms=now_ms)
        return [*found, "row_remap_failed"] if values.get("ROW_REMAP_FAILURE") else found


def entities(text: str) -> list[Entity]:
    """Return the cards and instances of a scrape, by uuid. Raises: ValueError for what is no such text."""
    found: dict[tuple[str, str], Entity] = {}
    for labels, name, value in _samples(text):
        instance = labels.get("GPU_I_ID", "")
        entity = found.setdefault((labels["UUID"], instance), Entity(labels["UUID"], instance or None, labels))
        if value < (_BLANK_LARGE if name in _LARGE else _BLANK):
            entity.values[name] = value
    return [found[key] for key in sorted(found)]


def _samples(text: str) -> Iterator[tuple[dict[str, str], str, float]]:
    for family in text_string_to_metric_families(text):
        if family.name.startswith(_PREFIX):
            for sample in family.samples:
                if sample.labels.get("UUID"):
                    yield sample.labels, sample.name.removeprefix(_PREFIX).removesuffix("_total"), sample.value


def _identity(entity: Entity, host: str) -> GpuId:
    labels, index = entity.labels, entity.labels.get("gpu", "")
    name = labels.get("modelName", "unknown")
    uuid = entity.uuid
    if entity.instance is not None:  # the exporter does not tell an instance's own uuid
        uuid, name = f"MIG-{uuid}/{entity.instance}", f"{name} MIG {labels.get('GPU_I_PROFILE', '')}".rstrip()
    return GpuId(uuid, int(index) if index.isdecimal() else 0, name, labels.get("Hostname") or host)


def _memory(values: Mapping[str, float]) -> dict[str, int | None]:
    used, free, reserved = (values.get(name) for name in ("FB_USED", "FB_FREE", "FB_RESERVED"))
    if used is None or free is None:
        return {}
    used += reserved or 0  # as NVML counts it: used + free is the total
    return {
        "memory_total_bytes": round((used + free) * _MIB),
        "memory_used_bytes": round(used * _MIB),
        "memory_free_bytes": round(free * _MIB),
    }


def _scaled(values: Mapping[str, float], name: str, factor: float) -> float | None:
    value = values.get(name)
    return None if value is None else value * factor


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
