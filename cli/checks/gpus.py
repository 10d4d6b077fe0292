"""The cards of this machine, and the samples that workers get to see."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from cli.checks.bounds import in_thread
from cli.checks.finding import Finding, error, listed, ok, skipped, warning
from schemas.codec import DecodeError, decode
from schemas.gpu import GPUMetrics
from streams.settings import GpuSettings, KafkaSettings
from wire.clock import wall_ms

CHECK, SAMPLES = "gpus", "samples"
PUBLISHER = "start `triage gpu-publisher` on the machine with the cards"
# Some minutes of a dozen cards; the newest sample of each counts.
_MOST_READ = 5_000
_DCGM_TIMEOUT_S = 3.0


async def look(settings: GpuSettings) -> list[Finding]:
    """Look where readings come from on this machine."""
    if settings.source == "dcgm":
        return await _dcgm(settings.dcgm_url)
    samples, reason = await in_thread(lambda: _read(settings.source))
    return cards(settings.source, samples, reason)


def cards(source: str, samples: list[GPUMetrics], reason: str | None) -> list[Finding]:
    """Return what is to be said of the cards that were read; `reason` says why there is none."""
    if source == "none":
        return [ok(CHECK, 'gpus.source = "none": no readings, by choice')]
    if not samples:
        remedy = 'install the driver here if this machine has cards, else set gpus.source = "none"'
        return [warning(CHECK, f"{source}: {reason or 'no card'}", remedy)]
    simulated = " (not real ones)" if source.startswith("simulated") else ""
    found = [ok(CHECK, f"{source}: {listed(_named(samples))}{simulated}")]
    for sample in samples:
        untold = {each.field: each.reason for each in sample.errors}
        name = f"card {sample.gpu.index}"
        if sample.lost:
            found.append(error(CHECK, f"{name} is lost", "reset it (`nvidia-smi --gpu-reset`) or restart the machine"))
        elif sample.faults:
            remedy = "stop what uses it, the gpu-publisher too, and reset it (`nvidia-smi --gpu-reset`); docs/gpu.md has the faults"
            found.append(error(CHECK, f"{name} is broken: {listed(sample.faults)}", remedy))
        elif sample.memory_total_bytes is None or sample.memory_used_bytes is None:
            told = untold.get("memory") or untold.get("gpu") or "no reason told"
            remedy = 'its pressure is unknown: give this process access to the card, or use gpus.source = "dcgm"'
            found.append(warning(CHECK, f"{name} does not tell its memory ({told})", remedy))
        elif untold:
            rows = [f"{field} ({why})" for field, why in untold.items()]
            found.append(ok(CHECK, f"{name} does not tell {listed(rows)}; what needs it goes without"))
    return found


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest sample of one card on the topic, and its age by the broker's clock."""

    sample: GPUMetrics
    age_s: float


async def look_at_samples(kafka: KafkaSettings, settings: GpuSettings, skew_ms: int) -> list[Finding]:
    """Look at the topic of samples. `skew_ms` is the broker's clock minus ours. Raises: BrokersUnreachable."""
    from aiokafka import TopicPartition

    from wire.reading import log_reader

    newest: dict[bytes | None, tuple[int, bytes]] = {}
    async with log_reader(kafka, client_id="triage-doctor") as reader:
        topic = kafka.names.gpu_metrics
        if topic not in await reader.partitions():
            return [skipped(SAMPLES, f"the topic {topic} is missing: see topics")]
        tp = TopicPartition(topic, 0)
        starts, ends = await reader.starts([tp]), await reader.ends([tp])
        async for record in reader.read({tp: max(starts[tp], ends[tp] - _MOST_READ)}, ends):
            if record.value is None:
                newest.pop(record.key, None)
            else:
                newest[record.key] = (record.timestamp, record.value)
    now_ms = wall_ms() + skew_ms
    seen, unreadable = [], 0
    for appended_ms, value in newest.values():
        try:
            seen.append(Seen(decode(GPUMetrics, value), max(now_ms - appended_ms, 0) / 1000))
        except DecodeError:
            unreadable += 1
    return samples_seen(seen, settings, unreadable=unreadable)


def samples_seen(seen: list[Seen], settings: GpuSettings, *, unreadable: int = 0) -> list[Finding]:
    """Return whether workers have fresh readings. Without any they go on, and take no card for idle or full."""
    found = []
    if unreadable:
        remedy = "find who else writes to the topic; only gpu-publishers may"
        found.append(warning(SAMPLES, f"the newest samples of {unreadable} cards are unreadable", remedy))
    stale = [each for each in seen if each.age_s > settings.stale_after_s]
    if not seen and settings.source == "none":
        found.append(ok(SAMPLES, "none, as gpus.source says"))
    elif not seen:
        found.append(warning(SAMPLES, "no samples: workers know nothing of any card", PUBLISHER))
    elif stale:
        rows = [f"{each.sample.gpu.uuid} ({_age(each.age_s)} old)" for each in stale]
        told = f"{len(stale)} of {len(seen)} cards are stale: {listed(rows)}"
        found.append(warning(SAMPLES, told, PUBLISHER.replace("start", "start or look after")))
    else:
        oldest_s = max(each.age_s for each in seen)
        found.append(ok(SAMPLES, f"{len(seen)} card{'s' * (len(seen) != 1)}, the oldest sample {oldest_s:.1f} s old"))
    return found


def _age(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _named(samples: list[GPUMetrics]) -> list[str]:
    return [f"{each.gpu.index} {each.gpu.name}" for each in samples]


def _read(source: str) -> tuple[list[GPUMetrics], str | None]:
    from agents.gpu_sources import reader
    from agents.gpu_sources.bounded import Bounded

    gpus = Bounded(reader(source))
    try:
        samples = gpus.read(now_ms=wall_ms())
        return samples, gpus.unavailable_reason
    finally:
        gpus.close()


async def _dcgm(url: str | None) -> list[Finding]:
    if url is None:
        remedy = 'set gpus.dcgm_url = "http://HOST:9400/metrics"'
        return [error(CHECK, 'gpus.source = "dcgm" without gpus.dcgm_url', remedy)]
    try:
        async with httpx.AsyncClient(timeout=_DCGM_TIMEOUT_S, trust_env=False) as client:
            reply = await client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as failure:
        return dcgm(url, None, type(failure).__name__)
    return dcgm(url, reply.status_code, reply.text)


def dcgm(url: str, status: int | None, told: str) -> list[Finding]:
    """Return what is to be said of a DCGM exporter; `status` None: no answer, and `told` is why."""
    if status is None:
        return [error(CHECK, f"{url} does not answer ({told})", "start dcgm-exporter, or correct gpus.dcgm_url")]
    if status != 200 or "DCGM_FI_" not in told:
        found = f"{url} answers HTTP {status} without a reading of DCGM's"
        return [error(CHECK, found, "correct gpus.dcgm_url: dcgm-exporter serves :9400/metrics")]
    return [ok(CHECK, f"dcgm: {url} tells {told.count('DCGM_FI_DEV_FB_USED{')} cards")]
