"""The promises, checked at the moment at which they could break. Each has a name, and a Violation carries it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NoReturn, Protocol

from agents.delivery import Delivery
from schemas import headers as names
from schemas.ids import made_id
from schemas.request import InferenceTask
from schemas.result import ErrorType, Outcome, Result
from schemas.topics import Lane, RetryTier, TopicNames
from streams.dispatcher import Batch
from streams.task import Task, TaskKey
from tests.simulation.broker import Place, Record
from tests.simulation.serving import Server, answer_to
from tests.simulation.world import EPOCH_MS, Actor, Violation, World

CRASHES_BEFORE_QUARANTINE = 4
_RETRY_FLOOR = 10
_CLOCK_STEP_MS = 2
_GAP_S = 0.4


class Held(Protocol):
    """What a worker shows of what it still holds."""

    id: str

    @property
    def leftovers(self) -> dict[str, int]: ...


class Checks:
    """One account of a run: what clients were promised, what is durable, what was run where.

    `tiers` and `tries` are the settings' retry topics and tries in place, `slots` what a worker may have running at a server.
    `is_calm`: nothing fails, so nothing may run twice. Not `is_strict`: the gaps that are known are let pass: `_is_in_gap`,
    `_is_unread`, `_gone_with`.
    """

    def __init__(
        self, world: World, *, tiers: int, tries: int, slots: int, skew_ms: int, is_calm: bool, is_strict: bool
    ) -> None:
        self.world, self._tiers, self._tries, self._slots = world, tiers, tries, slots
        self._skew_ms, self._is_calm, self._is_strict = skew_ms, is_calm, is_strict
        topics = TopicNames()
        self._topics = topics
        self._lanes = {topics.requests(lane): lane for lane in Lane}
        self._retries = {topics.retry(tier) for tier in RetryTier}
        self.acknowledged: dict[TaskKey, None] = {}
        self.firsts: dict[TaskKey, Outcome] = {}
        self.requests: dict[TaskKey, str] = {}
        self.told: dict[TaskKey, Outcome] = {}
        self.calls: Counter[TaskKey] = Counter()
        self.slowest_ms: defaultdict[str, int] = defaultdict(int)
        self._keys: dict[Place, list[TaskKey]] = defaultdict(list)
        self._open: Counter[TaskKey] = Counter()
        self._submissions: Counter[TaskKey] = Counter()
        self._dead: dict[TaskKey, None] = {}
        self._sent: Counter[Task] = Counter()
        self._deadline_s: dict[Task, float] = {}
        self._hand_overs: Counter[TaskKey] = Counter()
        self._ended_in: dict[TaskKey, dict[str, None]] = defaultdict(dict)
        self._started_in: dict[TaskKey, dict[str, None]] = defaultdict(dict)
        self._first_s: dict[TaskKey, float] = {}
        self._gone: dict[str, None] = {}
        self._wrote: defaultdict[str, dict[TaskKey, None]] = defaultdict(dict)
        self._calls_of: Counter[str] = Counter()

    def broken(self, name: str, detail: object) -> NoReturn:
        self.world.say("CHECK", name, detail)
        raise Violation(name, f"{detail} at {self.world.now_s:.3f} s")

    # What becomes durable

    def appended(self, record: Record) -> None:
        if record.topic in self._lanes:
            self._request(record)
        elif record.topic in self._retries:
            self._retry(record)
        elif record.topic == self._topics.dead_letters:
            self.world.say("log", "dead letter of", record.key)
            self._dead[record.key, record.partition] = None
        elif record.topic == self._topics.results:
            self._result(record)

    def _request(self, record: Record) -> None:
        request = record.value
        is_request = isinstance(request, InferenceTask)
        key = (request.task_id if is_request and request.task_id else "") or made_id(
            self._lanes[record.topic], record.partition, record.offset
        )
        self._hold(record, (key, record.partition))
        self._submissions[key, record.partition] += 1
        text = str(request.messages[0].get("content")) if is_request else ""
        self.requests[key, record.partition] = text
        self.world.say("log", "request", key, f"{record.topic}/{record.partition}/{record.offset}", text)

    def _retry(self, record: Record) -> None:
        key = (record.key, record.partition)
        self._hold(record, key)
        hops = int(names.find(record.headers, names.HOPS) or 0)
        is_parked = names.find(record.headers, names.ERROR_TYPE) is None
        self.world.say(
            "log", "retry of", record.key, f"{record.topic}/{record.partition}/{record.offset}", f"hops={hops}"
        )
        self._hand_overs[key] += not is_parked
        bound = self._tiers * (1 + self.world.disruptions + self.world.fired["rebalance"])
        if hops > self._tiers or self._hand_overs[key] > bound:
            self.broken("RETRIES", f"{key} was handed over {self._hand_overs[key]} times, hop {hops} of {self._tiers}")

    def _hold(self, record: Record, key: TaskKey) -> None:
        self._keys[record.topic, record.partition].append(key)
        self._open[key] += 1

    def _result(self, record: Record) -> None:
        result: Result = record.value
        key = (record.key, record.partition)
        self.world.say("log", result.outcome.value, "of", record.key, result.error.type.value if result.error else "")
        if result.outcome is Outcome.FAILED and key not in self._dead:
            self.broken("DEAD_LETTER", f"{key} failed and has no dead letter")
        if result.error is not None and result.error.type is ErrorType.QUARANTINED:
            self.world.fire("quarantined")
            ended = self._ended_in[key] if self._is_strict else self._ended_in[key] | self._gone_with(key)
            if len(ended) < CRASHES_BEFORE_QUARANTINE:
                self.broken("QUARANTINE", f"{key} was given up after {list(ended)} ended")
        if result.output is not None and result.output.content != answer_to(self.requests[key]):
            self.broken("ANSWER", f"{key} got another task's answer")
        if key in self.firsts:
            self.world.fire("later terminal record")
        else:
            self.firsts[key], self._first_s[key] = result.outcome, self.world.now_s

    def committed(self, group: str, place: Place, before: int, after: int, *, is_fenced: bool) -> None:
        self.world.say("log", group, "commits", place, before, "->", after)
        if is_fenced:
            self.broken("ZOMBIE", f"an old generation of {group} committed {after} in {place}")
        # aiokafka repeats a commit with the generation of the moment, so one may be accepted late and set an offset back.
        for key in self._keys[place][after:before]:
            self._open[key] += 1
        for key in self._keys[place][before:after]:
            self._open[key] -= 1
            if key not in self.firsts and self._open[key] <= 0:
                self.broken("OVERCOMMIT", f"{key} of {place} was committed and has neither an outcome nor a retry")

    # What a worker does

    def taken(self, task: Task, now_s: float) -> None:
        self._deadline_s[task] = task.deadline_s

    def clock(self, actor: Actor, told_ms: int) -> None:
        """A worker's idea of broker time: never ahead of the brokers, and behind by no more than its slowest acknowledgement."""
        behind_ms = EPOCH_MS + int(self.world.now_s * 1000) - told_ms
        if (
            not -self._skew_ms - _CLOCK_STEP_MS
            <= behind_ms
            <= self.slowest_ms[actor.id] + self._skew_ms + _CLOCK_STEP_MS
        ):
            self.broken("CLOCK", f"{actor.id} is {behind_ms} ms behind the brokers")

    def span(self, actor: Actor, span: int, bound: int) -> None:
        if span > bound:
            self.broken("SPAN", f"{actor.id} holds a span of {span} offsets, of {bound}")

    def sent(self, actor: Actor, batch: Batch, now_s: float) -> None:
        for task in batch.tasks:
            self.world.say(actor.id, "sends", task, "to", batch.backend)
            if now_s >= self._deadline_s[task]:
                self.broken("LATE", f"{task} was sent {now_s - self._deadline_s[task]:.3f} s after its deadline")
            self._sent[task] += 1
            tries = 1 + (0 if task.hops else self._tries)
            if self._sent[task] > tries:
                self.broken("RETRIES", f"{task} was tried {self._sent[task]} times in one worker, of {tries}")

    def called(self, actor: Actor, seen: Mapping[TaskKey, None], server: Server, task: Task) -> None:
        # What is submitted again after its end was committed runs again: nothing is kept of it. The log decides.
        is_known = task.key in seen or (task.key in self._wrote[actor.id] and not self._is_unread(task))
        if is_known and self._submissions[task.key] == 1:
            self.broken("AFTER_END", f"{actor.id} ran {task}, whose outcome it knew")
        busy = server.busy(actor.id) + 1
        if busy > self._slots:
            self.broken("LIMIT", f"{actor.id} runs {busy} calls at {server.name}, of {self._slots}")
        self._calls_of[actor.id] += 1
        self.calls[task.key] += 1
        self._started_in[task.key][actor.id] = None
        is_repeated = self._is_calm and self.calls[task.key] > 1
        if is_repeated and (self._is_strict or not self._is_in_gap(task.key)):
            self.broken("REPEATED", f"{task} ran twice though nothing failed")

    def retried(self, actor: Actor, in_place: int, ratio: float) -> None:
        bound = _RETRY_FLOOR + ratio * self._calls_of[actor.id]
        if in_place > bound:
            self.broken("BUDGET", f"{actor.id} tried {in_place} times again in place, of {bound}")

    def ended_while_running(self, actor: Actor, running: list[Task]) -> None:
        """A worker ended, or stood still for so long that others must think so."""
        for task in running:
            self._ended_in[task.key][actor.id] = None

    def wrote(self, actor: Actor, key: TaskKey) -> None:
        """A worker's own result is durable."""
        self._wrote[actor.id][key] = None

    def gone(self, actor: Actor) -> None:
        """A worker ended, in whatever way, or others must think so."""
        self._gone[actor.id] = None

    def _gone_with(self, key: TaskKey) -> dict[str, None]:
        """Who started a task and is gone. One that drained while the task waited for its next try here did not end by it, but the
        logs do not say so, and it is counted as if it had crashed.
        """
        return {worker: None for worker in self._started_in[key] if worker in self._gone}

    def _is_unread(self, task: Task) -> bool:
        """A worker knows the end of a retry from the results log only, its own too: what is delivered again before it has read so far
        runs again.
        """
        origin = task.origin
        return not self._is_strict and isinstance(origin, Delivery) and origin.record != origin.source

    def _is_in_gap(self, key: TaskKey) -> bool:
        """A worker says in one log that it no longer runs a task and in another what came of it. Who waits for it may read the second
        later, and its second of grace counts from its last look, so there may be nothing left of it.
        """
        return key in self._first_s and self.world.now_s - self._first_s[key] < _GAP_S

    # What clients hear

    def tells(self, key: TaskKey, outcome: Outcome) -> None:
        known = self.told.get(key)
        self.told[key] = outcome
        if known is not None and known is not outcome:
            self.broken("CHANGED", f"{key} was {known.value} and became {outcome.value}")

    # The end

    def at_the_end(self, workers: list[Held], lags: Mapping[Place, str]) -> None:
        """Everything has had its time, without faults."""
        for key in self.requests:
            if key not in self.firsts:
                self.broken("LOST", f"{key} has no outcome; not committed: {dict(lags)}")
        for key in self.acknowledged:
            if key not in self.requests:
                self.broken("LOST", f"{key} was acknowledged and is not in the log")
            if self.told.get(key) is not self.firsts[key]:
                self.broken("CHANGED", f"{key}: told {self.told.get(key)}, the log says {self.firsts[key].value}")
        if lags:
            self.broken("STUCK", f"not committed: {dict(lags)}")
        for worker in workers:
            if worker.leftovers:
                self.broken("LEFTOVER", f"{worker.id} still holds {worker.leftovers}")
