"""Log lines: ours through structlog, the libraries' through the standard library, both rendered in one place.

A line never carries a prompt or an answer: fields are scalars, names that stand for content or secrets are withheld,
and the message of a validation error, which quotes its input, is left out.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO, TypeAlias

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from wire.clock import monotonic_s

Logger: TypeAlias = structlog.stdlib.BoundLogger

# Libraries that repeat one sentence hundreds of times a second while no broker answers.
_REPETITIVE = ("aiokafka", "faust", "mode")
_SAY_EVERY_S = 10.0
# What these say at level info belongs to debugging.
_TALKATIVE = ("aiokafka", "faust", "mode", "httpx", "httpcore", "asyncio")

_WITHHELD = "[withheld]"
_CONTENT = frozenset(
    [
        *("messages", "message", "content", "prompt", "output", "answer", "delta", "body", "value", "text", "request"),
        *("password", "token", "api_key", "authorization"),
    ]
)
_LONGEST = 300
_FIRST_FIELDS = ("timestamp", "level", "event", "logger")


def get_logger(name: str) -> Logger:
    """Return the logger `name`; before `configure` it follows the standard library's defaults."""
    found: Logger = structlog.stdlib.get_logger(name)
    return found


def configure(
    format: Literal["json", "console"] = "json",  # noqa: A002 - the setting's own name
    level: Literal["debug", "info", "warning", "error"] = "info",
    *,
    stream: TextIO | None = None,
) -> None:
    """Send every log line of this process to `stream` (None: stderr). May be called again."""
    stream = stream or sys.stderr
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(old)
    root.addHandler(_handler(stream, format))
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


@dataclass
class Repetition(logging.Filter):
    """Let one template of a repetitive library through per `every_s`, and tell how many were held back since.

    Only warnings and errors are counted; what else these libraries say is theirs to say.
    """

    clock: Callable[[], float] = monotonic_s
    every_s: float = _SAY_EVERY_S
    names: tuple[str, ...] = _REPETITIVE
    _said: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.name.partition(".")[0] not in self.names:
            return True
        template, now_s = (record.name, str(record.msg)), self.clock()
        said_s, held_back = self._said.get(template, (-self.every_s, 0))
        if now_s - said_s < self.every_s:
            self._said[template] = (said_s, held_back + 1)
            return False
        if held_back:
            record.held_back = held_back
        self._said[template] = (now_s, 0)
        return True


class _Handler(logging.StreamHandler[TextIO]):
    """The one handler of ours."""


def _handler(stream: TextIO, format: str) -> _Handler:  # noqa: A002 - as above
    handler = _Handler(stream)
    handler.addFilter(Repetition())
    renderer: structlog.typing.Processor
    renderer = _json if format == "json" else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=[*_common_processors(), structlog.stdlib.ExtraAdder(allow=["held_back"])],
        )
    )
    return handler


def _common_processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        _timestamp,
        _exception,
        _scalars,
    ]


_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)


def _timestamp(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """Add the time, RFC 3339 UTC with milliseconds."""
    stamped = _stamp(logger, method, line)
    stamped["timestamp"] = f"{stamped['timestamp'][:23]}Z"
    return stamped


def _exception(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """Replace `exc_info` by the text of the exception and its causes."""
    given = line.pop("exc_info", None)
    if isinstance(given, tuple):
        given = given[1]
    elif given and not isinstance(given, BaseException):
        given = sys.exc_info()[1]
    if isinstance(given, BaseException):
        line["exception"] = exception_text(given)
    return line


def exception_text(error: BaseException) -> str:
    """Return the traceback of `error` and its causes, innermost last, without any input that a message quotes."""
    parts = [_one(each, each.__traceback__) for each in _chain(error)]
    return "\n\nThe direct cause or context of the following:\n\n".join(reversed(parts))


def _one(error: BaseException, frames: TracebackType | None) -> str:
    told = "" if type(error).__name__ == "ValidationError" else f": {str(error)[:_LONGEST]}"
    return "".join(traceback.format_tb(frames)) + f"{type(error).__module__}.{type(error).__qualname__}{told}"


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _scalars(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """Keep fields that are scalars or short lists of them, and withhold what may be content."""
    for name, value in line.items():
        if name.startswith("_") or name in _FIRST_FIELDS or name == "exception":
            continue
        line[name] = _WITHHELD if name in _CONTENT else _scalar(value)
    return line


def _scalar(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Enum):
        return _scalar(value.value)
    if isinstance(value, str | Path):
        return str(value)[:_LONGEST]
    if isinstance(value, BaseException):
        return _one(value, None)
    if isinstance(value, list | tuple | set | frozenset):
        return [_scalar(each) for each in list(value)[:32]]
    return f"<{type(value).__name__}>"


def _json(logger: WrappedLogger, method: str, line: EventDict) -> str:
    first = {name: line.pop(name) for name in _FIRST_FIELDS if name in line}
    return orjson.dumps({**first, **line}, default=str).decode()
