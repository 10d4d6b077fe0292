"""Signals of the long-running verbs: the first asks for a clean end, the second ends the process at once."""

from __future__ import annotations

import asyncio
import os
import signal

_FORCED_EXIT = 1


def stop_on_signals() -> asyncio.Event:
    """Return an event that the first SIGINT or SIGTERM sets; call it in the running loop."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(_FORCED_EXIT)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop
