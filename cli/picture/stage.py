"""The demo on a terminal: its picture, and keys that kill parts of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

from cli.picture.drawing import Cell
from cli.picture.feed import Feed, open_feed
from cli.picture.kills import Kill
from cli.picture.screen import Source
from streams.settings import Settings
from wire.clock import monotonic_s

if TYPE_CHECKING:
    from cli.demo import Load
    from cli.embedded.stack import DevStack

Show: TypeAlias = Callable[[Source], Awaitable[None]]
"""Puts a source on a screen, and returns when that has ended."""

_WATCH_S = 0.2


class Stage:
    """Shows a running demo. Everything is called from the main thread, which also looks after the stack's processes."""

    def __init__(self, stack: DevStack, load: Load) -> None:
        self._stack, self._load = stack, load
        self._feed: Feed | None = None
        self._following: asyncio.Task[None] | None = None
        self._watched_s = 0.0
        self._interrupted = threading.Event()
        self.has_left = False
        """The user has left before the end."""

    def note(self, text: str) -> bool:
        """Show a line of the stack's; return False when there is no picture to show it in."""
        if self._feed is None:
            return False
        self._feed.picture.note(text.partition(" (log:")[0], self._feed.now_ms())
        return True

    def run(self, show: Show) -> None:
        """Show it until the load is over, the user leaves, or a signal comes."""
        with self._noticing_signals():
            asyncio.run(self._run(show))

    async def _run(self, show: Show) -> None:
        settings = Settings.model_validate(tomllib.loads(self._stack.config.read_text()))
        async with open_feed(settings, client_id="triage-demo") as feed:
            self._feed = feed
            self._following = asyncio.create_task(feed.run())
            try:
                await show(self.source())
                if self._following.done():
                    self._following.result()
            finally:
                self._load.tally.run_again = feed.picture.run_again
                self._feed = None
                self._following.cancel()
                await asyncio.gather(self._following, return_exceptions=True)
        self.has_left = True

    def source(self) -> Source:
        assert self._feed is not None
        keys: dict[str, tuple[str, Callable[[], None]]] = {"p": ("pause", self._load.pause)}
        for key, name in (("k", "worker-1"), ("b", "backend-1")):
            if name in self._stack.children:
                keys[key] = (f"kill {name}", partial(self.kill, name))
        return Source(
            title=self._title,
            frame=self._feed.frame,
            notes=self._notes,
            tick=self._tick,
            keys=keys,
            interrupt=lambda: signal.raise_signal(signal.SIGINT),
        )

    def kill(self, name: str) -> None:
        """End a process as a crash would, and remember what it held."""
        child, feed = self._stack.children[name], self._feed
        if feed is None:
            return
        if not (child.is_alive and child.is_ready.is_set()):
            self.note(f"{name} is not up yet")
            return
        running = sum(lane.in_flight for lane in feed.frame().lanes)
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        tally, again = self._load.tally, feed.picture.run_again
        kill = Kill(name, child.pid, feed.now_ms(), frozenset(tally.questions), running, again)
        tally.kills.append(kill)
        self.note(kill.begun())

    def _tick(self) -> bool:
        """Look after the processes and the kills; return whether the picture is to end."""
        now_s = monotonic_s()
        if now_s - self._watched_s >= _WATCH_S:
            self._watched_s = now_s
            self._stack.watch()
            self._follow_kills()
        is_blind = self._following is not None and self._following.done()
        return is_blind or self._interrupted.is_set() or self._load.is_over.is_set()

    def _follow_kills(self) -> None:
        feed, tally = self._feed, self._load.tally
        if feed is None:
            return
        for kill in tally.kills:
            child = self._stack.children[kill.name]
            if kill.back_ms is None and child.pid != kill.pid and child.is_ready.is_set():
                kill.back_ms = feed.now_ms()
                self.note(kill.back())
            if kill.back_ms is not None and kill.settle(tally.questions.keys(), feed.now_ms()):
                self.note(kill.settled(feed.picture.run_again))

    def _title(self) -> str:
        left_s, waiting = self._load.left_s, self._load.tally.open
        if left_s <= 0:
            return f"triage demo  waiting for the last {waiting} answers"
        return f"triage demo  {left_s:.0f} s left{'  paused' if self._load.is_paused else ''}"

    def _notes(self) -> list[Cell]:
        answers = self._load.tally.answers
        notes: list[Cell] = [f"{lane.value}: {question} → {answer}" for lane, question, answer in answers]
        return notes if self._feed is None else [*notes, *self._feed.notes()]

    @contextmanager
    def _noticing_signals(self) -> Iterator[None]:
        """Have SIGINT and SIGTERM end the picture too, besides what they do already."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def on_signal(number: int, frame: FrameType | None) -> None:
            self._interrupted.set()
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        for number in before:
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
