"""What `triage demo` shows: a line while it runs, and the recap."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from cli.picture.kills import Kill
from cli.picture.marks import seconds
from schemas.result import Outcome, Result
from schemas.topics import Lane
from streams.quantiles import quantile

_COLUMNS = ("lane", "done", "failed", "p50", "p95")


@dataclass
class Tally:
    """What the demo has seen of its own tasks. Latency runs from the request's creation to the result's append, one machine's clock."""

    sent: Counter[Lane] = field(default_factory=Counter)
    done: Counter[Lane] = field(default_factory=Counter)
    failed: Counter[Lane] = field(default_factory=Counter)
    latency_s: dict[Lane, list[float]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    batches: dict[str, int] = field(default_factory=dict)
    cached: int = 0
    tokens: int = 0
    questions: dict[str, str] = field(default_factory=dict)
    run_again: int = 0
    kills: list[Kill] = field(default_factory=list)
    answers: deque[tuple[Lane, str, str]] = field(default_factory=lambda: deque(maxlen=1))

    def ask(self, task_id: str, lane: Lane, question: str) -> None:
        """Note a task that is about to be sent."""
        self.questions[task_id] = question
        self.sent[lane] += 1

    def waiting(self, lane: Lane) -> int:
        """Return how many tasks of a lane have no outcome yet."""
        return self.sent[lane] - self.done[lane] - self.failed[lane]

    @property
    def open(self) -> int:
        return len(self.questions)

    @property
    def is_silent(self) -> bool:
        """Whether a lane has nothing to show yet."""
        return any(self.sent[lane] and not self.done[lane] for lane in Lane)

    def take(self, result: Result, appended_ms: int) -> None:
        """Note a result. Only the first of a task counts."""
        question = self.questions.pop(result.task_id, None)
        if question is None:
            return
        for kill in self.kills:
            kill.result(result, appended_ms)
        lane = result.priority
        if result.outcome is not Outcome.COMPLETED or result.output is None:
            self.failed[lane] += 1
            return
        self.done[lane] += 1
        self.cached += result.cached
        self.latency_s[lane].append((appended_ms - (result.timing.created_at_ms or appended_ms)) / 1000)
        if result.batch is not None:
            self.batches[result.batch.id] = result.batch.size
        if result.usage is not None and not result.cached:
            self.tokens += result.usage.completion_tokens
        self.answers.append((lane, question, " ".join((result.output.content or "").split())))

    def as_record(self, *, interrupted: bool) -> dict[str, Any]:
        """Return the recap for machines."""
        lanes = {
            lane.value: {
                "sent": self.sent[lane],
                "done": self.done[lane],
                "failed": self.failed[lane],
                "p50_s": quantile(self.latency_s[lane], 0.5),
                "p95_s": quantile(self.latency_s[lane], 0.95),
            }
            for lane in Lane
        }
        rest = {"batches": len(self.batches), "batch_size_mean": _mean(self.batches.values())}
        rest |= {"cached": self.cached, "tokens": self.tokens, "unfinished": self.open}
        return {"event": "recap", "interrupted": interrupted, "lanes": lanes, **rest}


def heading() -> str:
    """Return the line above those of `line`."""
    return "done+waiting" + "".join(f"{lane.value:>14}" for lane in Lane)


def line(tally: Tally, at_s: float, width: int) -> str:
    """Return how far it is, and beneath it the newest answer, cut to `width` columns."""
    lanes = "".join(f"{f'{tally.done[lane]}+{tally.waiting(lane)}':>14}" for lane in Lane)
    rows = [f"{at_s:10.0f} s{lanes}"]
    if tally.answers:
        lane, question, answer = tally.answers.pop()
        rows.append(_cut(f"    {lane.value}: {question} → {answer}", width))
    return "\n".join(rows)


def print_recap(tally: Tally, *, interrupted: bool) -> None:
    """Print what came of it: a table where stdout is a terminal, else aligned columns."""
    from rich.console import Console

    console = Console(highlight=False)
    end = "Interrupted" if interrupted else "Done"
    console.print(f"\n{end}. From request to answer:\n")
    if console.is_terminal:
        _print_table(console, _rows(tally))
    else:
        for cells in (_COLUMNS, *_rows(tally)):
            console.print(f"{cells[0]:10}" + "".join(f"{cell:>10}" for cell in cells[1:]))
    console.print(f"\n{_sums(tally)}")
    for kill in tally.kills:
        console.print(kill.recap(tally.questions.keys()), soft_wrap=True)
    if tally.kills:
        console.print(f"Tasks run again: {tally.run_again}.")


def _print_table(console: Any, rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table()
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "lane" else "right")
    for cells in rows:
        table.add_row(*cells)
    console.print(table)


def _rows(tally: Tally) -> list[tuple[str, ...]]:
    return [
        (
            lane.value,
            str(tally.done[lane]),
            str(tally.failed[lane]),
            seconds(quantile(tally.latency_s[lane], 0.5)),
            seconds(quantile(tally.latency_s[lane], 0.95)),
        )
        for lane in Lane
    ]


def _sums(tally: Tally) -> str:
    left = f"{tally.open} tasks were still waiting." if tally.open else "Nothing was left waiting."
    return (
        f"{len(tally.batches)} batches, {_mean(tally.batches.values()):.1f} tasks each on average; "
        f"{tally.cached} answers from the cache.\n{tally.tokens} tokens generated. {left}"
    )


def _mean(sizes: Iterable[int]) -> float:
    found = list(sizes)
    return round(fmean(found), 2) if found else 0.0


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
