"""How a frame looks: lines of text that are never wider than the terminal and never more than it has rows.

Colour says nothing that the text does not say too. A narrow terminal has one column of sections, a wide one two below the lanes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from cli.picture.frame import BackendRow, BatchRow, Frame, GpuRow, LaneRow, Notice, WorkerRow
from cli.picture.marks import bar, blocks, curve, memory, seconds, shortened
from schemas.progress import Gate
from schemas.topics import Lane

WIDE = 110
_GAP = 2
_HEAD, _DIM, _GOOD, _BAD, _WARN = "bold #9fb4d0 on #1b2430", "#7d8794", "#7bc77e", "bold #f0716a", "#e5b454"
_PLAIN = "#d6dbe1"
_LANE_STYLES = {Lane.CRITICAL: "#f0716a", Lane.HIGH: "#e5b454", Lane.NORMAL: "#7bc77e", Lane.LOW: "#6cb2eb"}
_PRESSURE_STYLES = {"LOW": _GOOD, "NORMAL": "#6cb2eb", "HIGH": _WARN, "CRITICAL": _BAD}
_NEWEST_NOTICES = 2
# Blank lines stand between sections when that leaves so many batches.
_LEAST_SPACED = 6
# Rows of a section (its heading not counted) that are kept while others want more.
_LEAST = {"batches": 3, "backends": 1, "workers": 1, "gpus": 1}

WAITS_FOR: dict[str, str] = {
    Gate.TURN: "its turn among lanes",
    Gate.TENANT: "other tenants",
    Gate.ORDER: "earlier ones",
    Gate.BUDGET: "live work",
    Gate.WINDOW: "company",
    Gate.NO_FREE_SLOT: "a free slot",
    Gate.BREAKER: "a backend paused after failures",
    Gate.BACKEND_DOWN: "a backend that is down",
    Gate.NO_BACKEND: "a backend with its model",
    Gate.SHED: "GPU memory",
    Gate.RETRY_DELAY: "its next try",
}

Cell: TypeAlias = str | tuple[str, str]
"""A text, or a text and its style."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `width` characters. A longer text loses its middle.

    `fits`: it is wide enough for its longest text, while there is room; `grows`: it gets what the others leave.
    """

    title: str
    width: int
    right: bool = False
    fits: bool = False
    grows: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and rows beneath it; `empty` is said where there are none."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    empty: str


def draw(frame: Frame, *, width: int, height: int, title: str, notes: Sequence[Cell] = ()) -> list[Text]:
    """Return at most `height` lines of at most `width` characters. `notes` stand at the bottom, the last of them lowest."""
    is_wide = width >= WIDE
    lanes = _section(_lanes(frame, width), width, len(Lane))
    top = [_title(frame, title, width), *lanes, _outcomes(frame, width), *_reasons(frame, width)]
    news = [] if is_wide else frame.notices[-_NEWEST_NOTICES:]
    bottom = [*(_line(_notice(notice), width) for notice in news), *(_line([note], width) for note in notes)]
    room = max(height - len(top) - len(bottom), 0)
    middle = (_two_columns if is_wide else _one_column)(frame, width, room)
    filling = [Text()] * (room - len(middle))
    lines = [*top, *middle, *filling, *bottom][:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")  # of a terminal that is narrower than the columns
    return lines


def _notice(notice: Notice) -> list[Cell]:
    return [(f"{_clock(notice.at_ms)}  ", _DIM), notice.text]


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%H:%M:%S")


def _one_column(frame: Frame, width: int, room: int) -> list[Text]:
    sections = _sections(frame, width)
    least = sum(1 + (_LEAST_SPACED if name == "batches" else max(len(s.rows), 1)) for name, s in sections.items())
    spaces = int(room > least + len(sections))
    rows = _shares(sections, room - len(sections) * (1 + spaces) - spaces)
    lines: list[Text] = []
    for name, section in sections.items():
        lines += [*([Text()] * spaces), *_section(section, width, rows[name])]
    return lines[:room]


def _two_columns(frame: Frame, width: int, room: int) -> list[Text]:
    left_width = (width - _GAP) // 2
    right_width = width - _GAP - left_width
    left = [Text(), *_section(_batches(frame, left_width), left_width, max(room - 2, 0))]
    others = {name: s for name, s in _sections(frame, right_width).items() if name != "batches"}
    rows = _shares(others, room - 2 * len(others))
    right: list[Text] = []
    for name, section in others.items():
        right += [Text(), *_section(section, right_width, rows[name])]
    left_over = room - len(right) - 2
    if left_over > 0 and frame.notices:
        newest_first = list(reversed(frame.notices))[:left_over]
        right += [Text(), _row(["NEWS"], [Column("NEWS", right_width)], [right_width], style=_HEAD)]
        right += [_line(_notice(notice), right_width) for notice in newest_first]
    lines = []
    for number in range(min(max(len(left), len(right)), room)):
        line = left[number] if number < len(left) else Text()
        gap = " " * (left_width + _GAP - line.cell_len)
        lines.append(Text.assemble(line, gap, right[number]) if number < len(right) else line)
    return lines


def _shares(sections: dict[str, Section], room: int) -> dict[str, int]:
    """Return how many rows each section gets: its least first, then one after another what it wants."""
    wants = {name: max(len(section.rows), 1) for name, section in sections.items()}
    got = {name: min(_LEAST[name], want) for name, want in wants.items()}
    for name in sorted(wants, key=lambda name: name == "batches"):
        got[name] += max(min(wants[name] - got[name], room - sum(got.values())), 0)
    return got


def _sections(frame: Frame, width: int) -> dict[str, Section]:
    makers: dict[str, Callable[[Frame, int], Section]] = {
        "batches": _batches,
        "backends": _backends,
        "workers": _workers,
        "gpus": _gpus,
    }
    return {name: make(frame, width) for name, make in makers.items()}


# Sections


def _title(frame: Frame, title: str, width: int) -> Text:
    total = sum(lane.waiting for lane in frame.lanes)
    running = sum(lane.in_flight for lane in frame.lanes)
    parts = [f"{total} waiting", f"{running} in flight"]
    if frame.run_again:
        parts.append(f"{frame.run_again} run again")
    right = "  ".join(parts)
    left = shortened(title, max(width - len(right) - 2, 0))
    return Text(f"{left}{' ' * max(width - len(left) - len(right), 0)}{right}"[:width], style="bold")


def _lanes(frame: Frame, width: int) -> Section:
    # What is left of the width is shared by the waiting tasks' bar and the curve of outcomes.
    fixed = 8 + 6 + 7 + 6 + 7 + 7 + 7 + 7 + 9
    spare = max(width - fixed, 8)
    curve_width = min(spare // 2, 60)
    bar_width = min(spare - curve_width, 60)
    columns = [
        Column("LANE", 8),
        Column("WAIT", 6, right=True),
        Column("", bar_width),
        Column("RUNNING", 7, right=True),
        Column("1/MIN", 6, right=True),
        Column(f"LAST {_span_s(curve_width)} S" if curve_width >= 9 else "", curve_width, right=True),
        Column("SHARE", 7, right=True),
        Column("P50", 7, right=True),
        Column("P95", 7, right=True),
        Column("OLDEST", 7, right=True),
    ]
    most = max([lane.waiting for lane in frame.lanes] + [8])
    return Section(columns, [_lane(lane, most, bar_width, curve_width) for lane in frame.lanes], "")


def _lane(lane: LaneRow, most: int, bar_width: int, curve_width: int) -> list[Cell]:
    style = _LANE_STYLES[lane.lane]
    return [
        (lane.lane.value, style),
        str(lane.waiting),
        (bar(lane.waiting / most, bar_width), style),
        str(lane.in_flight),
        str(lane.rate_60s_per_minute),
        (curve(lane.ended_by_second, curve_width), style),
        _share(lane),
        seconds(lane.p50_s),
        seconds(lane.p95_s),
        seconds(lane.oldest_wait_s if lane.waiting else None),
    ]


def _share(lane: LaneRow) -> str:
    """Return its part of the tokens of the last minute, and its weight's: 52/53%."""
    if lane.share_ratio is None or lane.weight_ratio is None:
        return "–"
    return f"{100 * lane.share_ratio:.0f}/{100 * lane.weight_ratio:.0f}%"


