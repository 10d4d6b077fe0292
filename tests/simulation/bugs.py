"""Mistakes that a delivery core could have, each with the promise that it breaks: what tells them apart is tested, too."""

from __future__ import annotations

import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from agents.delivery import Delivery
from schemas.result import ErrorType, Outcome, Result
from schemas.topics import Lane
from streams import dispatcher as decisions
from streams.acks import InOrderAcks
from streams.backends import BackendState
from streams.batching import Window
from streams.coalescing import Coalescing
from streams.dispatcher import Batch, Dispatcher, Effect, Finish, HandOver
from streams.errors import BackendError, Poisonous
from streams.outcome import FinishedIndex
from streams.ports import Call
from streams.redelivery import Peers, RecentEnds, Redelivery
from streams.retrying import InPlaceRetries, RetryBudget
from streams.splitting import Splitting, Step
from streams.task import Task, TaskKey
from tests.simulation.broker import Place
from tests.simulation.calls import Calls
from tests.simulation.dispatch import DispatchLoop
from tests.simulation.history import History
from tests.simulation.intake import LaneIntake
from tests.simulation.outside import Gateway
from tests.simulation.producing import Producer, Write
from tests.simulation.scenario import Plan, Scenario
from tests.simulation.serving import BAD, POISON, STUBBORN, WIDE, Answering, text_of
from tests.simulation.worker import Worker
from tests.simulation.world import Chances, Steps, Violation


class _ProduceFailed(Exception):
    """A produce failed, told to whoever waits for it."""


@dataclass(frozen=True)
class Bug:
    """A mistake by its name, and the promise it breaks. `plan`: what brings it out, None where what seeds draw does."""

    name: str
    breaks: str
    parts: tuple[tuple[Any, str, Any], ...]
    plan: Plan | None = None

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, attribute, wrong in self.parts:
                stack.enter_context(patch.object(owner, attribute, wrong))
            yield


BUGS: list[Bug] = []
SEEDS = 300

BATCHES = Plan(
    lanes=(Lane.NORMAL,),
    tasks=40,
    slots=6,
    slow_s=1.0,
    until_s=12.0,
    cancels=10,
    takes_batches=True,
    traits={BAD: 0.15},
)
ALIKE = Plan(
    tasks=40,
    slots=4,
    slow_s=2.0,
    until_s=14.0,
    cancels=10,
    alike=0.7,
    joins=[3.0, 9.0],
    drains=[6.0],
    chances=Chances(backend_failed=0.2),
)
FULL_OF_RETRIES = Plan(
    workers=1,
    lanes=(Lane.NORMAL,),
    tasks=30,
    tries=0,
    slots=1,
    slow_s=3.0,
    waiting=1,
    own_room=2,
    cancels=15,
    invalid=0.3,
    traits={STUBBORN: 0.5},
    chances=Chances(backend_failed=0.3),
)
BETWEEN_TRIES = Plan(
    workers=1,
    lanes=(Lane.NORMAL,),
    tasks=12,
    tiers=0,
    tries=6,
    cancels=0,
    until_s=60.0,
    traits={STUBBORN: 1.0},
    crashes=[4.0, 15.0, 26.0, 37.0, 48.0],
)
ONE_POISON = Plan(
    workers=2, lanes=(Lane.NORMAL,), tasks=12, tiers=0, slots=4, slow_s=5.0, cancels=0, traits={POISON: 0.1}
)
SLOW = Plan(workers=1, lanes=(Lane.NORMAL,), tasks=30, slots=1, slow_s=5.0, cancels=0)
MOVING = Plan(
    workers=2, slow_s=5.0, is_calm=True, joins=[3.0, 8.0, 13.0, 18.0], drains=[5.0, 10.0, 15.0, 20.0], cancels=0
)
WIDE_RETRIES = Plan(
    workers=2,
    tries=0,
    slots=4,
    traits={WIDE: 0.7},
    chances=Chances(produce_delayed=0.3),
    joins=[2.0, 4.0, 6.0, 8.0],
    drains=[3.0, 5.0, 7.0, 9.0],
)
LATE_RESULTS = Plan(
    chances=Chances(produce_delayed=0.4), joins=[2.0, 6.0, 10.0, 14.0], drains=[4.0, 8.0, 12.0, 16.0], cancels=0
)
SHORT_SPAN = Plan(lanes=(Lane.NORMAL,), span=3, slow_s=2.0)
NO_RETRIES = Plan(
    tiers=0, pauses=[(4.0, 8.0), (15.0, 3.0)], crashes=[8.0, 17.0], joins=[3.0, 12.0], drains=[6.0, 14.0], cancels=4
)
CRASHING = Plan(
    workers=2,
    lanes=(Lane.NORMAL,),
    tasks=20,
    tiers=1,
    tries=0,
    slow_s=0.2,
    cancels=0,
    until_s=60.0,
    traits={STUBBORN: 1.0},
    chances=Chances(crash=0.05),
)
RETRYING = Plan(tries=0, traits={STUBBORN: 0.5}, chances=Chances(produce_failed=0.1, ack_lost=0.05, crash=0.01))
PLANS = {
    "retrying": RETRYING,
    "full of retries": FULL_OF_RETRIES,
    "between tries": BETWEEN_TRIES,
    "crashing": CRASHING,
    "one poison": ONE_POISON,
    "slow": SLOW,
    "moving": MOVING,
    "wide retries": WIDE_RETRIES,
    "late results": LATE_RESULTS,
    "short span": SHORT_SPAN,
    "no retries": NO_RETRIES,
    "batches": BATCHES,
    "alike": ALIKE,
}


