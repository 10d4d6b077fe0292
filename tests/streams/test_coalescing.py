"""Who leads and who follows, whatever comes and goes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.request import CachePolicy
from schemas.topics import Lane
from streams.coalescing import Coalescing, is_more_urgent, regroup
from streams.task import Task
from tests.support.tasks import make_task

USE = CachePolicy()


def alike(name: str = "a", text: str = "x", lane: Lane = Lane.NORMAL, deadline_s: float = 60.0) -> Task:
    return make_task(name, lane, text=text, cache=USE, deadline_s=deadline_s)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"cache": USE}, True),
        ({"cache": CachePolicy(mode="refresh")}, True),
        ({"cache": CachePolicy(mode="bypass")}, False),
        ({"cache": USE, "stream": True}, False),
    ],
)
def test_should_share_a_call_unless_the_request_is_to_have_its_own(fields: dict[str, object], expected: bool) -> None:
    assert expected is make_task(None, **fields).may_coalesce  # type: ignore[arg-type]


def test_should_let_one_that_may_have_ended_a_worker_run_for_itself() -> None:
    task = alike()
    task.crashes = 1
    assert not task.may_coalesce


def test_should_order_by_lane_and_then_by_deadline() -> None:
    low, normal, sooner = alike(lane=Lane.LOW, deadline_s=1), alike(), alike(deadline_s=59)
    assert [True, False, True, False] == [
        is_more_urgent(normal, low),
        is_more_urgent(low, normal),
        is_more_urgent(sooner, normal),
        is_more_urgent(normal, normal),
    ]


def test_should_have_the_most_urgent_follower_lead_when_the_leader_leaves() -> None:
    groups = Coalescing()
    leader, late, soon = alike("a"), alike("b", deadline_s=50), alike("c", deadline_s=40)
    for task in (leader, late, soon):
        groups.join(task)
    assert soon is groups.leave(leader)
    assert [late] == groups.followers(soon)
    assert late is groups.leave(soon)
    assert groups.leave(late) is None
    assert 0 == len(groups)


def test_should_be_a_group_again_led_by_the_first() -> None:
    groups = Coalescing()
    first, second, third = tasks = [alike(name) for name in "abc"]
    for task in tasks:
        groups.join(task)
    assert [second, third] == groups.dissolve(first)
    assert 0 == len(groups)
    regroup(groups, [second, third])
    assert [third] == groups.followers(second)


class CoalescingMachine(RuleBasedStateMachine):
    """The model: of each text a list, whose first leads."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = Coalescing()
        self.model: dict[str, list[Task]] = {}
        self.count = 0

    @property
    def members(self) -> list[Task]:
        return [task for group in self.model.values() for task in group]

    def group_of(self, task: Task) -> list[Task]:
        return next(group for group in self.model.values() if task in group)

    @rule(text=st.sampled_from("xyz"), lane=st.sampled_from(Lane), deadline_s=st.sampled_from([10.0, 20.0, 30.0]))
    def join(self, text: str, lane: Lane, deadline_s: float) -> None:
        self.count += 1
        task = alike(f"t{self.count}", text, lane, deadline_s)
        group = self.model.setdefault(text, [])
        assert (group[0] if group else None) is self.groups.join(task)
        group.append(task)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.members))
        group = self.group_of(task)
        led = group[0] is task
        group.remove(task)
        heir = self.groups.leave(task)
        assert (heir is not None) == (led and bool(group))
        if heir is not None:
            assert not [each for each in group if is_more_urgent(each, heir)]
            group.remove(heir)
            group.insert(0, heir)
        assert self.groups.leave(task) is None

    @precondition(lambda self: any(len(group) > 1 for group in self.model.values()))
    @rule(data=st.data())
    def lead(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from([group for group in self.model.values() if len(group) > 1]))
        task = data.draw(st.sampled_from(group[1:]))
        self.groups.lead(task)
        old = group[0]
        group.remove(task)
        group[:] = [task, *group[1:], old]

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def dissolve(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from([group for group in self.model.values() if group]))
        assert group[1:] == self.groups.dissolve(group[0])
        group.clear()

    @invariant()
    def each_leads_or_follows(self) -> None:
        for group in self.model.values():
            for task in group:
                assert self.groups.leader_of(task) is (None if task is group[0] else group[0])
                assert self.groups.followers(task) == (group[1:] if task is group[0] else [])
        followers = [task for group in self.model.values() for task in group[1:]]
        for lane in Lane:
            assert sum(task.lane is lane for task in followers) == self.groups.following(lane)
        assert len(self.members) == len(self.groups)

    def teardown(self) -> None:
        for task in self.members:
            self.groups.leave(task)
        assert 0 == len(self.groups)
        assert not self.groups._followers


CoalescingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCoalescing = CoalescingMachine.TestCase