def _span_s(width: int) -> int:
    """Return how many of the 60 seconds a curve of this width shows."""
    return min(max(60 // width, 1) * width, 60)


def _outcomes(frame: Frame, width: int) -> Text:
    counts: Counter[str] = Counter()
    for lane in frame.lanes:
        counts.update(lane.outcomes)
    cells: list[Cell] = [("last minute  ", _DIM), f"{counts['completed']} completed"]
    for outcome, style in (("failed", _BAD), ("expired", _WARN), ("cancelled", _PLAIN)):
        cells += ["  ", (f"{counts[outcome]} {outcome}", style if counts[outcome] else _DIM)]
    return _line(cells, width)


def _reasons(frame: Frame, width: int) -> list[Text]:
    """Return what the lanes wait for, and why the backends of the last minute were chosen."""
    held = [(lane, WAITS_FOR.get(lane.gate, lane.gate)) for lane in frame.lanes if lane.gate and lane.waiting]
    cells: list[Cell] = [("waits for    ", _DIM)]
    if not held:
        cells.append(("nothing", _DIM))
    for number, (lane, gate) in enumerate(held):
        cells += [" · " if number else "", (f"{lane.lane.value} ", _LANE_STYLES[lane.lane]), gate]
    told = " · ".join(f"{reason} {count}" for reason, count in frame.decisions.items())
    chosen: list[Cell] = [("chosen as    ", _DIM), told or ("nothing in the last minute", _DIM)]
    return [_line(cells, width), _line(chosen, width)]


def _batches(frame: Frame, width: int) -> Section:
    columns = [
        Column("BATCH", 14, fits=True),
        Column("LANE", 8),
        Column("TASKS", 8, grows=True),
        Column("BACKEND", 10, fits=True),
        Column("STATE", 11),
        Column("AGE", 6, right=True),
    ]
    return Section(columns, [_batch(batch) for batch in frame.batches], "none in the last minute")


def _batch(batch: BatchRow) -> list[Cell]:
    style = _LANE_STYLES[batch.lane] if batch.lane is not None else _PLAIN
    is_done = batch.ended >= batch.size
    state: Cell = ("done", _DIM) if is_done else ("worker gone", _BAD) if batch.is_orphaned else ("running", _GOOD)
    return [
        (batch.id, _DIM if is_done else _PLAIN),
        (batch.lane.value if batch.lane else "?", style),
        (blocks(batch.size, batch.ended, 16), style),
        batch.backend,
        state,
        seconds(batch.age_s),
    ]


def _backends(frame: Frame, width: int) -> Section:
    columns = [
        Column("BACKEND", 14, fits=True),
        Column("STATE", 22, fits=True),
        Column("IN FLIGHT", 14, grows=True),
        Column("LATENCY", 8, right=True),
    ]
    return Section(columns, [_backend(backend) for backend in frame.backends], "none known: workers name them")


def _backend(backend: BackendRow) -> list[Cell]:
    if backend.draining:
        state: Cell = ("draining", _WARN)
    elif backend.is_up:
        state = ("up", _GOOD)
    else:
        reason = backend.reason or "no reason given"
        some = f" for {backend.workers - backend.up_for}/{backend.workers}" if backend.up_for else ""
        state = (f"DOWN{some}: {reason}", _BAD)
    filled = bar(backend.in_flight / backend.limit, 8) if backend.limit else " " * 8
    return [backend.name, state, f"{filled} {backend.in_flight}/{backend.limit}", seconds(backend.latency_s)]


def _workers(frame: Frame, width: int) -> Section:
    columns = [
        Column("WORKER", 14, fits=True),
        Column("STATE", 10),
        Column("HOST:PID", 12, grows=True),
        Column("WAIT", 6, right=True),
        Column("RUNNING", 7, right=True),
        Column("HEARD", 7, right=True),
    ]
    return Section(
        columns, [_worker(worker) for worker in frame.workers], "none heard of for 5 s; `triage worker` starts one"
    )


def _worker(worker: WorkerRow) -> list[Cell]:
    state: Cell = ("draining", _WARN) if worker.draining else ("serving", _GOOD)
    place = f"{worker.host}:{worker.pid}"
    return [worker.id, state, place, str(worker.waiting), str(worker.in_flight), seconds(worker.age_s)]


def _gpus(frame: Frame, width: int) -> Section:
    bar_width = 8 if width < 76 else 14
    columns = [
        Column("GPU", 14, fits=True),
        Column("MEMORY", bar_width + 14, grows=True),
        Column("USED", 5, right=True),
        Column("TEMP", 5, right=True),
        Column("UTIL", 5, right=True),
        Column("PRESSURE", 10),
    ]
    return Section(
        columns, [_gpu(gpu, bar_width) for gpu in frame.gpus], "no samples; `triage gpu-publisher` sends them"
    )


def _gpu(gpu: GpuRow, bar_width: int) -> list[Cell]:
    ratio = None if gpu.used_bytes is None or not gpu.total_bytes else gpu.used_bytes / gpu.total_bytes
    style = _PRESSURE_STYLES.get(gpu.pressure or "", _DIM)
    if gpu.lost:
        level: Cell = ("LOST", _BAD)
    elif gpu.stale:
        level = (f"stale {gpu.age_s:.0f} s", _WARN)
    else:
        level = (gpu.pressure or "unknown", style)
    return [
        f"{gpu.host}:{gpu.index} {gpu.name}",
        (f"{bar(ratio or 0.0, bar_width)} {memory(gpu.used_bytes, gpu.total_bytes):>13}", style),
        "?" if ratio is None else f"{ratio:.0%}",
        "?" if gpu.temperature_c is None else f"{gpu.temperature_c:.0f}°C",
        "?" if gpu.utilization_ratio is None else f"{gpu.utilization_ratio:.0%}",
        level,
    ]


# Lines


def _section(section: Section, width: int, rows: int) -> list[Text]:
    """Return the heading and as many rows as there is room for; the last says how many are left out."""
    widths = _widths(section, width)
    titles: list[Cell] = [column.title for column in section.columns]
    lines = [_row(titles, section.columns, widths, style=_HEAD)]
    if not section.rows:
        return [*lines, _line([(f"  {section.empty}", _DIM)], width)]
    is_cut = len(section.rows) > rows
    is_told = is_cut and section.columns[0].title != "BATCH"
    shown = section.rows[: max(rows - is_told, 0)]
    lines += [_row(cells, section.columns, widths, style=_PLAIN) for cells in shown]
    if is_told and rows:
        lines.append(_line([(f"  and {len(section.rows) - len(shown)} more", _DIM)], width))
    return lines


def _widths(section: Section, width: int) -> list[int]:
    columns = section.columns
    widths = [column.width for column in columns]
    spare = max(width - sum(widths) - (len(columns) - 1), 0)
    for number, column in reversed(list(enumerate(columns))):  # a state before a name: of that both ends are telling
        if column.fits:
            longest = max((cell_len(_text(row[number])) for row in section.rows), default=0)
            more = min(max(longest - column.width, 0), spare)
            widths[number] += more
            spare -= more
    for number, column in enumerate(columns):
        if column.grows:
            widths[number] += spare
    return widths


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _row(cells: Sequence[Cell], columns: Sequence[Column], widths: Sequence[int], *, style: str) -> Text:
    line = Text(style=style, no_wrap=True)
    for number, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=True)):
        text, own = cell if isinstance(cell, tuple) else (cell, "")
        text = shortened(text, width)
        text = text.rjust(width) if column.right else text.ljust(width)
        line.append(" " if number else "")
        line.append(set_cell_size(text, width), style=own)  # a character may take two cells
    return line


def _line(cells: Sequence[Cell], width: int) -> Text:
    line = Text(style=_PLAIN, no_wrap=True)
    for cell in cells:
        line.append(*((cell,) if isinstance(cell, str) else cell))
    line.truncate(width, overflow="ellipsis")
    return line