def seed_that_finds(bug: Bug) -> int | None:
    """Return the first seed with which a mistake breaks its own promise, None when 300 seeds do not show it."""
    with bug.made():
        for seed in range(SEEDS):
            try:
                Scenario(seed, bug.plan).run()
            except Violation as found:
                if found.name == bug.breaks:
                    return seed
    return None


def _bug(
    breaks: str, owner: Any, attribute: str, *others: tuple[Any, str, Any], plan: Plan | None = None
) -> Callable[[Any], Any]:
    def take(wrong: Any) -> Any:
        BUGS.append(Bug(wrong.__name__, breaks, ((owner, attribute, wrong), *others), plan))
        return wrong

    return take


def _nothing_recent(_self: RecentEnds, _key: TaskKey) -> bool:
    return False


def _nothing(_task: Task) -> None:
    pass


def _ends_a_task(write: Write) -> bool:
    is_rejected = isinstance(write.value, Result) and write.value.timing.queue_ms is None
    return write.topic.startswith(("triage.results", "triage.retry")) and not is_rejected


def _tell_of_failures(self: Producer) -> None:
    told = [write for write in self._pending if self.actor.may_end and _ends_a_task(write)]
    for write in told:
        del self._pending[write]
    _right_failed(self)
    for write in told:
        write.end(error=_ProduceFailed())


def _written_again(self: DispatchLoop, effect: Finish) -> Steps[None]:
    try:
        yield from _right_finish(self, effect)
    except _ProduceFailed:
        yield from _written_again(self, effect)


# Acknowledgement


@_bug("OVERCOMMIT", DispatchLoop, "_finish", (Producer, "failed", _tell_of_failures))
def acknowledged_in_finally(self: DispatchLoop, effect: Finish) -> Steps[None]:
    try:
        yield from self._write(effect.task, effect.result)
    except (_ProduceFailed, TypeError):
        self.kick()
    finally:
        self._acknowledge(effect.task)


@_bug("OVERCOMMIT", LaneIntake, "_acknowledge")
def commits_the_highest_seen(self: LaneIntake, partition: int, offset: int) -> None:
    place = (self.topic, partition)
    _right_acknowledge(self, partition, max(self._positions.get(place, 0) - 1, offset))


@_bug("OVERCOMMIT", DispatchLoop, "_finish")
def acknowledged_before_the_result_is_durable(self: DispatchLoop, effect: Finish) -> Steps[None]:
    self._acknowledge(effect.task)
    yield from _right_finish(self, effect)


