"""How many tokens a request is expected to take: the unit in which lanes share backends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# English prose has about four characters a token in the vocabularies of current models; a template adds a few per message.
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
_ATTACHMENT_TOKENS = 512


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
    """Return prompt plus the longest answer allowed: frozen at intake, an upper estimate until answers teach a better one."""
    return prompt_tokens(messages) + max_tokens
