"""What each error of aiokafka says of the record that met it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
from aiokafka import errors
from hypothesis import given
from hypothesis import strategies as st

from wire.verdicts import TABLE, Backoff, Verdict, verdict_of

CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.KafkaError)]


def made(error: type[BaseException]) -> BaseException:
    """Return an error without asking its class for arguments."""
    return error.__new__(error)


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_has_a_verdict_and_one_that_passes_is_never_its_callers(error: type[errors.KafkaError]) -> None:
    verdict = verdict_of(made(error))
    if error.retriable:
        assert verdict in (Verdict.AGAIN, Verdict.UNKNOWN)
    # What the table does not name may be written, and is never thrown away at once.
    if error not in TABLE and not any(each in TABLE for each in error.__mro__[1:] if each is not errors.KafkaError):
        assert Verdict.UNKNOWN == verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (-1, "unknown"),
        (2, "again"),
        (3, "again"),
        (5, "again"),
        (6, "again"),
        (7, "unknown"),
        (10, "alone"),
        (17, "refuse"),
        (18, "alone"),
        (19, "again"),
        (20, "unknown"),
        (21, "refuse"),
        (29, "refuse"),
        (31, "refuse"),
        (32, "alone"),
        (40, "refuse"),
        (42, "refuse"),
        (43, "refuse"),
        (44, "refuse"),
        (45, "rebuild"),
        (47, "rebuild"),
        (49, "rebuild"),
        (53, "refuse"),
        (56, "unknown"),
        (59, "rebuild"),
        (87, "unknown"),  # a code that aiokafka does not know
    ],
)
def test_what_a_broker_answers_to_a_produce(code: int, verdict: str) -> None:
    assert verdict == verdict_of(made(errors.for_code(code))).value


def test_an_error_of_nobody_knows_what_is_unknown() -> None:
    assert Verdict.UNKNOWN == verdict_of(RuntimeError())


def pauses(backoff: Backoff, gaps_s: list[float]) -> Iterator[float]:
    """Yield the pause of each replacement, each `gaps_s` after the producer before it began."""
    now_s = 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        pause_s = backoff.next_s(now_s=now_s)
        yield pause_s
        now_s += pause_s


def test_replacements_in_a_row_wait_twice_as_long_each_up_to_a_bound() -> None:
    expected = [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert expected == pytest.approx(list(pauses(Backoff(), [0.0] * 10)))


def test_a_producer_that_lived_long_enough_is_replaced_at_once() -> None:
    assert [0.0, 0.05, 0.1, 0.0, 0.05] == pytest.approx(list(pauses(Backoff(), [0, 1, 9.9, 10, 1])))


@given(st.lists(st.floats(0, 30), max_size=200))
def test_however_they_come_replacements_are_few_and_none_waits_longer_than_the_bound(gaps_s: list[float]) -> None:
    waited = list(pauses(Backoff(), gaps_s))
    assert all(0 <= pause_s <= 5.0 for pause_s in waited)
    quick = [later for gap_s, later in zip(gaps_s[1:], waited[1:], strict=True) if gap_s < 10]
    assert all(pause_s >= 0.05 for pause_s in quick)
