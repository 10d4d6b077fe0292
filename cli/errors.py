"""How a verb fails: one sentence on stderr and an exit code. This is the only table from exceptions to exit codes."""

from __future__ import annotations

from typing import ClassVar

OK, FAILED, USAGE, NOT_REACHABLE, NO_SUCH_TASK, INTERRUPTED = 0, 1, 2, 3, 4, 130


class CommandError(Exception):
    """A verb cannot do what was asked; the message is one sentence that says what to do."""

    exit_code: ClassVar[int] = FAILED


class Failed(CommandError):
    """It was tried and did not work."""


class SettingsError(CommandError):
    """A setting or a flag is wrong."""

    exit_code = USAGE


class Refused(CommandError):
    """The gateway says that what was asked is not what it must be."""

    exit_code = USAGE


class NotReachable(CommandError):
    """Kafka, a gateway or a backend does not answer."""

    exit_code = NOT_REACHABLE


class NoSuchTask(CommandError):
    """Nobody knows the task."""

    exit_code = NO_SUCH_TASK


# What a gateway's status means for who asked. A task past its retention is as unknown as one that never was; a proxy that does not
# reach its gateway says 502 or 504.
_BY_STATUS: dict[int, type[CommandError]] = {
    **dict.fromkeys((400, 413, 415, 422), Refused),
    **dict.fromkeys((404, 410), NoSuchTask),
    **dict.fromkeys((502, 503, 504), NotReachable),
}

# Exceptions of other packages whose message is already a sentence for the user; named, so that nothing is imported.
_FOREIGN = {
    "wire.connection.BrokersUnreachable": NOT_REACHABLE,
    "wire.connection.CredentialsUnusable": USAGE,
    "wire.topics.TopicsRefused": FAILED,
    "wire.safety.UnsafeCluster": FAILED,
    "wire.producing.WriteRefused": FAILED,
    "wire.topics.TopicsDiffer": FAILED,
    "agents.app.WorkerCrashed": FAILED,
    "cli.embedded.errors.EmbeddedError": FAILED,
}


def of_status(status: int, told: str) -> CommandError:
    """Return what a gateway's answer is that is no success."""
    return _BY_STATUS.get(status, Failed)(told)


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the sentence for `error`; an exception that nobody foresaw is a failure."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, CommandError):
        return error.exit_code, str(error)
    for known in (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__):
        if known in _FOREIGN:
            return _FOREIGN[known], str(error)
    return FAILED, f"unexpected {type(error).__name__}: {error} (TRIAGE_DEBUG=1 shows where)"
