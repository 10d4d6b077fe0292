"""A scenario's runs as a picture: how long each lane waited under each policy, and what share of the tokens it got."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_FONT = "ui-sans-serif, system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif"
# Light on dark and dark on light alike: the picture has a ground of its own.
_GROUND, _INK, _FAINT, _GRID = "#ffffff", "#24292f", "#6e7781", "#d8dee4"
_COLOURS = {"critical": "#cf222e", "high": "#bc4c00", "normal": "#0969da", "low": "#6e7781"}
_LEFT, _PLOT, _TOLD, _SHARES, _GAP, _RIGHT = 150, 500, 110, 230, 20, 24
_TOP, _ROW, _BETWEEN = 74, 18, 14
_SHORTEST_S = 0.001
# Of fewer served than this share the picture says how many were: the others still wait, and longer.
_MOST = 0.95


def drawn(report: Mapping[str, Any]) -> str:
    """Return an SVG picture that loads nothing from elsewhere."""
    runs = report["runs"]
    lanes = list(runs[0]["lanes"])
    groups = list(_groups(runs))
    longest_s = max(_waits(runs), default=1.0)
    decades = range(math.floor(math.log10(_SHORTEST_S)), max(math.ceil(math.log10(max(longest_s, 0.01))), -1) + 1)
    bottom = _TOP + len(groups) * (len(runs) * _ROW + _BETWEEN)
    width, height = _LEFT + _PLOT + _GAP + _SHARES + _RIGHT, bottom + (46 if len(lanes) > 1 else 30)
    marks = [
        _text(16, 26, report["title"] or report["scenario"], size=15, weight="600"),
        _text(16, 46, "wait before the first start: median (tick) and 99th percentile (end of the bar)", colour=_FAINT),
        *_axis(decades, bottom),
        *_bars(groups, decades),
        *(_shares(runs, lanes, bottom) if len(lanes) > 1 else ()),
    ]
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{_FONT}">'
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="{_GROUND}"/>'
    return "\n".join([head, ground, *marks, "</svg>"]) + "\n"


def _waits(runs: Sequence[Mapping[str, Any]]) -> Iterable[float]:
    return (row["wait_s"]["p99"] for run in runs for row in run["lanes"].values() if row["wait_s"]["p99"] is not None)


def _x(value_s: float, decades: range) -> float:
    at = (math.log10(max(value_s, _SHORTEST_S)) - decades[0]) / (decades[-1] - decades[0])
    return _LEFT + (_PLOT - _TOLD) * min(at, 1.0)


def _axis(decades: range, bottom: float) -> Iterable[str]:
    for decade in decades:
        x, value_s = _x(10.0**decade, decades), 10.0**decade
        yield f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom - 6}" stroke="{_GRID}"/>'
        told = f"{value_s:g} s" if value_s >= 1 else f"{value_s * 1000:g} ms"
        yield _text(x, bottom + 10, told, colour=_FAINT, anchor="middle")


def _groups(runs: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str, list[tuple[str, Mapping[str, Any]]]]]:
    """Yield name, lane, and each policy's figures: of a lane, or of each tenant where several share it."""
    for lane in runs[0]["lanes"]:
        tenants = runs[0]["tenants"].get(lane)
        if tenants is None:
            yield lane, lane, [(run["policy"], run["lanes"][lane]) for run in runs]
        for tenant in tenants or ():
            yield tenant, lane, [(run["policy"], run["tenants"][lane][tenant]) for run in runs]


def _bars(groups: Iterable[tuple[str, str, list[tuple[str, Mapping[str, Any]]]]], decades: range) -> Iterable[str]:
    y = float(_TOP)
    for name, lane, rows in groups:
        yield _text(16, y + 11, name, weight="600", colour=_COLOURS[lane])
        for policy, row in rows:
            yield _text(_LEFT - 8, y + 11, policy, colour=_FAINT, anchor="end")
            if row["wait_s"]["p99"] is None:
                yield _text(_LEFT + 4, y + 11, "none was served", colour=_FAINT)
            else:
                yield from _bar(lane, row, y, decades)
            y += _ROW
        y += _BETWEEN


def _bar(lane: str, row: Mapping[str, Any], y: float, decades: range) -> Iterable[str]:
    median, end = _x(row["wait_s"]["p50"], decades), _x(row["wait_s"]["p99"], decades)
    colour = _COLOURS[lane]
    yield f'<rect x="{_LEFT}" y="{y + 2:.1f}" width="{max(end - _LEFT, 2):.1f}" height="11" rx="2" fill="{colour}" opacity="0.55"/>'
    yield f'<line x1="{median:.1f}" y1="{y:.1f}" x2="{median:.1f}" y2="{y + 15:.1f}" stroke="{colour}" stroke-width="2.5"/>'
    told = _told(row["wait_s"]["p99"])
    if row["late"]:
        told += f", {row['late']} late"
    elif row["served"] < _MOST * row["offered"]:
        told += f", {row['served'] / row['offered']:.0%} served"
    yield _text(end + 5, y + 11, told, size=10)


def _shares(runs: Sequence[Mapping[str, Any]], lanes: Sequence[str], bottom: float) -> Iterable[str]:
    """Draw a column for each policy, and what is due, as parts of 100 %."""
    columns = [(run["policy"], [run["lanes"].get(lane, {}).get("share") for lane in lanes]) for run in runs]
    columns.append(("due", [runs[-1]["lanes"][lane]["due_share"] for lane in lanes]))
    columns = [(name, shares) for name, shares in columns if any(shares)]
    if not columns:
        return
    left, top = _LEFT + _PLOT + _GAP, _TOP - 8
    yield _text(left, 46, "share of the tokens, and what is due", colour=_FAINT)
    step = _SHARES / len(columns)
    for number, (name, shares) in enumerate(columns):
        x, y, height = left + number * step, float(top), bottom - 6 - top
        for lane, share in zip(lanes, shares, strict=True):
            tall = height * (share or 0)
            yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{step - 8:.1f}" height="{tall:.1f}" fill="{_COLOURS[lane]}" opacity="0.75"/>'
            if tall > 14:
                yield _text(
                    x + (step - 8) / 2, y + tall / 2 + 4, f"{share:.0%}", size=10, anchor="middle", colour="#ffffff"
                )
            y += tall
        yield _text(x + (step - 8) / 2, bottom + 10 + 13 * (number % 2), name, size=10, anchor="middle", colour=_FAINT)


def _told(value_s: float) -> str:
    return f"{value_s * 1000:.0f} ms" if value_s < 1 else f"{value_s:.1f} s"


def _text(
    x: float, y: float, told: str, *, size: int = 11, weight: str = "400", colour: str = _INK, anchor: str = "start"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(told)}</text>"
