"""Examples of bodies, for the description in OpenAPI. A test sends and compares them."""

from __future__ import annotations

from typing import Any

_QUESTION = [{"role": "user", "content": "Is chest pain an emergency?"}]

SUBMIT: dict[str, Any] = {
    "smallest": {"value": {"messages": _QUESTION}},
    "whole": {
        "value": {
            "priority": "high",
            "agent_type": "symptom-check",
            "messages": [{"role": "system", "content": "Answer in one sentence."}, *_QUESTION],
            "parameters": {"max_tokens": 128, "temperature": 0.2},
            "timeout_s": 30,
            "metadata": {"ward": "7"},
        }
    },
}
SUBMIT_BATCH: dict[str, Any] = {
    "two": {"value": {"tasks": [{"messages": _QUESTION}, {"messages": _QUESTION, "priority": "low"}]}}
}
CLEANUP: dict[str, Any] = {"older than a day": {"value": {"older_than_s": 86_400}}}

_TASK_ID = "3fa9:0199f2c4a1b27c3d8e4f5a6b7c8d9e0f"
SUBMITTED: dict[str, Any] = {
    "task_id": _TASK_ID,
    "status": "queued",
    "priority": "high",
    "position": 3,
    "estimate": {"wait_s": 0.42, "low_s": 0.18, "high_s": 0.66, "confidence": 0.92},
    "links": {
        "status": f"/v1/async/status/{_TASK_ID}",
        "result": f"/v1/async/result/{_TASK_ID}",
        "cancel": f"/v1/async/cancel/{_TASK_ID}",
        "explain": f"/v1/async/explain/{_TASK_ID}",
    },
}
EXPLAINED: dict[str, Any] = {
    "task_id": _TASK_ID,
    "status": "queued",
    "lane": "high",
    "position": 3,
    "tokens_ahead": 412,
    "gate": "no_free_slot",
    "reason": "Every backend that could take it is busy: llama-1 runs 3 of 4 calls and keeps the rest for critical.",
    "estimate": {"wait_s": 0.42, "low_s": 0.18, "high_s": 0.66, "confidence": 0.92},
    "considered": [{"backend": "llama-1", "model": "tiny", "score": None, "why_not": "busy"}],
    "dispatched_at": None,
    "finished_at": None,
    "backend": None,
    "model": None,
    "routing": None,
    "error": None,
}
STATUS: dict[str, Any] = {
    "task_id": _TASK_ID,
    "status": "processing",
    "priority": "high",
    "agent_type": "symptom-check",
    "created_at": "2026-11-23T07:46:40.000Z",
    "started_at": "2026-11-23T07:46:40.250Z",
    "finished_at": None,
    "attempts": 1,
    "position": None,
    "estimate": None,
    "error": None,
    "batch_id": None,
}
BATCH_SUBMITTED: dict[str, Any] = {
    "batch_id": "sb-0199f2c4a1b27c3d8e4f5a6b7c8d9e0f",
    "task_ids": [_TASK_ID],
    "accepted": 1,
    "rejected": [
        {
            "index": 1,
            "error": {
                "type": "urn:triage:problem:invalid",
                "title": "The request is not what it must be",
                "status": 422,
                "detail": "/messages: Field required",
                "errors": [{"pointer": "/messages", "detail": "Field required"}],
            },
        }
    ],
}
BATCH_STATUS: dict[str, Any] = {
    "batch_id": "sb-0199f2c4a1b27c3d8e4f5a6b7c8d9e0f",
    "total": 1,
    "completed": 0,
    "failed": 0,
    "cancelled": 0,
    "expired": 0,
    "pending": 1,
    "forgotten": 0,
    "tasks": [{"task_id": _TASK_ID, "index": 0, "status": "processing"}],
}
CANCELLED: dict[str, Any] = {"task_id": _TASK_ID, "status": "cancelled", "was": "queued"}
FORGOTTEN: dict[str, Any] = {"forgotten": 1834}
PROBLEM: dict[str, Any] = {
    "type": "urn:triage:problem:not-found",
    "title": "There is no such task",
    "status": 404,
    "detail": "There is no such task",
    "errors": [],
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
}
EVENTS = 'retry: 2000\n\nid: 1/3:0-0\nevent: status\ndata: {"task_id":"ward7-018f","status":"queued"}\n\n'
