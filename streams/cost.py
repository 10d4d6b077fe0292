"""How many tokens a request is expected to take: the unit in which lanes share backends."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas.result import Usage
from streams.task import Task

# English prose has about four characters a token in the vocabularies of current models; a template adds a few per message.
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
_ATTACHMENT_TOKENS = 512
# Answers of a class that must be known before it is expected to be like them.
ENOUGH_SAMPLES = 20
# Weight of the newest answer, once there are enough: about the last forty count.
_WEIGHT = 0.05
# A server's count beyond these factors of the estimate tells of something else than its vocabulary: hidden prompts, attachments.
_LEAST_RATIO, _MOST_RATIO = 0.25, 8.0
_MOST_CLASSES = 1024


def prompt_tokens(messages: Iterable[Mapping[str, Any]]) -> int:
    """Return the estimated tokens of a conversation; a part that is not text counts 512."""
    tokens = 0
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            tokens += len(content) // CHARACTERS_PER_TOKEN
        elif content:
            tokens += sum(_part_tokens(part) for part in content)
        tokens += TOKENS_PER_MESSAGE
    return tokens


def _part_tokens(part: Mapping[str, Any]) -> int:
    text = part.get("text")
    return len(text) // CHARACTERS_PER_TOKEN if isinstance(text, str) else _ATTACHMENT_TOKENS


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Return `total` divided by weights, in whole tokens that add up to it; equally where all weights are 0.

    10 by 1, 1, 1 is 3, 4, 3: each gets the tokens between the rounded running sums.
    """
    whole = sum(weights)
    running, given, parts = 0, 0, []
    for place, weight in enumerate(weights, start=1):
        running += weight
        upto = round(total * running / whole) if whole else round(total * place / len(weights))
        parts.append(upto - given)
        given = upto
    return parts


def cost_tokens(messages: Iterable[Mapping[str, Any]], max_tokens: int) -> int:
    """Return prompt plus the longest answer allowed: the most that a task may take, as far as the prompt is estimated well."""
    return prompt_tokens(messages) + max_tokens


class CostClass(NamedTuple):
    """Tasks whose answers are likely to be of a length."""

    agent_type: str | None
    model: str | None


@dataclass(slots=True)
class Learned:
    """A decayed mean and mean deviation of what was seen. The first samples count alike, so that none of them lingers.

    Source: Jacobson, Congestion Avoidance and Control, SIGCOMM 1988 (mean and deviation kept together).
    """

    mean: float = 0.0
    deviation: float = 0.0
    samples: int = 0

    def observe(self, value: float) -> None:
        self.samples += 1
        weight = max(1 / self.samples, _WEIGHT)
        error = value - self.mean
        self.mean += weight * error
        if self.samples > 1:
            self.deviation += weight * (abs(error) - self.deviation)

    @property
    def is_known(self) -> bool:
        return self.samples >= ENOUGH_SAMPLES


@dataclass
class Costs:
    """What tasks are expected to take, learned from what answers took.

    The answer of an agent type and model is expected to be as long as the mean of earlier ones plus their mean deviation, and never
    longer than `max_tokens`; until 20 are known, `max_tokens` counts. The prompt is estimated by its characters, times what the model's
    own counts have been of such estimates. Of each only the `most_classes` used last are kept.
    """

    most_classes: int = _MOST_CLASSES
    _answers: OrderedDict[CostClass, Learned] = field(default_factory=OrderedDict)
    _prompts: OrderedDict[str | None, Learned] = field(default_factory=OrderedDict)

    def expected(self, task: Task) -> int:
        """Return a task's cost, at least 1, from the most it may take (its `bound_tokens`)."""
        prompt, most = _parts(task)
        ratio = self._prompts.get(task.model)
        if ratio is not None and ratio.is_known:
            prompt = math.ceil(prompt * min(max(ratio.mean, _LEAST_RATIO), _MOST_RATIO))
        answer = self._answers.get(_class_of(task))
        if answer is not None and answer.is_known:
            most = min(most, math.ceil(answer.mean + answer.deviation))
        return max(prompt + most, 1)

    def learn(self, task: Task, usage: Usage) -> None:
        """Take note of what a task took."""
        prompt, _ = _parts(task)
        if prompt > 0 and usage.prompt_tokens > 0:
            _recent(self._prompts, task.model, self.most_classes).observe(usage.prompt_tokens / prompt)
        _recent(self._answers, _class_of(task), self.most_classes).observe(usage.completion_tokens)

    def __len__(self) -> int:
        return len(self._answers) + len(self._prompts)


def _class_of(task: Task) -> CostClass:
    return CostClass(task.request.agent_type, task.model)


def _parts(task: Task) -> tuple[int, int]:
    """Return the estimated prompt and the longest answer of a task."""
    most = task.parameters.get("max_tokens")
    longest = min(most, task.bound_tokens) if isinstance(most, int) else 0
    return task.bound_tokens - longest, longest


def _recent(classes: OrderedDict[Any, Learned], key: object, most: int) -> Learned:
    learned = classes.setdefault(key, Learned())
    classes.move_to_end(key)
    if len(classes) > most:
        classes.popitem(last=False)
    return learned