@_bug("OVERCOMMIT", InOrderAcks, "complete")
def acknowledged_out_of_order(self: InOrderAcks[int], offset: int) -> list[int]:
    slot = self._slots.pop(offset, None)
    return [] if slot is None else [slot.token]


@_bug("OVERCOMMIT", Worker, "_stop_apps")
def drain_commits_everything(self: Worker) -> Steps[None]:
    for intake in self.intakes:
        intake._acked.update(intake._positions)
    yield from _right_stop_apps(self)


@_bug("OVERCOMMIT", DispatchLoop, "_hand_over", plan=RETRYING)
def acknowledged_before_the_retry_is_durable(self: DispatchLoop, effect: HandOver) -> Steps[None]:
    self._acknowledge(effect.task)
    yield from _right_hand_over(self, effect)


@_bug(
    "OVERCOMMIT",
    DispatchLoop,
    "_hand_over",
    (Producer, "failed", _tell_of_failures),
    (DispatchLoop, "_finish", _written_again),
    plan=RETRYING,
)
def acknowledged_though_the_retry_failed(self: DispatchLoop, effect: HandOver) -> Steps[None]:
    try:
        yield from _right_hand_over(self, effect)
    except _ProduceFailed:
        self._acknowledge(effect.task)


@_bug("ZOMBIE", LaneIntake, "_store")
def commits_without_its_generation(self: LaneIntake, offsets: dict[Place, int]) -> bool:
    self.group.store(self, self.generation, offsets)
    return True


@_bug("STUCK", LaneIntake, "_forget_acks")
def acknowledgements_kept_over_a_rebalance(self: LaneIntake) -> None:
    self._acked.clear()


@_bug("STUCK", DispatchLoop, "_attach", plan=LATE_RESULTS)
def deliveries_to_a_finishing_task_dropped(self: DispatchLoop, held: Task, task: Task) -> None:
    pass


@_bug("STUCK", Dispatcher, "accept")
def deliveries_to_a_held_task_dropped(
    self: Dispatcher, task: Task, *, now_s: float, elsewhere: bool = False
) -> list[Effect]:
    return [] if self.holds(task.key) else _right_accept(self, task, now_s=now_s, elsewhere=elsewhere)


@_bug("SPAN", LaneIntake, "_take_what_fits")
def taken_whether_it_fits_or_not(self: LaneIntake, partition: int) -> None:
    while self._overflow[partition]:
        self._take(self._overflow[partition].popleft())


@_bug("LOST", LaneIntake, "complete", plan=SHORT_SPAN)
def overflow_not_looked_at_again(self: LaneIntake, delivery: Delivery) -> None:
    overflow, self._overflow[delivery.partition] = self._overflow[delivery.partition], deque()
    _right_complete(self, delivery)
    self._overflow[delivery.partition] = overflow


@_bug("LOST", Worker, "_wake_intakes", plan=FULL_OF_RETRIES)
def room_not_told(self: Worker) -> None:
    pass


# Outcomes


@_bug("CHANGED", Gateway, "_ended")
def last_writer_wins(self: Gateway, key: TaskKey, outcome: Outcome) -> None:
    self.unfinished.pop(key, None)
    self.ended[key] = None
    self.checks.tells(key, outcome)


@_bug("CHANGED", Gateway, "_expire")
def expiry_told_before_the_log_is_read(self: Gateway, key: TaskKey) -> None:
    if key in self.unfinished:
        self.checks.tells(key, Outcome.EXPIRED)
        _right_expire(self, key)


@_bug("ANSWER", Calls, "_call")
def answers_off_by_one(self: Calls, batch: Batch, task: Task) -> Call:
    tasks = list(batch.tasks)
    return _right_call(self, batch, tasks[(tasks.index(task) + 1) % len(tasks)])


@_bug("ANSWER", Calls, "_answering", plan=BATCHES)
def items_of_a_batch_in_the_wrong_order(self: Calls, batch: Batch, tasks: Sequence[Task]) -> Answering:
    return _right_answering(self, batch, tasks[::-1])


