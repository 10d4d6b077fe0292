"""A call as the bytes of a chat request."""

from __future__ import annotations

from typing import Any

import orjson

from agents.backends.kinds import Kind
from schemas.request import DEFAULT_MAX_TOKENS, OPENAI_PARAMETERS
from streams.errors import BackendRejected
from streams.ports import Call


def encode_call(call: Call, kind: Kind) -> tuple[bytes, tuple[str, ...]]:
    """Return the body, and the names of the parameters that were left out because this kind does not take them.

    A null means "not set" and is left out without being named. Without `max_tokens` the default is written, because a
    server's own default may be its whole context.

    Raises: BackendRejected when the call cannot be written as JSON.
    """
    body: dict[str, Any] = {"model": call.model, "messages": call.messages}
    dropped: tuple[str, ...] = ()
    for name, value in call.parameters.items():
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
