"""What a server or the network said instead of an answer, translated into ours.

No text of a server's body gets through: it may quote the prompt. The status and a `type` or `code` that is a plain
identifier do. Errors whose own text may quote the server are therefore not chained.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import aiohttp
import orjson

from streams.errors import (
    BackendError,
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
)
from wire.clock import wall_ms

LONGEST_RETRY_AFTER_S = 3600.0
_IDENTIFIER = re.compile(r"[A-Za-z0-9_]{1,64}")
# Source: openai-python `_should_retry`, without 409, which no model server was seen to send.
_PASSING = frozenset({408, 425})


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
    """Return the error for an answer whose status is not 2xx. `body` may be cut short, and anything."""
    error = _error_object(body)
    detail = _detail(status, error)
    if status in (429, 503):
        return BackendOverloaded(detail, retry_after_s=retry_after_s(headers))
    if status == 500:
        return BackendFailed(detail, retry_after_s=retry_after_s(headers))
    if status in _PASSING or status > 500:
        return BackendUnavailable(detail, retry_after_s=retry_after_s(headers))
    if status == 404:
        return BackendRejected(f"{detail}: {_missing(error)}")
    if status in (401, 403):
        return BackendRejected(f"{detail}: the server asks for a key, and api_key_file does not give it")
    if status >= 400:
        return BackendRejected(detail)
    return BackendProtocolError(f"{detail}: not an answer, and redirects are not followed")


def is_no_route(status: int, body: bytes) -> bool:
    """Whether a server says that it has no such route, and not that something is wrong with the request."""
    return status in (404, 405) and not _error_object(body)


def error_code(body: bytes) -> str | None:
    """Return the server's own short name of an error, None when there is none that is a plain identifier."""
    return _identifier(_error_object(body))


def _detail(status: int, error: Mapping[str, object]) -> str:
    code = _identifier(error)
    return f"HTTP {status} ({code})" if code else f"HTTP {status}"


def _error_object(body: bytes) -> Mapping[str, object]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {}


def _identifier(error: Mapping[str, object]) -> str | None:
    for name in ("code", "type"):  # the code is the narrower one where it is not just the status again
        value = error.get(name)
        if isinstance(value, str) and not value.isdigit() and _IDENTIFIER.fullmatch(value):
            return value
    return None


def _missing(error: Mapping[str, object]) -> str:
    message = error.get("message")
    if error.get("code") == "model_not_found" or (isinstance(message, str) and "model" in message.lower()):
        return "model not found on this server"
    return "no such route, so the backend's url is not the server's root"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the wait that the server asks for, at most an hour; None when it does not say, or not clearly.

    Source: RFC 9110 section 10.2.3 (seconds or a date); `retry-after-ms` is OpenAI's.
    """
    wait = _number(headers.get("Retry-After-Ms"))
    if wait is not None:
        wait /= 1000
    else:
        text = headers.get("Retry-After")
        wait = _number(text)
        if wait is None and text:
            wait = _until(text, headers.get("Date"))
    return None if wait is None else min(max(wait, 0.0), LONGEST_RETRY_AFTER_S)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _until(text: str, date: str | None) -> float | None:
    """Return the seconds to an HTTP date, by the server's own clock where it tells it."""
    try:
        then_s = parsedate_to_datetime(text).timestamp()
        now_s = parsedate_to_datetime(date).timestamp() if date else wall_ms() / 1000
    except (ValueError, OverflowError):
        return None
    return then_s - now_s


def transport_failure(error: aiohttp.ClientError | OSError | UnicodeError, *, timeout_s: float) -> BackendError:
    """Return the error for a call that got no whole answer."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return BackendUnavailable("no connection in time")
        case TimeoutError():
            return BackendTimeout(f"no answer within {timeout_s:.3g} s")
        case aiohttp.ClientSSLError():
            return BackendUnavailable("no connection: TLS failed")
        case aiohttp.ClientConnectorError():
            return BackendUnavailable(f"no connection: {_errno_name(error)}")
        case aiohttp.ClientPayloadError():
            return BackendUnavailable("the connection closed in the middle of the answer")
        case UnicodeError():
            return BackendUnavailable("no connection: the host is not known")
        case aiohttp.ClientConnectionError() | OSError():
            return BackendUnavailable("the connection closed before the answer")
        case _:
            return BackendProtocolError("the answer is not HTTP")


def _errno_name(error: aiohttp.ClientConnectorError) -> str:
    return errno.errorcode.get(error.errno or 0, "the host is not known")