@_bug("LOST", Calls, "give_up", plan=BATCHES)
def one_given_up_takes_its_mates_along(self: Calls, task: Task) -> None:
    call = self._running.get(task)
    for mate in list(call.tasks) if call is not None else []:
        _right_give_up(self, mate)


@_bug("LOST", Coalescing, "leave", plan=ALIKE)
def followers_forgotten_with_their_leader(self: Coalescing, task: Task) -> Task | None:
    heir = _right_leave(self, task)
    if heir is not None:
        _right_leave(self, heir)
    return None


@_bug("OVERCOMMIT", Dispatcher, "_follows", plan=ALIKE)
def followers_acknowledged_with_their_leader(self: Dispatcher, task: Task) -> bool:
    if not _right_follows(self, task):
        return False
    leader = self._coalescing.leader_of(task)
    assert leader is not None
    leader.deliveries.extend(task.deliveries)
    self._forget(task)
    return True


@_bug("ANSWER", Coalescing, "join", plan=ALIKE)
def coalesced_by_lane_alone(self: Coalescing, task: Task) -> Task | None:
    task.fingerprint = task.lane.value
    return _right_join(self, task)


@_bug("BLAMED", Splitting, "failed", plan=BATCHES)
def mates_blamed_for_one(self: Splitting[Task], part: Sequence[Task], error: BackendError) -> Step[Task]:
    return Step(ends=[(task, Poisonous()) for task in part])


@_bug("DEAD_LETTER", DispatchLoop, "_write")
def dead_letter_after_the_result(self: DispatchLoop, task: Task, result: Result) -> Steps[Result]:
    yield self._result_record(task, result)
    if result.outcome is Outcome.FAILED and isinstance(task.origin, Delivery):
        yield from self._write_dead_letter(task.origin, result)
    return result


@_bug(
    "DEAD_LETTER", DispatchLoop, "_finish", (DispatchLoop, "_write_dead_letter", lambda _self, _to, _result: iter(()))
)
def dead_letter_after_the_commit(self: DispatchLoop, effect: Finish) -> Steps[None]:
    yield from _right_finish(self, effect)
    if isinstance(effect.task.origin, Delivery):
        yield from _right_dead_letter(self, effect.task.origin, effect.result)


@_bug("DEAD_LETTER", DispatchLoop, "_write_dead_letter")
def quarantined_without_a_dead_letter(self: DispatchLoop, delivery: Delivery, result: Result) -> Steps[None]:
    if result.error is None or result.error.type is not ErrorType.QUARANTINED:
        yield from _right_dead_letter(self, delivery, result)


# What runs again


@_bug("AFTER_END", DispatchLoop, "ended")
def ends_from_outside_ignored(self: DispatchLoop, key: TaskKey) -> None:
    pass


# The recent ends know the same, of the newest 100,000 tasks.
@_bug("AFTER_END", FinishedIndex, "observe", (RecentEnds, "__contains__", _nothing_recent), plan=NO_RETRIES)
def results_of_others_ignored(self: FinishedIndex, task_id: str, source: object, outcome: Outcome) -> None:
    pass


@_bug("AFTER_END", FinishedIndex, "commit", (RecentEnds, "__contains__", _nothing_recent), plan=NO_RETRIES)
def finished_forgotten_too_early(self: FinishedIndex, topic: str, partition: int, offset: int) -> None:
    _right_commit(self, topic, partition, offset + 8)
    self._committed[topic, partition] = offset


@_bug("AFTER_END", RecentEnds, "__contains__")
def recent_ends_missing(self: RecentEnds, key: TaskKey) -> bool:
    return False


@_bug("REPEATED", Peers, "runs")
def other_workers_not_awaited(self: Peers, task_id: str, starts: object, now_ms: int) -> bool:
    return False


@_bug("REPEATED", DispatchLoop, "_announce", plan=MOVING)
def starts_not_announced(self: DispatchLoop, batch: Batch) -> None:
    pass


