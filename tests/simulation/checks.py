"""The promises, checked at the moment at which they could break. Each has a name, and a Violation carries it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn, Protocol

from schemas import headers as names
from schemas.ids import made_id
from schemas.progress import Released
from schemas.request import InferenceTask
from schemas.result import ErrorType, Outcome, Result
from schemas.topics import Lane, RetryTier, TopicNames
from streams.dispatcher import Batch
from streams.retrying import PARKED_AFTER_S
from streams.task import Task, TaskKey
from tests.simulation.broker import Place, Record
from tests.simulation.serving import BAD, POISON, Server, answer_to
from tests.simulation.world import EPOCH_MS, Actor, Violation, World

CRASHES_BEFORE_QUARANTINE = 4
_RETRY_FLOOR = 10
_CLOCK_STEP_MS = 2
_SENT_S, _SENT_LATE_S = 0.1, 10.0


class Held(Protocol):
    """What a worker shows of what it still holds."""

    id: str

    @property
    def leftovers(self) -> dict[str, int]: ...


class Checks:
    """One account of a run: what clients were promised, what is durable, what was run where.

    `tiers` and `tries` are the settings' retry topics and tries in place, `slots` what a worker may have running at a server.
    `is_calm`: nothing fails, so nothing may run twice.
    """

    def __init__(self, world: World, *, tiers: int, tries: int, slots: int, skew_ms: int, is_calm: bool) -> None:
        self.world, self._tiers, self._tries, self._slots = world, tiers, tries, slots
        self._skew_ms, self._is_calm = skew_ms, is_calm
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
        self._ended_s: dict[str, float] = {}
        # Starts that came to nothing and are not released in the log: the attempt, and when that was.
        self._unsaid: dict[TaskKey, dict[str, tuple[int, float]]] = defaultdict(dict)
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
        elif isinstance(record.value, Released):
            self._released(record.value, record.partition)

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
            ended = self._ended_in[key] | self._not_told(key)
            if len(ended) < CRASHES_BEFORE_QUARANTINE:
                self.broken("QUARANTINE", f"{key} was given up after {list(ended)} ended")
            if self._is_poison_alone and not self.requests[key].startswith(POISON):
                self.broken("INNOCENT", f"{key} was given up, and another one ended the workers")
        if result.error is not None and result.error.type is ErrorType.POISON:
            self.world.fire("blamed alone")
            if not self.requests[key].startswith(BAD) and not self._has_refused:
                self.broken("BLAMED", f"{key} was blamed for what another of its batch did")
        if result.coalesced_with is not None:
            self._shared(key, result)
        if result.output is not None and result.output.content != answer_to(self.requests[key]):
            self.broken("ANSWER", f"{key} got another task's answer")
        if key in self.firsts:
            self.world.fire("later terminal record")
        else:
            self.firsts[key] = result.outcome

    def _released(self, record: Released, partition: int) -> None:
        for task_id, _topic, _offset, attempt in record.released:
            unsaid = self._unsaid[task_id, partition]
            if record.worker in unsaid and unsaid[record.worker][0] == attempt:
                del unsaid[record.worker]

    def _shared(self, key: TaskKey, result: Result) -> None:
        self.world.fire("shared a call")
        leaders = [each for each in self.requests if each[0] == result.coalesced_with]
        if not leaders or self.requests[leaders[0]] != self.requests[key]:
            self.broken("ANSWER", f"{key} shared the call of {result.coalesced_with}, which is another request")
        if result.outcome is Outcome.COMPLETED and self.firsts.get(leaders[0]) not in (None, Outcome.COMPLETED):
            self.world.fire("took a call over")

    @property
    def _has_refused(self) -> bool:
        """Whether a server refused anything but what it always does."""
        kinds = ("BackendRejected", "BackendProtocolError", "BackendFailed")
        return any(self.world.fired[f"backend {kind}"] for kind in kinds)

    @property
    def _is_poison_alone(self) -> bool:
        """Whether a single request is what ended every worker so far."""
        others = [kind for kind in self.world.fired if kind in ("kill", "pause") or kind.startswith("crash ")]
        return not others and 1 == sum(text.startswith(POISON) for text in self.requests.values())

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

    def called(self, actor: Actor, seen: Mapping[TaskKey, None], server: Server, tasks: Sequence[Task]) -> None:
        """A call begins, for one task or for several."""
        busy = server.busy(actor.id) + len(tasks)
        if busy > self._slots:
            self.broken("LIMIT", f"{actor.id} runs {busy} calls at {server.name}, of {self._slots}")
        for task in tasks:
            self._called(actor, seen, task)

    def _called(self, actor: Actor, seen: Mapping[TaskKey, None], task: Task) -> None:
        # What is submitted again after its end was committed runs again: nothing is kept of it. The log decides.
        is_known = task.key in seen or task.key in self._wrote[actor.id]
        if is_known and self._submissions[task.key] == 1:
            self.broken("AFTER_END", f"{actor.id} ran {task}, whose outcome it knew")
        self._calls_of[actor.id] += 1
        self.calls[task.key] += 1
        if self._is_calm and self.calls[task.key] > 1:
            self.broken("REPEATED", f"{task} ran twice though nothing failed")

    def parked(self, servers: Iterable[Server], task: Task) -> None:
        since_s = self.world.now_s - PARKED_AFTER_S
        able = [each.name for each in servers if task.model in (None, each.model) and each.was_up_since(since_s)]
        if able and task.lane is not Lane.LOW:
            self.broken("PARKED", f"{task} was parked though {able} could have taken it")

    def retried(self, actor: Actor, in_place: int, ratio: float) -> None:
        bound = _RETRY_FLOOR + ratio * self._calls_of[actor.id]
        if in_place > bound:
            self.broken("BUDGET", f"{actor.id} tried {in_place} times again in place, of {bound}")

    def ended_while_running(self, actor: Actor, running: list[Task]) -> None:
        """A worker ended, or stood still for so long that others must think so."""
        self._ended_s[actor.id] = self.world.now_s
        for task in running:
            self._ended_in[task.key][actor.id] = None

    def came_to_nothing(self, actor: Actor, task: Task) -> None:
        """A worker's start of a task has failed or was given up; it is to say so."""
        if task.attempts:
            self._unsaid[task.key][actor.id] = (task.attempts, self.world.now_s)

    def _not_told(self, key: TaskKey) -> dict[str, None]:
        """Return who is gone and could not say any more that it did not end by this task: such a record is posted once, and may be lost."""
        fired = self.world.fired
        is_slow = fired["produce delayed"] or fired["brokers away"] or fired["pause"]
        within_s = _SENT_LATE_S if is_slow else _SENT_S
        is_lossy = fired["produce failed"] or fired["acknowledgement lost"]
        return {
            worker: None
            for worker, (_, at_s) in self._unsaid[key].items()
            if worker in self._ended_s and (is_lossy or self._ended_s[worker] - at_s < within_s)
        }

    def wrote(self, actor: Actor, key: TaskKey) -> None:
        """A worker's own result is durable."""
        self._wrote[actor.id][key] = None

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
