"""How fast work leaves while more of it waits."""

from __future__ import annotations

from schemas.progress import Pace
from streams.pace import Gauge, Minute


def test_a_minute_sums_what_its_seconds_brought() -> None:
    minute = Minute()
    for at_s, amount in ((0.5, 2), (0.9, 3), (40.0, 7)):
        minute.add(amount, now_s=at_s)
    assert [12, 7, 0] == [minute.total(now_s=now_s) for now_s in (59.0, 61.0, 101.0)]


def test_only_spans_in_which_work_waited_all_along_count() -> None:
    gauge = Gauge()
    looks = [(True, 4), (True, 6), (False, 9), (True, 50), (True, 8)]  # what waits at a look, and what is sent after it
    for now_s, (waits, sent) in enumerate(looks):
        gauge.look(waits=waits, now_s=now_s)
        gauge.sent(sent, 100 * sent)
    gauge.look(waits=True, now_s=5.0)

    assert Pace(4 + 50 + 8, 6200, 3.0) == gauge.pace(now_s=5.0)


def test_a_pace_is_that_of_the_last_minute() -> None:
    gauge = Gauge()
    gauge.look(waits=True, now_s=0.0)
    for now_s in range(1, 101):
        gauge.sent(2, 20)
        gauge.look(waits=True, now_s=now_s)

    assert Pace(120, 1200, 60.0) == gauge.pace(now_s=100.0)
    assert Pace() == gauge.pace(now_s=200.0)
