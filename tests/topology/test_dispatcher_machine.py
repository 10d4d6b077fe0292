"""Whatever happens in whatever order: nothing is lost, nothing ends twice, no bound is broken, nothing stays behind."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.request import CachePolicy
from schemas.result import Outcome
from schemas.topics import Lane
from streams.dispatcher import Dispatcher, Finish, HandOver
from streams.errors import (
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
)
from streams.settings import Settings
from streams.task import Task
from tests.support.tasks import make_task
from tests.topology.scene import DOWN, Scene, backend, up

SLOTS = {"one": 1, "two": 2, "four": 4}
MODELS = {"one": ("tiny", "shared"), "two": ("mid", "shared"), "four": ("tiny", "mid", "shared")}
CARD = "GPU-0"  # under "four" alone
MOST_REQUESTS, MOST_TOKENS = 3, 1000
IDS = [f"id-{n}" for n in range(8)]

SETTINGS = Settings.model_validate(
    {
        "backends": [backend(name, slots=slots, gpus=[CARD] * (name == "four")) for name, slots in SLOTS.items()],
        "models": [{"name": "mid", "aliases": ["middle"], "size": "medium", "agent_types": ["summary"]}],
        "lanes": {lane.value: {"max_batch_requests": MOST_REQUESTS, "max_batch_tokens": MOST_TOKENS} for lane in Lane},
    }
)


class Bounds(Scene):
    """A scene that checks every batch at the moment it is sent."""

    def step(self) -> None:
        before = len(self.sent)
        super().step()
        for batch in self.sent[before:]:
            tasks = list(batch.tasks)
            assert 1 <= len(tasks) <= MOST_REQUESTS
            assert len(tasks) == 1 or sum(task.cost_tokens for task in tasks) <= MOST_TOKENS
            assert len({(task.lane, task.model, str(task.parameters)) for task in tasks}) == 1
            assert all(task.deadline_s > self.now_s for task in tasks), "sent after its deadline"
            assert self.dispatcher.backends[batch.backend].up
            assert tasks[0].model in (None, batch.model, {"mid": "middle"}.get(batch.model))
            assert batch.model in MODELS[batch.backend]


def held_of(dispatcher: Dispatcher) -> list[Task]:
    return list(dispatcher._tasks.values())


class DispatcherMachine(RuleBasedStateMachine):
    """Owns each task object from `accept` to its one end: finished, handed over, withdrawn, dropped, or attached to one that is held."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Bounds(SETTINGS)
        self.dispatcher = self.scene.dispatcher
        self.accepted: list[Task] = []
        self.ends: dict[Task, str] = {}
        self.counted = self.counted_drops = self.counted_hands = 0

    # What happens

    @rule(
        task_id=st.sampled_from(IDS),
        lane=st.sampled_from(Lane),
        partition=st.integers(0, 1),
        cost=st.sampled_from([1, 40, 300, 1200]),
        model=st.sampled_from(["auto", "auto", "tiny", "mid", "middle", "nobody's"]),
        agent_type=st.sampled_from([None, "summary", "unheard-of"]),
        temperature=st.sampled_from([0.0, 1.0]),
        lives_s=st.sampled_from([-1.0, 0.0, 0.03, 2.0, 60.0, 3600.0]),
        mode=st.sampled_from(["use", "bypass"]),
        hops=st.sampled_from([0, 0, 0, 1, 3]),
        crashes=st.sampled_from([0, 0, 0, 1, 3, 4]),
        elsewhere=st.sampled_from([False, False, True]),
        alike=st.booleans(),
    )
    def accept(
        self,
        task_id: str,
        lane: Lane,
        partition: int,
        cost: int,
        model: str,
        agent_type: str | None,
        temperature: float,
        lives_s: float,
        mode: str,
        hops: int,
        crashes: int,
        elsewhere: bool,
        alike: bool,
    ) -> None:
        if alike:
            model, agent_type, temperature, mode, crashes = "auto", None, 0.0, "refresh", 0
        task = make_task(
            task_id,
            lane,
            now_s=self.scene.now_s,
            deadline_s=self.scene.now_s + lives_s,
            cost_tokens=cost,
            partition=partition,
            cache=CachePolicy.model_validate({"mode": mode}),
            model=model,
            agent_type=agent_type,
            parameters={"temperature": temperature},
        )
        task.hops, task.crashes = hops, crashes
        self.accepted.append(task)
        if self.dispatcher.holds(task.key):
            self.ends[task] = "attached"
        self.scene.take(task, elsewhere=elsewhere)

    @rule(task_id=st.sampled_from(IDS))
    def another_worker_lets_go(self, task_id: str) -> None:
        self.scene.reconsider(lambda task: task.task_id != task_id)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.3, 2.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.scene.advance(seconds)

    @rule(seconds=st.sampled_from([0.01, 1.0, 5.0]))
    def the_shell_is_late(self, seconds: float) -> None:
        self.scene.clock.advance(seconds)
        self.scene.step()

    @precondition(lambda self: self.scene.calls)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.scene.answered(data.draw(st.sampled_from(self.scene.calls)))

    @precondition(lambda self: self.scene.calls)
    @rule(
        data=st.data(),
        error=st.sampled_from(
            [
                BackendOverloaded(retry_after_s=3),
                BackendOverloaded(),
                BackendUnavailable(),
                BackendTimeout(),
                BackendRejected(),
                BackendProtocolError(),
            ]
        ),
    )
    def fail(self, data: st.DataObject, error: BackendUnavailable) -> None:
        self.scene.failed(data.draw(st.sampled_from(self.scene.calls)), error)

    @precondition(lambda self: self.ends)
    @rule(data=st.data())
    def a_late_answer_changes_nothing(self, data: st.DataObject) -> None:
        self.count_ends()
        over = data.draw(st.sampled_from(list(self.ends)))
        if over in self.scene.calls:
            return  # its call goes on for an identical task
        assert self.dispatcher.answered(over, None, now_s=self.scene.now_s) == []  # type: ignore[arg-type]
        assert self.dispatcher.failed(over, BackendTimeout(), now_s=self.scene.now_s) == []

    @rule(partition=st.integers(0, 1), running=st.booleans())
    def withdraw(self, partition: int, running: bool) -> None:
        were_running = {*self.scene.running, *self.dispatcher.following}
        gone = self.dispatcher.withdraw(lambda source: source.partition != partition, running=running)  # type: ignore[attr-defined]
        assert not were_running & set(gone), "a running task goes on"
        for task in gone:
            self.end(task, "withdrawn")
        self.scene.step()

    @rule(task_id=st.sampled_from(IDS), partition=st.integers(0, 1))
    def cancel(self, task_id: str, partition: int) -> None:
        key = (task_id, partition)
        was_running = [task for task in self.scene.running if task.key == key]
        is_shared = any(self.dispatcher._coalescing.followers(task) for task in was_running)
        count, calls = len(self.scene.aborted), len(self.scene.calls)
        self.scene.perform(self.dispatcher.cancel(key))
        ended = bool(was_running) and not is_shared
        assert (ended, ended) == (len(self.scene.aborted) > count, len(self.scene.calls) < calls)
        self.scene.step()

    @rule(name=st.sampled_from(list(SLOTS)), is_up=st.sampled_from([True, True, False]))
    def probe(self, name: str, is_up: bool) -> None:
        self.scene.probed(name, up(*MODELS[name]) if is_up else DOWN)

    @rule(used_ratio=st.sampled_from([0.1, 0.6, 0.8, 0.95]), lost=st.sampled_from([False, False, True]))
    def gpu_sample(self, used_ratio: float, lost: bool) -> None:
        self.scene.gpu(CARD, used_ratio, lost=lost)

    @rule(name=st.sampled_from(list(SLOTS)), draining=st.booleans())
    def drain(self, name: str, draining: bool) -> None:
        self.dispatcher.backends[name].draining = draining
        self.scene.step()

    # What holds

    def end(self, task: Task, how: str) -> None:
        assert task not in self.ends, f"{task} was {self.ends[task]}, and now is {how}"
        self.ends[task] = how

    def count_ends(self) -> None:
        fresh, self.counted = self.scene.finished[self.counted :], len(self.scene.finished)
        for effect in fresh:
            self.end(effect.task, "finished")
            self.check_result(effect)
        for task in self.scene.dropped[self.counted_drops :]:
            self.end(task, "dropped")
        for handed in self.scene.handed[self.counted_hands :]:
            self.end(handed.task, "handed over")
            self.check_hand_over(handed)
        self.counted_drops, self.counted_hands = len(self.scene.dropped), len(self.scene.handed)

    def serves(self, name: str, task: Task) -> bool:
        models = MODELS[name]
        if task.model is not None:
            return {"middle": "mid"}.get(task.model, task.model) in models
        return task.request.agent_type != "summary" or "mid" in models

    def check_hand_over(self, handed: HandOver) -> None:
        task = handed.task
        assert task.deliveries, "nothing is handed over for a partition that has gone"
        if handed.error is None:
            assert handed.hops == task.hops
            able = [name for name, state in self.dispatcher.backends.items() if state.up and not state.draining]
            assert task.lane is Lane.LOW or not [name for name in able if self.serves(name, task)]
        else:
            assert handed.error.retriable
            assert handed.hops > task.hops
            assert handed.not_before_ms < task.deadline_ms

    def check_result(self, effect: Finish) -> None:
        task, result = effect.task, effect.result
        assert (task.task_id, task.source, task.lane) == (result.task_id, result.source, result.priority)
        assert (result.outcome is Outcome.COMPLETED) == (result.error is None) == (result.output is not None)
        assert result.timing.queue_ms is not None
        assert result.timing.queue_ms >= 0
        if result.outcome is Outcome.EXPIRED:
            assert task.deadline_s <= self.scene.now_s

    @invariant()
    def every_task_is_held_or_has_ended_once(self) -> None:
        self.count_ends()
        held = {task for task in self.accepted if task not in self.ends}
        assert held == set(self.dispatcher._tasks.values())
        waiting = sum(self.dispatcher.waiting(lane) for lane in Lane)
        delayed = sum(self.dispatcher._tasks.get(task.key) is task for _, _, task in self.dispatcher._delayed)
        assert len(held) == waiting + delayed + len(self.scene.running) + len(self.dispatcher._elsewhere) + len(
            self.dispatcher._suspects
        )
        assert set(self.scene.aborted) <= self.ends.keys()

    @invariant()
    def the_load_is_what_is_held_and_not_with_a_backend(self) -> None:
        inside = self.dispatcher
        for lane, load in inside.loads.lanes.items():
            held = [each for each in held_of(inside) if each.lane is lane and each.key not in inside._running]
            assert (len(held), sum(each.cost_tokens for each in held)) == (load.requests, load.tokens)

    @invariant()
    def identical_tasks_share_one_call(self) -> None:
        inside = self.dispatcher
        led = {task: inside._coalescing.followers(task) for task in held_of(inside)}
        followers = [each for group in led.values() for each in group]
        assert len(followers) == len(set(followers)) == sum(inside._coalescing.following(lane) for lane in Lane)
        assert not {task.key for task in followers} & (inside._running.keys() | inside._waiting.keys())
        for leader, group in led.items():
            assert all(each.fingerprint == leader.fingerprint for each in group)

    @invariant()
    def no_backend_is_overrun_and_the_reserved_slot_is_not_lent(self) -> None:
        for name, slots in SLOTS.items():
            in_flight = self.dispatcher.backends[name].in_flight
            assert all(count >= 0 for count in in_flight.values())
            assert sum(in_flight.values()) <= slots
            others = sum(count for lane, count in in_flight.items() if lane is not Lane.CRITICAL)
            assert others <= max(slots - 1, 1)

    @invariant()
    def nothing_is_kept_past_its_deadline(self) -> None:
        assert all(task.deadline_s > self.scene.now_s for task in self.dispatcher._tasks.values())

    def teardown(self) -> None:
        """With every backend well again, whatever is held ends, and nothing stays behind."""
        for name, models in MODELS.items():
            self.dispatcher.backends[name].draining = False
            self.scene.probed(name, up(*models))
        self.scene.reconsider(lambda task: False)
        self.scene.advance(10)  # the last sample is stale, pauses and delays are over
        for name, models in MODELS.items():
            self.scene.probed(name, up(*models))
        for _ in range(len(self.accepted) + 1):
            if not self.scene.running:
                break
            for task in self.scene.calls:
                self.scene.answered(task)
        self.count_ends()
        assert {} == self.scene.leftovers()
        assert set(self.accepted) == set(self.ends)


DispatcherMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDispatcher = DispatcherMachine.TestCase
