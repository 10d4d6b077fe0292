"""Children that end with us, signals that end us, and ports that stay ours."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Linux hands out outgoing ports from 32768 on: a port there can be lost to a connection while a broker restarts.
_FIRST_PORT, _PORT_COUNT = 20000, 12000
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that has the kernel kill the child when this process ends, however it ends.

    None where the system is not Linux: there a child outlives a parent that is killed with SIGKILL.

    Raises: RuntimeError outside the main thread. The kernel sends the signal when the *thread* that forked ends, so a
    child of a short-lived thread would be killed with it.
    """
    if sys.platform != "linux":
        return None
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a child that dies with its parent must be started from the main thread")
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)

    return ask_kernel


def own_command(*verb: str) -> list[str]:
    """Return the command line of a verb of ours in a process of its own."""
    return [sys.executable, "-P", "-m", "cli", *verb]


class _Signalled(BaseException):
    pass


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """Leave the block, running its `finally` clauses, at the first SIGINT or SIGTERM; later ones change nothing.

    The block is left without an exception. For the main thread.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise _Signalled

    before = {each: signal.signal(each, leave) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Signalled:
        pass
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def is_port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server can listen on `port` now; a port in TIME_WAIT counts as free, as it does for Java."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def free_ports(count: int, *, avoid: tuple[int, ...] = ()) -> list[int]:
    """Return `count` different ports below the ephemeral range on which nobody listens now.

    Nothing reserves them: whoever starts a server there must be ready to find one taken and ask again.

    Raises: RuntimeError when a thousand tries found too few.
    """
    found: list[int] = []
    for _ in range(1000):
        if len(found) == count:
            return found
        port = _FIRST_PORT + secrets.randbelow(_PORT_COUNT)
        if port not in found and port not in avoid and is_port_free(port):
            found.append(port)
    raise RuntimeError(f"found no {count} free ports between {_FIRST_PORT} and {_FIRST_PORT + _PORT_COUNT - 1}")
