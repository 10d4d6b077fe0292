"""Calls as the bytes of a request: a conversation, a batch of conversations, or raw prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from agents.backends.kinds import Kind
from schemas.request import DEFAULT_MAX_TOKENS, OPENAI_PARAMETERS
from streams.errors import BackendRejected
from streams.ports import Call

# What vLLM's batch of conversations refuses; such calls go one by one.
# Source: vLLM, BatchChatCompletionRequest.
_NOT_IN_A_BATCH = frozenset({"tools", "tool_choice", "parallel_tool_calls", "use_beam_search", "n"})
# What has no meaning, or another one, for a raw prompt.
_CHAT_ONLY = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs"})


def encode_call(call: Call, kind: Kind) -> tuple[bytes, tuple[str, ...]]:
    """Return the body, and the names of the parameters that were left out because this kind does not take them.

    A null means "not set" and is left out without being named. Without `max_tokens` the default is written, because a
    server's own default may be its whole context.

    Raises: BackendRejected when the call cannot be written as JSON.
    """
    return _encode({"model": call.model, "messages": call.messages}, call.parameters, kind)


def encode_conversations(calls: Sequence[Call], kind: Kind) -> tuple[bytes, tuple[str, ...]]:
    """Return the body of one call for all conversations, which have their model and parameters in common.

    Raises: BackendRejected when it cannot be written as JSON.
    """
    first = calls[0]
    return _encode({"model": first.model, "messages": [call.messages for call in calls]}, first.parameters, kind)


def encode_prompts(calls: Sequence[Call], template: str, kind: Kind) -> tuple[bytes, tuple[str, ...]]:
    """Return the body of one call for all prompts: each call's single user message, in its place in `template`.

    Raises: BackendRejected when it cannot be written as JSON.
    """
    first = calls[0]
    prompts = [template.replace("{prompt}", call.messages[0]["content"]) for call in calls]
    return _encode({"model": first.model, "prompt": prompts}, first.parameters, kind)


def are_alike(calls: Sequence[Call]) -> bool:
    """Whether all calls have their model and parameters in common, and none of these that a batch cannot have."""
    first = calls[0]
    return _lacks(first.parameters, _NOT_IN_A_BATCH) and all(
        call.model == first.model and call.parameters == first.parameters for call in calls
    )


def is_prompt(call: Call) -> bool:
    """Whether a conversation is one user message of plain text, so that it can be sent as a raw prompt."""
    return (
        len(call.messages) == 1
        and call.messages[0].get("role") == "user"
        and isinstance(call.messages[0].get("content"), str)
        and _lacks(call.parameters, _CHAT_ONLY)
    )


def _lacks(parameters: Mapping[str, Any], names: frozenset[str]) -> bool:
    return not any(parameters.get(name) is not None for name in names)


def _encode(body: dict[str, Any], parameters: Mapping[str, Any], kind: Kind) -> tuple[bytes, tuple[str, ...]]:
    dropped: tuple[str, ...] = ()
    for name, value in parameters.items():
        if value is None:
            continue
        if name not in kind.withheld and (kind.takes_unknown or name in OPENAI_PARAMETERS):
            body[name] = value
        else:
            dropped += (name,)
    if "max_tokens" not in body and "max_completion_tokens" not in body:
        body["max_tokens"] = DEFAULT_MAX_TOKENS
    try:
        return orjson.dumps(body), dropped
    except TypeError:
        # Not chained: the encoder's text may quote the request.
        raise BackendRejected("the request cannot be written as JSON") from None
