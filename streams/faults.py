"""What is broken about a card: which of the driver's error reports count, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field

# Errors of the card that only a reset ends: uncorrectable memory (48, 64, 95, 140), stopped firmware (62, 119, 120), NVLink (74),
# fallen off the bus (79). An application's own errors (13, 31, 43, 45) say nothing of the card.
# Source: NVIDIA, "Xid Errors", table of codes and recommended actions.
NEEDS_RESET = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
# The card has put the broken memory aside and ended the program that used it; the rest goes on.
CONTAINED = frozenset({63, 94})
# A program that the card has ended takes about this long to be started again and to load its model.
CONTAINED_S = 60.0


@dataclass(slots=True)
class FaultLog:
    """The faults of one card since its reader began to look; times are milliseconds given by the caller.

    What needs a reset stays until the reader is started anew, as a reset needs anyway: it ends every program that holds the card.
    """

    _lasting: dict[str, None] = field(default_factory=dict)
    _until_ms: dict[str, int] = field(default_factory=dict)
    _uncorrected_count: int | None = None

    def xid(self, code: int, *, now_ms: int, is_old: bool = False) -> None:
        """Take an error report of the driver; `is_old`: from before the reader began to look."""
        if code in NEEDS_RESET:
            self._lasting[f"xid_{code}"] = None
        elif code in CONTAINED and not is_old:
            self._hold(f"xid_{code}", now_ms)

    def uncorrected(self, count: int, *, now_ms: int) -> None:
        """Take the count of uncorrectable memory errors since the driver was loaded. Only new ones count: old ones were dealt with."""
        if self._uncorrected_count is not None and count > self._uncorrected_count:
            self._hold("ecc_uncorrected", now_ms)
        self._uncorrected_count = count

    def active(self, *, now_ms: int) -> list[str]:
        """Return the faults that hold now."""
        self._until_ms = {name: until_ms for name, until_ms in self._until_ms.items() if now_ms < until_ms}
        return [*self._lasting, *self._until_ms]

    def _hold(self, name: str, now_ms: int) -> None:
        self._until_ms[name] = now_ms + round(CONTAINED_S * 1000)
