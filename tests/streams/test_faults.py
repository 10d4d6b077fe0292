"""Which error reports of a driver make a card broken, and for how long."""

from __future__ import annotations

import pytest

from streams.faults import CONTAINED, CONTAINED_S, NEEDS_RESET, FaultLog

LATER_MS = round(CONTAINED_S * 1000)


@pytest.mark.parametrize("code", sorted(NEEDS_RESET))
def test_should_hold_what_needs_a_reset_for_good(code: int) -> None:
    log = FaultLog()
    log.xid(code, now_ms=0)
    assert [f"xid_{code}"] == log.active(now_ms=100 * LATER_MS)


@pytest.mark.parametrize("code", sorted(CONTAINED))
def test_should_hold_what_was_contained_for_a_while(code: int) -> None:
    log = FaultLog()
    log.xid(code, now_ms=0)
    assert [f"xid_{code}"] == log.active(now_ms=LATER_MS - 1)
    assert [] == log.active(now_ms=LATER_MS)


@pytest.mark.parametrize("code", [0, 13, 31, 43, 45, 92])
def test_should_leave_other_reports_alone(code: int) -> None:
    log = FaultLog()
    log.xid(code, now_ms=0)
    assert [] == log.active(now_ms=0)


def test_should_count_new_memory_errors_only() -> None:
    log = FaultLog()
    for count, faults in [(5, []), (5, []), (6, ["ecc_uncorrected"])]:
        log.uncorrected(count, now_ms=0)
        assert faults == log.active(now_ms=0)
    log.uncorrected(0, now_ms=LATER_MS)  # the driver was loaded anew
    assert [] == log.active(now_ms=LATER_MS)
