"""Acknowledgement in offset order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.acks import InOrderAcks


def of(*offsets: int) -> InOrderAcks[str]:
    acks: InOrderAcks[str] = InOrderAcks()
    for offset in offsets:
        acks.add(offset, f"event-{offset}")
    return acks


def test_a_finished_request_is_held_back_until_all_before_it_are_finished() -> None:
    acks = of(5, 6, 7)
    assert [] == acks.complete(7)
    assert [] == acks.complete(6)
    assert ["event-5", "event-6", "event-7"] == acks.complete(5)


def test_offsets_may_have_gaps() -> None:
    acks = of(1, 4, 9)
    assert ["event-1"] == acks.complete(1)
    assert ["event-4"] == acks.complete(4)


def test_a_second_or_unknown_completion_releases_nothing() -> None:
    acks = of(5, 6)
    assert ["event-5"] == acks.complete(5)
    assert [] == acks.complete(5)
    assert [] == acks.complete(99)
    assert [6] == acks.unfinished


def test_an_offset_below_the_newest_is_a_redelivery_and_is_ignored() -> None:
    acks = of(5, 6)
    acks.add(5, "again")
    assert ["event-5"] == acks.complete(5)


def test_the_span_counts_from_the_oldest_unfinished_to_the_newest() -> None:
    acks = of()
    assert (0, None) == (acks.span, acks.oldest)
    acks = of(10, 11, 400)
    acks.complete(11)
    assert (391, 10, [10, 400]) == (acks.span, acks.oldest, acks.unfinished)
    acks.complete(10)
    assert (1, 400) == (acks.span, acks.oldest)
    assert repr(acks) == "InOrderAcks(oldest=400, span=1)"


@given(st.sets(st.integers(0, 300), min_size=1, max_size=60).flatmap(lambda found: st.permutations(sorted(found))))
def test_whatever_the_order_of_completion_each_is_released_once_in_offset_order(order: list[int]) -> None:
    acks = of(*sorted(order))
    released = [token for offset in order for token in acks.complete(offset)]
    assert [f"event-{offset}" for offset in sorted(order)] == released
    assert 0 == acks.span


class AcksMachine(RuleBasedStateMachine):
    """Requests arrive and end in any order; the model is the list of what arrived and the set of what ended."""

    def __init__(self) -> None:
        super().__init__()
        self.acks: InOrderAcks[int] = InOrderAcks()
        self.arrived: list[int] = []
        self.ended: set[int] = set()
        self.released: list[int] = []

    @rule(gap=st.integers(1, 5))
    def arrives(self, gap: int) -> None:
        offset = (self.arrived[-1] if self.arrived else 0) + gap
        self.arrived.append(offset)
        self.acks.add(offset, offset)

    @precondition(lambda self: set(self.arrived) - self.ended)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(set(self.arrived) - self.ended)))
        self.ended.add(offset)
        self.released += self.acks.complete(offset)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def ends_again(self, data: st.DataObject) -> None:
        before = list(self.released)
        self.released += self.acks.complete(data.draw(st.sampled_from(sorted(self.ended))))
        assert before == self.released

    @invariant()
    def what_is_released_is_the_longest_finished_beginning(self) -> None:
        finished = []
        for offset in self.arrived:
            if offset not in self.ended:
                break
            finished.append(offset)
        assert finished == self.released
        held = self.arrived[len(finished) :]
        assert (held[-1] - held[0] + 1 if held else 0) == self.acks.span
        assert [offset for offset in held if offset not in self.ended] == self.acks.unfinished


AcksMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestAcksInAnyOrder = AcksMachine.TestCase
