"""OpenAI's chat bodies and ours: a chat request to a request's fields, a result to a completion or an error with its HTTP status."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, assert_never

from schemas.result import ErrorType, Outcome, Result

# Fields of a chat request that are none of a model's: how it is sent, billed and kept.
_NOT_SAMPLING = frozenset({"model", "messages", "metadata", "stream", "stream_options", "store", "service_tier", "n"})
_BACKEND_FAULTS = frozenset(
    {
        ErrorType.BACKEND_TIMEOUT,
        ErrorType.BACKEND_UNAVAILABLE,
        ErrorType.BACKEND_REJECTED,
        ErrorType.BACKEND_PROTOCOL,
        ErrorType.RETRIES_EXHAUSTED,
    }
)
_STATUS = {
    **dict.fromkeys(_BACKEND_FAULTS, 502),
    ErrorType.INVALID_REQUEST: 400,
    ErrorType.UNSUPPORTED_SCHEMA: 400,
    ErrorType.UNKNOWN_MODEL: 404,
    ErrorType.REQUEST_TOO_LARGE: 413,
}


def request_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that asks what a chat body does; `n` above 1 stays, to be refused where requests are."""
    parameters = {name: value for name, value in body.items() if name not in _NOT_SAMPLING and value is not None}
    if body.get("n") not in (None, 1):
        parameters["n"] = body["n"]
    fields = {name: body[name] for name in ("model", "messages", "metadata") if body.get(name) is not None}
    return {**fields, **({"parameters": parameters} if parameters else {})}


def http_status(result: Result) -> int:
    """Return the status that a held call of this outcome is answered with."""
    match result.outcome:
        case Outcome.COMPLETED:
            return 200
        case Outcome.EXPIRED:
            return 504
        case Outcome.CANCELLED:
            return 499
        case Outcome.FAILED:
            return _STATUS.get(result.error.type, 500) if result.error else 500
        case _ as never:
            assert_never(never)


def answer_body(result: Result) -> dict[str, Any]:
    """Return the chat completion in a result, or for one that did not complete OpenAI's error object."""
    if result.outcome is Outcome.COMPLETED and result.output is not None:
        return _completion(result)
    status, error = http_status(result), result.error
    kind = "server_error" if status >= 500 else "invalid_request_error"
    told = error.detail if error else f"the task is {result.outcome.value}"
    return {"error": {"message": told, "type": kind, "param": None, "code": error.type.value if error else None}}


def _completion(result: Result) -> dict[str, Any]:
    output = result.output
    assert output is not None
    message: dict[str, Any] = {"role": "assistant", "content": output.content, "refusal": output.refusal}
    if output.tool_calls:
        message["tool_calls"] = output.tool_calls
    return {
        "id": f"chatcmpl-{result.task_id}",
        "object": "chat.completion",
        "created": (result.timing.finished_at_ms or 0) // 1000,
        "model": result.model,
        "choices": [
            {"index": 0, "message": message, "finish_reason": output.finish_reason, "logprobs": output.logprobs}
        ],
        "usage": asdict(result.usage) if result.usage else None,
    }
