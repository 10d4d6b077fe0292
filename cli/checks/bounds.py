"""Every look has its time, and its failure is a finding like any other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

from cli.checks.finding import Finding, error

CHECK_S = 5.0

_T = TypeVar("_T")


async def bounded(
    check: str, look: Awaitable[list[Finding]], *, remedy: str, timeout_s: float = CHECK_S
) -> list[Finding]:
    """Return what `look` finds within its time. `remedy` is for when it does not end, or fails."""
    try:
        async with asyncio.timeout(timeout_s):
            return await look
    except TimeoutError:
        return [error(check, f"no answer within {timeout_s:g} s", remedy)]
    except Exception as failure:  # noqa: BLE001 - one check's failure must not hide what the others find
        return [error(check, f"{type(failure).__name__}: {failure}", remedy)]


async def in_thread(call: Callable[[], _T]) -> _T:
    """Return what a blocking call gives. A call that hangs does not hold up the end of the process."""
    answer: Future[_T] = Future()
    answer.set_running_or_notify_cancel()  # from here on nobody but the thread settles it

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as failure:  # noqa: BLE001 - raised again where it is waited for
            answer.set_exception(failure)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(answer)
