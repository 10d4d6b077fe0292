"""Records as they travel, kept as bytes: what other versions wrote is read, and what this one writes has not changed.

A file changes only together with the contract. `tests/golden/NAME.json` holds one record's value, without a newline at its end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.cache import CacheEntry
from schemas.codec import decode, decode_request, encode
from schemas.gpu import GpuId, GPUMetrics, GpuProcess, GpuSource, ReadingError
from schemas.progress import BackendStatus, Chunk, ClassState, Gate, LaneState, Pace, Started, WorkerSnapshot
from schemas.result import (
    BatchRef,
    ErrorType,
    Outcome,
    Output,
    Result,
    ResultError,
    Routing,
    Source,
    Timing,
    Usage,
)
from schemas.topics import Lane

GOLDEN = Path(__file__).parents[1] / "golden"
AT_MS = 1_795_420_000_000

COMPLETED = Result(
    task_id="ward7-018f",
    tenant="ward7",
    outcome=Outcome.COMPLETED,
    priority=Lane.HIGH,
    source=Source("triage.requests.high", 3, 1842),
    agent_type="symptom-check",
    model="tiny",
    backend="llama-1",
    output=Output("Ja, schöner Tag.", "stop"),
    usage=Usage(31, 12, 43),
    attempts=1,
    batch=BatchRef("b-91", 4),
    timing=Timing(AT_MS, AT_MS + 2, AT_MS + 5, AT_MS + 215, 3.1, 210.4),
    routing=Routing("fits, shortest queue", "NORMAL", ["logit_bias"]),
    metadata={"any": "string"},
)
FAILED = Result(
    task_id="normal.0.7",
    tenant="default",
    outcome=Outcome.FAILED,
    priority=Lane.NORMAL,
    source=Source("triage.requests.normal", 0, 7),
    model="tiny",
    backend="llama-1",
    error=ResultError(ErrorType.RETRIES_EXHAUSTED, "every try failed; the last: HTTP 500", True, "backend_unavailable"),
    attempts=3,
    batch=BatchRef("b-92", 1),
    timing=Timing(AT_MS, AT_MS + 2, AT_MS + 5, AT_MS + 15, 3.0, 10.0),
    routing=Routing("only one that can"),
)
EXPIRED = Result(
    task_id="ward7-0190",
    tenant="ward7",
    outcome=Outcome.EXPIRED,
    priority=Lane.LOW,
    source=Source("triage.requests.low", 11, 0),
    error=ResultError(ErrorType.DEADLINE_EXPIRED, "The deadline passed before the answer was there."),
    timing=Timing(AT_MS, AT_MS + 2, None, AT_MS + 30_000, 29_998.0, None),
)
CANCELLED = Result(
    task_id="0a1b:0190f6c6d1e27000a0b1c2d3e4f50617",
    tenant="ward7",
    outcome=Outcome.CANCELLED,
    priority=Lane.CRITICAL,
    source=Source("triage.requests.critical", 5, 9),
    error=ResultError(ErrorType.CANCELLED, "Cancelled by its owner."),
    batch_id="sb-1",
    timing=Timing(AT_MS, None, None, AT_MS + 100, None, None),
)
CACHED = Result(
    task_id="ward7-0191",
    tenant="ward7",
    outcome=Outcome.COMPLETED,
    priority=Lane.HIGH,
    source=Source("triage.requests.high", 3, 1900),
    model="tiny",
    output=Output("Ja, schöner Tag.", "stop"),
    usage=Usage(31, 12, 43),
    cached=True,
    timing=Timing(AT_MS, AT_MS + 2, None, AT_MS + 2, 0.1, 0.0),
    routing=Routing("cached answer"),
)

WRITTEN: dict[str, Any] = {
    "result-completed": COMPLETED,
    "result-failed": FAILED,
    "result-expired": EXPIRED,
    "result-cancelled": CANCELLED,
    "result-cached": CACHED,
    "started": Started(
        "b-91",
        "host-1-77",
        "llama-1",
        [("ward7-018f", "triage.requests.high", 1842, 1), ("low.3.7", "triage.requests.low", 7, 2)],
        AT_MS,
    ),
    "chunk": Chunk("ward7-018f", 1, 0, "Ja, "),
    "cache-entry": CacheEntry(
        Output("Ja, schöner Tag.", "stop"), Usage(31, 12, 43), "tiny", AT_MS, AT_MS + 300_000, "ward7"
    ),
    "gpu-sample": GPUMetrics(
        gpu=GpuId("GPU-6f1c", 0, "NVIDIA H100 80GB HBM3", "host-1"),
        source=GpuSource.NVML,
        sampled_at_ms=AT_MS,
        memory_total_bytes=85_520_809_984,
        memory_used_bytes=1_073_741_824,
        memory_free_bytes=84_447_068_160,
        utilization_ratio=0.5,
        temperature_c=41.0,
        power_w=None,
        energy_joules_total=None,
        sm_clock_mhz=1980,
        clock_event_reasons=["sw_power_cap"],
        processes=[GpuProcess(77, "python", 524_288_000), GpuProcess(78, None, None)],
        errors=[ReadingError("power_w", "Not Supported"), ReadingError("energy_joules_total", "Not Supported")],
        temperature_limit_c=90.0,
        faults=["xid_94"],
    ),
    "worker-snapshot": WorkerSnapshot(
        worker="host-1-77",
        host="host-1",
        pid=77,
        at_ms=AT_MS,
        draining=True,
        lanes={
            "critical": LaneState(0, 1, 0.0, 6, 0, 1536, 8, Pace(0, 0, 0.0)),
            "low": LaneState(12, 0, 4.5, 0, 3072, 256, 1, Pace(1, 256, 4.0)),
        },
        in_flight=["ward7-018f"],
        fetched_through={"triage.requests.high/3": 1842},
        classes=[ClassState(Lane.LOW, "ward7", None, 12, 3072, Gate.NO_FREE_SLOT, AT_MS)],
        backends=[
            BackendStatus("llama-1", "llamacpp", True, 1, 4, ["tiny"], 0.5, 0.0, kept={"critical": 1}),
            BackendStatus("vllm-1", "vllm", False, 0, 8, [], reason="connection refused", pressure="HIGH", lost=True),
        ],
        pace=Pace(1, 256, 4.0),
        strict=False,
    ),
}

# Read only: what an earlier version wrote. What it did not tell is at its default.
OLDER: dict[str, Any] = {
    "worker-snapshot-1": replace(
        WRITTEN["worker-snapshot"],
        lanes={"critical": LaneState(0, 1, 0.0, 6), "low": LaneState(12, 0, 4.5, 0)},
        backends=[
            BackendStatus("llama-1", "llamacpp", True, 1, 4, ["tiny"], 0.5, 0.0),
            BackendStatus("vllm-1", "vllm", False, 0, 8, [], reason="connection refused"),
        ],
        pace=Pace(),
    )
}

REQUESTS: dict[str, dict[str, Any]] = {
    "request-minimal": {"messages": [{"role": "user", "content": "..."}]},
    "request-full": {
        "task_id": "ward7-018f",
        "tenant": "ward7",
        "agent_type": "symptom-check",
        "model": "auto",
        "messages": [{"role": "user", "content": "..."}],
        "parameters": {
            "max_tokens": 128,
            "temperature": 0.2,
            "top_p": 1.0,
            "stop": [],
            "seed": 7,
            "response_format": None,
            "tools": None,
            "tool_choice": None,
        },
        "created_at_ms": 1795420000000,
        "deadline_at_ms": 1795420030000,
        "cache": {"mode": "use", "ttl_s": 300},
        "budget": "live",
        "stream": False,
        "metadata": {"any": "string"},
    },
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_read_as_what_it_says(name: str) -> None:
    found = {key: value for key, value in decode_request(golden(name)).model_dump().items() if value is not None}
    assert {"schema_version": 1, **REQUESTS[name]} == found


@pytest.mark.parametrize("name", WRITTEN)
def test_a_record_is_read_as_what_it_says(name: str) -> None:
    assert WRITTEN[name] == decode(type(WRITTEN[name]), golden(name))


@pytest.mark.parametrize("name", OLDER)
def test_an_older_record_is_read_as_what_it_says(name: str) -> None:
    assert OLDER[name] == decode(type(OLDER[name]), golden(name))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_record_is_written_as_it_was(name: str) -> None:
    assert golden(name) == encode(WRITTEN[name])


def test_every_file_is_checked() -> None:
    assert {*REQUESTS, *WRITTEN, *OLDER} == {path.stem for path in GOLDEN.iterdir()}
