"""`python -m cli.picture.shots FOLDER`: pictures of a real demo, for the README."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from cli.demo import DemoStack, Load
from cli.dev import run
from cli.embedded.settings_file import NO_FILE
from cli.embedded.stack import Options
from cli.picture.frame import Frame
from cli.picture.screen import Screen, Source
from cli.picture.stage import Stage
from wire import logs

# File name -> columns and rows.
SIZES = {"demo": (100, 30), "demo-narrow": (80, 24)}
_SECONDS, _KILL_AT_S, _LOOK_S, _LONGEST_S = 120.0, 15.0, 0.1, 60.0
_WAITING = 4
_FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def main(folder: Path) -> None:
    """Run a demo, kill its worker, and write the pictures when all is well again and some tasks wait."""
    logs.configure("console", "error")
    stack = DemoStack(Options(port=0, kafka_port=0, config=NO_FILE), said=print)
    load = Load(stack, _SECONDS, tells=False)
    stage = Stage(stack, load)

    async def shoot(source: Source) -> None:
        screen = Screen(source)
        async with screen.run_test(size=SIZES["demo"]) as pilot:
            await pilot.pause(_KILL_AT_S)
            await pilot.press("k")
            await wait_for(pilot, lambda: all(kill.settled_ms for kill in load.tally.kills))
            await wait_for(pilot, lambda: is_telling(source.frame()))
            for name, (width, height) in SIZES.items():
                await pilot.resize_terminal(width, height)
                screen.redraw()
                await pilot.pause()
                (folder / f"{name}.svg").write_text(own_fonts(screen.export_screenshot(title="triage demo")))

    def ready(_: dict[str, Any]) -> None:
        load.start()
        stage.run(shoot)

    folder.mkdir(parents=True, exist_ok=True)
    run(stack, ready, until=lambda: True, before_end=load.end)


def is_telling(frame: Frame) -> bool:
    """Whether some tasks wait, and one of the newest batches is of more than one task."""
    return sum(lane.waiting for lane in frame.lanes) >= _WAITING and any(batch.size > 1 for batch in frame.batches[:4])


async def wait_for(pilot: Pilot[None], is_so: Callable[[], bool]) -> None:
    """Wait until it is so. Raises: TimeoutError."""
    async with asyncio.timeout(_LONGEST_S):
        while not is_so():
            await pilot.pause(_LOOK_S)


def own_fonts(svg: str) -> str:
    """Return the picture in the reader's own fonts: it loads nothing from another host."""
    bare = re.sub(r"\s*@font-face \{[^}]*\}|\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r"font-family: [^;]+;", f"font-family: {_FONT};", bare)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
