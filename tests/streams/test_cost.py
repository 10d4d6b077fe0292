"""Estimated tokens."""

from __future__ import annotations

from typing import Any

import pytest

from streams.cost import cost_tokens, prompt_tokens


@pytest.mark.parametrize(
    ("messages", "tokens"),
    [
        ([], 0),
        ([{"role": "user"}], 4),
        ([{"role": "user", "content": None}], 4),
        ([{"role": "user", "content": "x" * 40}], 14),
        ([{"role": "system", "content": "x" * 40}, {"role": "user", "content": "x" * 7}], 19),
        ([{"role": "user", "content": [{"type": "text", "text": "x" * 40}]}], 14),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": 5}]}], 1028),
    ],
)
def test_four_characters_are_a_token_and_each_message_costs_four_more(
    messages: list[dict[str, Any]], tokens: int
) -> None:
    assert tokens == prompt_tokens(messages)
    assert tokens + 128 == cost_tokens(messages, 128)
