"""A frame without colours: as a page, and as one line for a log."""

from __future__ import annotations

from datetime import UTC, datetime

from cli.picture.drawing import draw
from cli.picture.frame import Frame, LaneRow
from schemas.topics import Lane

_ROWS = 40


def page(frame: Frame, *, width: int, title: str) -> str:
    """Return the whole picture, without spaces at the ends of lines."""
    lines = [line.plain.rstrip() for line in draw(frame, width=width, height=_ROWS, title=title)]
    return "\n".join(lines).rstrip()


def heading() -> str:
    """Return the line above those of `summary`."""
    return "  ".join(
        [f"{'UTC':8}", *(f"{lane.value + ' wait+run 1/min share':>29}" for lane in Lane), "workers  backends  GPUs"]
    )


def summary(frame: Frame) -> str:
    """Return one line: of each lane waiting+running, outcomes of the last minute and its part of the tokens sent; workers, backends
    that are up, GPUs."""
    at = datetime.fromtimestamp(frame.at_ms / 1000, UTC).strftime("%H:%M:%S")
    lanes = [
        f"{f'{lane.waiting}+{lane.in_flight}':>16} {lane.rate_60s_per_minute:>6} {_percent(lane):>5}"
        for lane in frame.lanes
    ]
    up = f"{sum(backend.is_up for backend in frame.backends)}/{len(frame.backends)}"
    return "  ".join([at, *lanes, f"{len(frame.workers):>7}  {up:>8}  {len(frame.gpus):>4}"])


def _percent(lane: LaneRow) -> str:
    return "–" if lane.share_ratio is None else f"{lane.share_ratio:.0%}"
