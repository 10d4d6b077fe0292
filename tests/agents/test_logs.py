"""Log lines as they come out."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from wire.logs import Repetition, configure, exception_text, get_logger

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Return what reads the lines written so far."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, level = list(root.handlers), root.level
    configure("json", "info", stream=written)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_has_time_level_event_and_logger_first(lines: Lines) -> None:
    get_logger("triage.x").info("served", lane="high", count=3)
    [line] = lines()
    assert list(line) == ["timestamp", "level", "event", "logger", "lane", "count"]
    assert tuple(line.values())[1:] == ("info", "served", "triage.x", "high", 3)
    assert len(line["timestamp"]) == len("2026-01-01T00:00:00.000Z")


def test_the_libraries_lines_look_the_same(lines: Lines) -> None:
    logging.getLogger("other").warning("%s is %d", "x", 1)
    [line] = lines()
    assert (line["level"], line["event"], line["logger"]) == ("warning", "x is 1", "other")


def test_configuring_twice_writes_once(lines: Lines) -> None:
    again = io.StringIO()
    configure("console", "warning", stream=again)
    get_logger("triage.x").info("quiet")
    get_logger("triage.x").warning("loud", lane="low")
    assert lines() == []
    assert again.getvalue().count("\n") == 1
    assert "lane=low" in again.getvalue()


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("prompt", "secret", "[withheld]"),
        ("messages", ["secret"], "[withheld]"),
        ("body", b"secret", "[withheld]"),
        ("password", "secret", "[withheld]"),
        ("found", {"content": "secret"}, "<dict>"),
        ("found", b"secret", "<bytes>"),
        ("found", "x" * 1000, "x" * 300),
        ("found", (1, "a", None), [1, "a", None]),
        ("found", Colour.RED, "red"),
        ("error", ValueError("no"), "builtins.ValueError: no"),
    ],
)
def test_a_field_carries_no_content(name: str, value: object, expected: object, lines: Lines) -> None:
    get_logger("triage.x").info("seen", **{name: value})
    assert expected == lines()[0][name]


class _Model(BaseModel):
    count: int


def test_an_exception_is_told_without_the_input_that_it_quotes(lines: Lines) -> None:
    try:
        try:
            _Model.model_validate({"count": "secret"})
        except ValidationError as error:
            raise RuntimeError("not served") from error
    except RuntimeError:
        get_logger("triage.x").exception("failed")
        logging.getLogger("other").exception("failed")
    for line in lines():
        told = line["exception"]
        assert "RuntimeError: not served" in told
        assert "ValidationError" in told
        assert "secret" not in told.replace('{"count": "secret"}', "")  # the source line of this test
    assert len(lines()) == 2


def test_causes_come_before_effects() -> None:
    try:
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise ValueError("effect") from error
    except ValueError as error:
        told = exception_text(error)
    assert told.index("cause") < told.index("effect")


def record(message: str, *, name: str = "aiokafka.conn", level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, ("x",), None)


def test_a_repeated_template_comes_once_in_ten_seconds() -> None:
    now_s = 100.0
    repetition = Repetition(clock=lambda: now_s)
    assert [repetition.filter(record("no %s")) for _ in range(3)] == [True, False, False]
    assert repetition.filter(record("other %s"))
    now_s = 110.0
    late = record("no %s")
    assert repetition.filter(late)
    assert late.__dict__["held_back"] == 2
    assert not repetition.filter(record("no %s"))


@pytest.mark.parametrize("kept", [record("x", name="triage.worker"), record("x", level=logging.INFO)])
def test_what_is_ours_or_only_information_is_never_held_back(kept: logging.LogRecord) -> None:
    repetition = Repetition(clock=lambda: 0.0)
    assert all(repetition.filter(kept) for _ in range(3))


def test_the_number_held_back_is_in_the_line(lines: Lines) -> None:
    told = logging.LogRecord("aiokafka", logging.ERROR, __file__, 1, "again", (), None)
    told.__dict__["held_back"] = 7
    logging.getLogger().handle(told)
    assert lines()[0]["held_back"] == 7
