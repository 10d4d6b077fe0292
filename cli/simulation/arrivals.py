"""What arrives when: from a load's rate, or from a recorded log.

A recorded log is JSON lines, one task each: `{"at_s": 0.0, "lane": "high", "tenant": "ward", "model": "m", "prompt_tokens": 80,
"answer_tokens": 40, "max_tokens": 256, "deadline_s": 30}`. What a line does not say is the load's. Results as `triage watch --json`
prints them will do too.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cli.errors import SettingsError
from cli.simulation.scenario import Load, Tokens
from schemas.request import InferenceTask
from schemas.topics import Lane

# Of a normal distribution: how many standard deviations the 99th percentile lies above the median.
_P99_DEVIATIONS = 2.326


@dataclass(frozen=True, slots=True)
class Kind:
    """What tasks of a load have in common. Their requests are one object: the Dispatcher looks at no text."""

    lane: Lane
    tenant: str
    model: str | None
    request: InferenceTask
    parameters: dict[str, object]
    max_tokens: int


@dataclass(slots=True, eq=False)
class Arrival:
    """One task: when it comes, what it takes, and what became of it.

    Its work and the noise of its calls are drawn here, so that every policy gets the same. `due_s` is infinite without a deadline.
    """

    number: int
    at_s: float
    kind: Kind
    prompt_tokens: int
    answer_tokens: int
    due_s: float
    noise: float
    started_s: float | None = None
    is_over: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


def arrivals(load: Load, seed: str, until_s: float) -> Iterator[Arrival]:
    """Yield what comes before `until_s`, in order; `number` is the place within the load. The same seed gives the same.

    Raises: SettingsError for a recorded log that cannot be read.
    """
    rng = random.Random(seed)  # noqa: S311 - a model, not a secret
    if load.file is not None:
        yield from _recorded(load, load.file, rng, until_s)
        return
    kind = _kind(load, load.lane, load.tenant, load.model, load.longest_answer)
    until_s = until_s if load.until_s is None else min(until_s, load.until_s)
    for number, at_s in enumerate(_times(load, rng, until_s)):
        due_s = math.inf if load.deadline_s is None else at_s + load.deadline_s
        yield Arrival(
            number,
            at_s,
            kind,
            _drawn(load.prompt_tokens, rng),
            min(_drawn(load.answer_tokens, rng), load.longest_answer),
            due_s,
            rng.gauss(0, 1),
        )


def _times(load: Load, rng: random.Random, until_s: float) -> Iterator[float]:
    for _ in range(load.backlog):
        yield load.from_s
    if not load.rate:
        return
    at_s = load.from_s
    while True:
        at_s += 1 / load.rate if load.arrivals == "steady" else rng.expovariate(load.rate)
        if at_s >= until_s:
            return
        if load.arrivals == "bursty":
            yield _within_bursts(load, at_s)
        elif load.arrivals != "curve" or rng.random() < _share(load.curve, at_s):
            # Thinning: of arrivals at the full rate, each is kept with the share of its moment (Lewis and Shedler 1979).
            yield at_s


def _within_bursts(load: Load, at_s: float) -> float:
    """Return when the moment comes that lies at `at_s` were there no pauses."""
    assert load.on_s is not None
    assert load.off_s is not None
    return at_s + load.off_s * ((at_s - load.from_s) // load.on_s)


def _share(curve: list[tuple[float, float]], at_s: float) -> float:
    before_s, before = curve[0]
    if at_s <= before_s:
        return before
    for after_s, after in curve[1:]:
        if at_s <= after_s:
            return before + (after - before) * (at_s - before_s) / (after_s - before_s)
        before_s, before = after_s, after
    return before


def _drawn(tokens: Tokens, rng: random.Random) -> int:
    if tokens.p99 is None:
        return tokens.median
    return max(
        round(tokens.median * math.exp(rng.gauss(0, 1) * math.log(tokens.p99 / tokens.median) / _P99_DEVIATIONS)), 1
    )


def _kind(load: Load, lane: Lane, tenant: str, model: str | None, max_tokens: int) -> Kind:
    request = InferenceTask.model_validate(
        {
            "messages": [{"role": "user", "content": "simulated"}],
            "tenant": tenant,
            "model": model,
            "agent_type": load.agent_type,
            "budget": load.budget,
        }
    )
    return Kind(lane, tenant, model, request, {"max_tokens": max_tokens}, max_tokens)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: float = Field(ge=0)
    lane: Lane | None = None
    tenant: str | None = None
    model: str | None = None
    prompt_tokens: int | None = Field(None, ge=1)
    answer_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    deadline_s: float | None = Field(None, gt=0)


def _recorded(load: Load, file: Path, rng: random.Random, until_s: float) -> Iterator[Arrival]:
    kinds: dict[tuple[object, ...], Kind] = {}
    for number, line in enumerate(_lines(file)):
        at_s = load.from_s + line.at_s
        if at_s >= until_s:
            return
        lane, tenant, model = line.lane or load.lane, line.tenant or load.tenant, line.model or load.model
        longest = line.max_tokens or max(load.longest_answer, line.answer_tokens or 0)
        deadline_s = line.deadline_s or load.deadline_s
        if (lane, tenant, model, longest) not in kinds:
            kinds[lane, tenant, model, longest] = _kind(load, lane, tenant, model, longest)
        yield Arrival(
            number,
            at_s,
            kinds[lane, tenant, model, longest],
            line.prompt_tokens or _drawn(load.prompt_tokens, rng),
            min(line.answer_tokens or _drawn(load.answer_tokens, rng), longest),
            math.inf if deadline_s is None else at_s + deadline_s,
            rng.gauss(0, 1),
        )


def _lines(file: Path) -> list[_Line]:
    """Return a recorded log's tasks in the order of their times."""
    lines: list[_Line] = []
    first_ms: float | None = None
    for number, text in enumerate(file.read_text().splitlines(), 1):
        try:
            values = json.loads(text)
            if isinstance(values, dict) and "timing" in values:
                values = _of_result(values)
                first_ms = values["at_s"] * 1000 if first_ms is None else min(first_ms, values["at_s"] * 1000)
            lines.append(_Line.model_validate(values))
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]
            raise SettingsError(f"{file}:{number}: {'.'.join(map(str, fault['loc']))} {fault['msg']}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{file}:{number}: neither a task as the scenario's loads have them nor a result."
            ) from error
    if first_ms is not None:
        lines = [line.model_copy(update={"at_s": line.at_s - first_ms / 1000}) for line in lines]
    return sorted(lines, key=lambda line: line.at_s)


def _of_result(result: dict[str, Any]) -> dict[str, Any]:
    usage = result.get("usage") or {}
    return {
        "at_s": result["timing"]["created_at_ms"] / 1000,
        "lane": result["priority"],
        "tenant": result.get("tenant"),
        "model": result.get("model"),
        "prompt_tokens": usage.get("prompt_tokens") or None,
        "answer_tokens": usage.get("completion_tokens") or None,
    }
