"""A chat answer, read tolerantly: what the servers leave out or add does not matter, what cannot be understood does."""

from __future__ import annotations

from typing import Any, TypeGuard

import orjson

from agents.backends.refusals import error_code
from schemas.result import Output, Usage
from streams.errors import BackendProtocolError


def decode_answer(body: bytes) -> tuple[Output, Usage | None]:
    """Return what the model said, and its tokens when the server counted them.

    Raises: BackendProtocolError, whose text holds nothing of the body.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        # Not chained: the decoder's error carries the whole body.
        raise BackendProtocolError("the answer is not JSON in UTF-8") from None
    try:
        choice = document["choices"][0]
        output = _output(choice["message"], choice.get("finish_reason"), choice.get("logprobs"))
    except (AttributeError, KeyError, IndexError, TypeError):
        code = error_code(body)  # some proxies answer 200 and put an error into the body
        detail = "the answer has no choices[0].message with a content"
        raise BackendProtocolError(f"{detail} ({code})" if code else detail) from None
    return output, _usage(document.get("usage"))


def _output(message: dict[str, Any], finish_reason: object, logprobs: object) -> Output:
    reason = finish_reason if isinstance(finish_reason, str) else None
    content = _text(message.get("content"))
    tool_calls = _tool_calls(message.get("tool_calls"))
    refusal = message.get("refusal")
    refusal = refusal if isinstance(refusal, str) else None
    # A model that spends all its tokens on reasoning ends with a reason and no content; no word at all is no answer.
    if content is None and tool_calls is None and refusal is None and reason is None:
        raise KeyError("content")
    return Output(content, reason, tool_calls, refusal, logprobs if isinstance(logprobs, dict) else None)


def _text(content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError("content")
    return "".join(part["text"] for part in content if part["type"] == "text")


def _tool_calls(calls: object) -> list[dict[str, Any]] | None:
    if not calls:
        return None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise TypeError("tool_calls")
    return calls


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not _is_count(prompt) or not _is_count(completion):
        return None
    total = usage.get("total_tokens")
    return Usage(prompt, completion, total if _is_count(total) else prompt + completion)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0
