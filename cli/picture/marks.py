"""The small parts of a picture: bars, blocks, curves, and texts cut to a width."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_GIB = 1 << 30


def shortened(text: str, width: int) -> str:
    """Return `text`, its middle left out where it is longer than `width`: both ends of a name tell things apart."""
    if len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    head = width // 2
    tail = width - 1 - head
    return f"{text[:head]}…{text[len(text) - tail :]}"


def bar(ratio: float, width: int) -> str:
    """Return a bar of `width` characters, filled from 0 to 1 in eighths; what is more than nothing is seen."""
    eighths = round(min(max(ratio, 0.0), 1.0) * width * 8)
    if ratio > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    return (_EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def curve(counts: Sequence[int], width: int) -> str:
    """Return the newest part of the counts as a curve of `width` characters, each the sum of as many as fit; zero is a blank."""
    step = max(len(counts) // width, 1) if width else 1
    used = counts[-step * width :] if width else []
    sums = [sum(used[start : start + step]) for start in range(0, len(used), step)]
    top = max(sums, default=0)
    return "".join(_LEVELS[max(-(-each * len(_LEVELS) // top) - 1, 0)] if each else " " for each in sums).rjust(width)


def blocks(size: int, ended: int, width: int) -> str:
    """Return a batch as blocks, full ones for what has ended; a number instead where there is no room."""
    text = "■" * ended + "□" * (size - ended)
    return text if len(text) <= width else f"{ended}/{size}"


def seconds(value: float | None) -> str:
    """Return a duration in at most six characters: 0.21 s, 12.3 s, 123 s, 12 min; – where it is not known."""
    if value is None:
        return "–"
    for limit, form in ((9.995, ".2f"), (99.95, ".1f"), (999.5, ".0f")):
        if value < limit:
            return f"{value:{form}} s"
    return f"{value / 60:.0f} min" if value < 5_970 else f"{value / 3600:.0f} h"


def memory(used: int | None, total: int | None) -> str:
    """Return `41.2/80 GiB`, ? for what is not known."""
    parts = ["?" if each is None else f"{each / _GIB:.{digits}f}" for each, digits in ((used, 1), (total, 0))]
    return f"{'/'.join(parts)} GiB"
