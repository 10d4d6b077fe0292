"""How much energy a task took: what its cards' counters rose by while it ran, shared by tokens. An estimate, and called one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# No card draws more: a counter that rises faster was not read right.
_MOST_W = 20_000.0


@dataclass(slots=True)
class ModelEnergy:
    """What a model's ended tasks took together."""

    joules: float = 0.0
    tokens: int = 0
    task_count: int = 0

    @property
    def joules_per_token(self) -> float | None:
        """None before there is a token."""
        return self.joules / self.tokens if self.tokens else None


@dataclass(slots=True)
class _Card:
    counter_joules: float
    at_s: float
    reading_count: int = 0
    pot_joules: float = 0.0


@dataclass(slots=True)
class _Running:
    gpus: tuple[str, ...]
    tokens: int
    reading_count: int


@dataclass
class EnergyMeter:
    """Joules of one worker's tasks.

    What a card's counter rises by while a task runs on it goes into the card's pot; what it rises by while none does is the card's
    own. A task that ends takes from each of its cards' pots its tokens' part of all tokens that run there, so nothing is given
    twice. Counters come late, once a second: of a short task the next ones may bear a part, and a model's sum is nearer the truth
    than a task's own figure. Times are monotonic seconds given by the caller, who feeds each new sample, start and end.
    """

    models: dict[str, ModelEnergy] = field(default_factory=dict)
    _cards: dict[str, _Card] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _was_busy: set[str] = field(default_factory=set)

    def reading(self, gpu: str, joules_total: float | None, *, now_s: float, own_ratio: float = 1.0) -> None:
        """Take a card's counter; None: it has none, and its tasks' energy is not known.

        `own_ratio` is this worker's part of what runs on the card: its tasks in flight there over those of all workers.
        A counter that fell began anew with its driver; what it missed is not billed.
        """
        if joules_total is None:
            return
        card = self._cards.get(gpu)
        if card is None:
            self._cards[gpu] = _Card(joules_total, now_s)
            return
        rise = joules_total - card.counter_joules
        if gpu in self._was_busy and 0 <= rise <= _MOST_W * max(now_s - card.at_s, 1.0):
            card.pot_joules += rise * min(max(own_ratio, 0.0), 1.0)
        card.counter_joules, card.at_s = joules_total, now_s
        card.reading_count += 1
        if not any(gpu in task.gpus for task in self._running.values()):
            self._was_busy.discard(gpu)

    def started(self, task_id: str, gpus: Sequence[str], tokens: int) -> None:
        """Take note of a task that runs on these cards; `tokens` is what it is expected to need, prompt and answer."""
        self._running[task_id] = _Running(tuple(gpus), max(tokens, 1), self._readings(gpus))
        self._was_busy.update(gpus)

    def ended(self, task_id: str, *, model: str, tokens: int) -> float | None:
        """Return the task's joules, None when they are not known: a card without a counter, or no reading since it started.

        `tokens` is what it did need, 0 when that is not known.
        """
        task = self._running.pop(task_id, None)
        if task is None:
            return None
        tokens = max(tokens, 0) or task.tokens
        total = self.models.setdefault(model, ModelEnergy())
        total.tokens += tokens
        total.task_count += 1
        if self._readings(task.gpus) == task.reading_count or not all(gpu in self._cards for gpu in task.gpus):
            return None
        joules = sum(self._take(gpu, tokens) for gpu in task.gpus)
        total.joules += joules
        return joules

    def _take(self, gpu: str, tokens: int) -> float:
        card = self._cards[gpu]
        others = sum(task.tokens for task in self._running.values() if gpu in task.gpus)
        part = card.pot_joules * tokens / (tokens + others)
        card.pot_joules -= part
        return part

    def _readings(self, gpus: Sequence[str]) -> int:
        return sum(card.reading_count for gpu in gpus if (card := self._cards.get(gpu)) is not None)
