"""Windows: who waits for company, and until when."""

from __future__ import annotations

from collections import defaultdict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.batching import Window
from streams.task import Task
from tests.support.tasks import make_task

A, B = b"a", b"b"


class Numbered:
    """Makes tasks with the sequence numbers that the dispatcher gives."""

    def __init__(self) -> None:
        self.last = 0

    def __call__(self, now_s: float = 0.0, cost_tokens: int = 10, deadline_s: float | None = None) -> Task:
        self.last += 1
        task = make_task(now_s=now_s, cost_tokens=cost_tokens, deadline_s=deadline_s)
        task.sequence = self.last
        return task


@pytest.fixture
def new() -> Numbered:
    return Numbered()


def window(window_s: float = 1.0, requests: int = 4, tokens: int = 1000) -> Window:
    return Window(window_s, requests, tokens)


def test_the_window_is_set_by_the_oldest_member_and_not_moved_by_later_ones(new: Numbered) -> None:
    w = window()
    for at_s in (0.0, 0.4, 0.9):
        w.add(new(at_s), A)
    assert 1.0 == w.next_ready_s()
    assert w.ready(0.99, idle=False) is None
    assert A == w.ready(1.0, idle=False)
    w.take(A, 1)
    assert 1.4 == w.next_ready_s()


def test_an_idle_backend_ends_the_waiting(new: Numbered) -> None:
    w = window()
    assert w.ready(0.0, idle=True) is None
    w.add(new(), A)
    assert A == w.ready(0.0, idle=True)


def test_a_deadline_ends_the_waiting_as_long_before_it_as_an_answer_takes(new: Numbered) -> None:
    w = window(window_s=60)
    w.add(new(deadline_s=10), A)
    w.lead_s = 3
    assert 7 == w.next_ready_s()
    assert (None, A) == (w.ready(6.9, idle=False), w.ready(7, idle=False))


@pytest.mark.parametrize(("requests", "tokens"), [(3, 1000), (99, 30)])
def test_a_full_group_leaves_at_once(requests: int, tokens: int, new: Numbered) -> None:
    w = window(requests=requests, tokens=tokens)
    w.add(new(), B)
    for _ in range(3):
        assert w.ready(0.0, idle=False) is None
        w.add(new(), A)
    assert A == w.ready(0.0, idle=False)
    w.take(A, 3)
    assert w.ready(0.0, idle=False) is None


def test_a_group_made_full_by_a_task_that_came_back_leaves_at_once(new: Numbered) -> None:
    w = window(requests=2)
    w.add(new(), B)
    back = new(0.5)
    w.add(new(0.5), A)
    w.add_first(back, A)
    assert A == w.ready(0.5, idle=False)


def test_an_older_group_whose_window_is_over_goes_before_a_full_one(new: Numbered) -> None:
    w = window(requests=2)
    w.add(new(), B)
    for _ in range(8):
        w.add(new(0.5), A)
    assert (A, B) == (w.ready(0.9, idle=False), w.ready(1.0, idle=False))


def test_a_batch_holds_no_more_than_it_may_but_always_one(new: Numbered) -> None:
    w = window(requests=4, tokens=100)
    costs = [60, 40, 10, 500, 500, 10, 10, 10, 10, 10]
    for cost in costs:
        w.add(new(cost_tokens=cost), A)
    sizes = []
    while w.waiting:
        sizes.append([task.cost_tokens for task in w.take(A, 99)])
    assert [[60, 40], [10], [500], [500], [10, 10, 10, 10], [10]] == sizes


def test_no_more_are_taken_than_there_is_room_for(new: Numbered) -> None:
    w = window()
    for _ in range(3):
        w.add(new(), A)
    assert (2, 1, 10) == (len(w.take(A, 2)), w.waiting, w.tokens)


def test_a_task_that_comes_back_goes_first(new: Numbered) -> None:
    w = window()
    back, other = new(), new()
    w.add(other, A)
    w.add_first(back, A)
    assert back is w.head(A)
    assert [back, other] == w.take(A, 9)


def test_a_task_is_removed_from_where_it_stands(new: Numbered) -> None:
    w = window()
    tasks = [new(number / 10) for number in range(3)]
    for task in tasks:
        w.add(task, A)
    assert (True, False, False) == (w.remove(tasks[1], A), w.remove(tasks[1], A), w.remove(tasks[0], B))
    assert w.remove(tasks[0], A)
    assert 1.2 == w.next_ready_s()
    assert [tasks[2]] == list(w)
    assert w.remove(tasks[2], A)
    assert (None, None, 0, 0) == (w.next_ready_s(), w.ready(9, idle=True), w.waiting, w.tokens)


def test_what_is_kept_does_not_grow_with_what_came_and_went(new: Numbered) -> None:
    w = window(requests=2)
    w.add(new(), A)
    for _ in range(1000):
        task = new()
        w.add(task, A)
        w.remove(task, A)
    assert len(w._heads) + len(w._full) + len(w._groups) < 10


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([A, B, b"c"]), st.integers(1, 60)),
        st.tuples(st.just("take"), st.integers(1, 5), st.booleans()),
        st.tuples(st.just("remove"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("back"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 15), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_groups_leave_in_order_within_bounds_and_when_due(done: list[tuple[str, object, object]]) -> None:
    w, new = window(requests=3, tokens=100), Numbered()
    model: defaultdict[bytes, deque[Task]] = defaultdict(deque)
    taken: list[tuple[Task, bytes]] = []
    now_s = 0.0
    for what, first, second in done:
        held = [(task, key) for key, tasks in model.items() for task in tasks]
        if what == "add":
            assert isinstance(first, bytes)
            assert isinstance(second, int)
            task = new(now_s, second)
            w.add(task, first)
            model[first].append(task)
        elif what == "wait":
            assert isinstance(first, int)
            now_s += first / 10
        elif what == "remove" and held:
            assert isinstance(first, int)
            task, key = held[first % len(held)]
            assert w.remove(task, key)
            model[key].remove(task)
        elif what == "back" and taken:
            assert isinstance(first, int)
            task, key = taken.pop(first % len(taken))
            w.add_first(task, key)
            model[key].appendleft(task)
        elif what == "take":
            assert isinstance(first, int)
            ready = w.ready(now_s, idle=bool(second))
            heads = {key: tasks[0] for key, tasks in model.items() if tasks}
            oldest = min(heads, key=lambda key: heads[key].sequence, default=None)
            due = oldest is not None and (bool(second) or now_s >= heads[oldest].accepted_s + 1)
            full = {key for key, tasks in model.items() if len(tasks) >= 3 or sum(t.cost_tokens for t in tasks) >= 100}
            if due:
                assert oldest == ready
            else:
                assert (ready in full) if full else ready is None
            if ready is not None:
                batch = w.take(ready, first)
                assert 1 <= len(batch) <= min(first, 3)
                assert len(batch) == 1 or sum(task.cost_tokens for task in batch) <= 100
                assert batch == [model[ready].popleft() for _ in batch]
                taken += [(task, ready) for task in batch]
        assert sum(map(len, model.values())) == w.waiting
        assert sum(task.cost_tokens for tasks in model.values() for task in tasks) == w.tokens
