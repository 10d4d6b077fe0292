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
    document = _document(body)
    try:
        output = _said(document["choices"][0])
    except (AttributeError, KeyError, IndexError, TypeError):
        raise _without("choices[0].message with a content", body) from None
    return output, _usage(document.get("usage"))


def decode_answers(body: bytes, count: int) -> tuple[list[Output | BackendProtocolError], Usage | None]:
    """Return what the model said to each of `count` items, by the index that each choice tells, and the tokens of all together.

    Raises: BackendProtocolError when there is not exactly one choice for each item: then nobody can say whose is whose.
    """
    document = _document(body)
    try:
        choices = {choice["index"]: choice for choice in document["choices"]}
        given = len(document["choices"])
    except (AttributeError, KeyError, TypeError):
        raise _without("choices with an index each", body) from None
    if given != count or choices.keys() != set(range(count)):
        raise BackendProtocolError(f"{given} choices for {count} items, or not one for each")
    return [_item(choices[place]) for place in range(count)], _usage(document.get("usage"))


def _document(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # Not chained: the decoder's error carries the whole body.
        raise BackendProtocolError("the answer is not JSON in UTF-8") from None


def _without(what: str, body: bytes) -> BackendProtocolError:
    code = error_code(body)  # some proxies answer 200 and put an error into the body
    detail = f"the answer has no {what}"
    return BackendProtocolError(f"{detail} ({code})" if code else detail)


def _item(choice: dict[str, Any]) -> Output | BackendProtocolError:
    try:
        return _said(choice)
    except (AttributeError, KeyError, TypeError):
        return BackendProtocolError("the item's choice has no message with a content")


def _said(choice: dict[str, Any]) -> Output:
    """Return what a choice says: a chat's has a message, a raw prompt's a text."""
    message = {"content": choice["text"]} if "text" in choice else choice["message"]
    return _output(message, choice.get("finish_reason"), choice.get("logprobs"))


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