@_bug("REPEATED", History, "is_caught_up")
def intake_before_the_logs_are_read(self: History, place: Place) -> bool:
    return True


@_bug("REPEATED", Redelivery, "still_waits", plan=MOVING)
def results_of_others_not_awaited(self: Redelivery, task: Task, *, now_s: float, now_ms: int) -> bool:
    return self.peers.runs(task.task_id, self._learn(task, now_ms), now_ms)


@_bug("REPEATED", Peers, "may_have_ended", plan=MOVING)
def results_on_their_way_not_awaited(self: Peers, starts: object, now_ms: int) -> bool:
    return False


@_bug("AFTER_END", DispatchLoop, "_hand_over", plan=WIDE_RETRIES)
def given_back_while_its_outcome_is_written(self: DispatchLoop, effect: HandOver) -> Steps[None]:
    if text_of(effect.task.request).startswith(WIDE) and effect.error is not None:
        self._finishing.pop(effect.task.key, None)
    yield from _right_hand_over(self, effect)


# Who ended the worker


@_bug("QUARANTINE", DispatchLoop, "_release", plan=BETWEEN_TRIES)
def starts_not_released(self: DispatchLoop, task: Task) -> None:
    pass


@_bug("QUARANTINE", DispatchLoop, "_perform", plan=CRASHING)
def starts_not_released_by_a_hand_over(self: DispatchLoop, effects: Iterable[Effect]) -> None:
    for effect in effects:
        with patch.object(self, "_release", _nothing) if isinstance(effect, HandOver) else contextlib.nullcontext():
            _right_perform(self, [effect])


@_bug("INNOCENT", Dispatcher, "_let_one_suspect_through", plan=ONE_POISON)
def suspects_run_together(self: Dispatcher) -> None:
    for key, task in list(self._suspects.items()):
        del self._suspects[key]
        self._suspect = task
        self._enqueue(task)


# Bounds


@_bug("PARKED", Dispatcher, "_shut_windows", plan=SLOW)
def parked_for_want_of_a_slot(self: Dispatcher, lane: Lane, now_s: float) -> list[Window]:
    return list(self._windows[lane].values())


@_bug("LATE", Dispatcher, "_expire")
def retried_after_the_deadline(self: Dispatcher, now_s: float) -> Iterator[Effect]:
    self._expiries = [entry for entry in self._expiries if entry[2].attempts == 0]
    heapq.heapify(self._expiries)
    yield from _right_dispatcher_expire(self, now_s)


@_bug("RETRIES", InPlaceRetries, "delay_s")
def tries_without_end(self: InPlaceRetries, error: Any, *, tries_left: int, attempts: int) -> float | None:
    return _right_delay_s(self, error, tries_left=99, attempts=attempts)


@_bug("BUDGET", RetryBudget, "take")
def retry_budget_ignored(self: RetryBudget) -> bool:
    return True


@_bug("LIMIT", BackendState, "free")
def slots_ignored(self: BackendState, lane: object, *, sequential: bool = False) -> int:
    return 16


BUGS.append(Bug("quarantined_after_two", "QUARANTINE", ((decisions, "MOST_CRASHES", 1),)))

_right_acknowledge, _right_finish, _right_hand_over = (
    LaneIntake._acknowledge,
    DispatchLoop._finish,
    DispatchLoop._hand_over,
)
_right_complete, _right_perform = LaneIntake.complete, DispatchLoop._perform
_right_stop_apps, _right_accept, _right_expire = Worker._stop_apps, Dispatcher.accept, Gateway._expire
_right_dead_letter = DispatchLoop._write_dead_letter
_right_leave, _right_join, _right_follows = Coalescing.leave, Coalescing.join, Dispatcher._follows
_right_call, _right_answering, _right_give_up = Calls._call, Calls._answering, Calls.give_up
_right_failed = Producer.failed
_right_commit, _right_dispatcher_expire, _right_delay_s = (
    FinishedIndex.commit,
    Dispatcher._expire,
    InPlaceRetries.delay_s,
)
