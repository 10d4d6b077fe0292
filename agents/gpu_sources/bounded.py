"""A driver that hangs must not take its caller with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.gpu import GPUMetrics
from streams.ports import GpuReader

# A driver that takes longer hangs.
READ_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 1.0


@dataclass
class Bounded:
    """A source whose `read` and `close` come back in time, for callers that wait.

    The work is done in a daemon thread: one that hangs in the kernel is left behind, and does not keep the process from ending.
    """

    source: GpuReader
    timeout_s: float = READ_TIMEOUT_S
    unavailable_reason: str | None = None
    _samples: list[GPUMetrics] = field(default_factory=list)
    _reading: threading.Thread | None = None

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return the samples, [] when the read does not come back; one that hangs is waited for again, not repeated."""
        if self._reading is None:
            self._reading = _started(lambda: self._read(now_ms))
        self._reading.join(self.timeout_s)
        if self._reading.is_alive():
            self.unavailable_reason = f"reading the GPUs hangs, for more than {self.timeout_s:g} s"
            return []
        self._reading = None
        self.unavailable_reason = self.source.unavailable_reason
        return self._samples

    def close(self) -> None:
        """Let go of the driver, or leave it where that hangs too."""
        _started(self.source.close).join(_CLOSE_TIMEOUT_S)

    def _read(self, now_ms: int) -> None:
        self._samples = []
        self._samples = self.source.read(now_ms=now_ms)


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="gpu-read", daemon=True)
    thread.start()
    return thread
