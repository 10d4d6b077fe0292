"""When a producer is taken to stand still: the batch that is next was not tried at one look after another."""

from __future__ import annotations

from wire.producing import looked


def test_looks_count_while_a_batch_is_not_tried_again() -> None:
    first = looked({}, {"a": 0, "b": 1})
    second = looked(first, {"a": 0, "b": 1})
    assert {"a": (0, 0), "b": (1, 0)} == first
    assert {"a": (0, 1), "b": (1, 1)} == second
    assert {"a": (0, 2), "b": (2, 0)} == looked(second, {"a": 0, "b": 2})


def test_a_batch_that_is_no_longer_next_is_forgotten() -> None:
    assert {} == looked({"a": (1, 5)}, {})
    assert {"a": (1, 0)} == looked(looked({"a": (1, 5)}, {}), {"a": 1})
