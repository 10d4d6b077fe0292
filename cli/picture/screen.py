"""The picture on a terminal: draws what it is given four times a second, and hands keys to who understands them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Static

from cli.picture.drawing import Cell, draw
from cli.picture.frame import Frame

_DRAW_EVERY_S = 0.25
_TICK_EVERY_S = 0.1
_FOOTER_ROWS = 1
_MOST_NOTES = 3


@dataclass(frozen=True)
class Source:
    """Where a screen has its contents from. `notes` are the lines beneath a frame.

    `keys`: what a key does, and what the footer says of it. `tick` is called ten times a second; when it returns True, the screen ends.
    """

    title: Callable[[], str]
    frame: Callable[[], Frame]
    notes: Callable[[], Sequence[Cell]]
    tick: Callable[[], bool] = lambda: False
    keys: Mapping[str, tuple[str, Callable[[], None]]] = field(default_factory=dict)
    interrupt: Callable[[], None] | None = None
    """What Ctrl-C does before the screen ends; the terminal sends it as a key here, not as a signal."""


class Screen(App[None]):
    """Shows a source until q, Ctrl-C, or the source's own end."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "Screen { background: #0f141a; } #picture { width: 1fr; height: 1fr; } Footer { background: #1b2430; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "quit"),
        Binding("ctrl+c", "interrupt", "interrupt", show=False, priority=True),
        Binding("ctrl+q", "leave", "quit", show=False, priority=True),
    ]

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._picture = Static(id="picture")
        for key, (told, _) in source.keys.items():
            self.bind(key, f"press('{key}')", description=told)

    def compose(self) -> ComposeResult:
        yield self._picture
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.redraw()
        self.set_interval(_DRAW_EVERY_S, self.redraw)
        self.set_interval(_TICK_EVERY_S, self._tick)

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        """Draw what the source has now."""
        width, height = self.size.width, self.size.height - _FOOTER_ROWS
        frame = self._source.frame()
        notes = list(self._source.notes())[-_MOST_NOTES:]
        lines = draw(frame, width=width, height=height, title=self._source.title(), notes=notes)
        self._picture.update(Text("\n").join(lines))

    def action_press(self, key: str) -> None:
        self._source.keys[key][1]()
        self.redraw()

    def action_leave(self) -> None:
        self.exit()

    def action_interrupt(self) -> None:
        if self._source.interrupt is not None:
            self._source.interrupt()
        self.exit()

    def _tick(self) -> None:
        if self._source.tick():
            self.exit()


async def show(source: Source) -> None:
    """Show a source on this terminal until it ends. What is logged meanwhile is dropped: it would stand in the picture."""
    logging.disable(logging.CRITICAL)
    try:
        await Screen(source).run_async()
    finally:
        logging.disable(logging.NOTSET)
