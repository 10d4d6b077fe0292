"""The runs of a scenario side by side, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_COLUMNS = ("offered", "served", "late", "left", "wait p50", "p95", "p99", "total p99", "share", "due")
_NONE = "-"


def as_text(report: Mapping[str, Any]) -> str:
    """Return the report of `triage bench --simulate` as tables: each lane under every policy, then the tenants that share a lane."""
    runs = report["runs"]
    took = f"{runs[0]['simulated_s']:g} s of virtual time, seed {report['seed']}"
    if report["workers"] > 1:
        took += f", {report['workers']} workers"
    rows = [
        f"{report['title'] or report['scenario']} ({took})",
        "",
        *_lanes(runs),
        *_tenants(runs),
        "",
        *_backends(runs),
    ]
    for run in runs:
        told = f"{run['policy']}: {run['lost']} lost, {run['ended_twice']} ended twice"
        rows.append(
            f"{told}; stopped at {run['simulated_s']:g} s." if run["simulated_s"] < report["seconds"] else f"{told}."
        )
    return "\n".join(rows)


def _lanes(runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield _line("lane", "policy", _COLUMNS)
    for lane in runs[0]["lanes"]:
        for run in runs:
            if lane in run["lanes"]:
                yield _line(lane, run["policy"], _cells(run["lanes"][lane]))


def _tenants(runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for lane, tenants in runs[0]["tenants"].items():
        yield ""
        yield _line(f"{lane}, by tenant", "policy", _COLUMNS[:-2])
        for tenant in tenants:
            for run in runs:
                row = run["tenants"].get(lane, {}).get(tenant)
                if row is not None:
                    yield _line(f"  {tenant}", run["policy"], _cells(row)[:-2])


def _backends(runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for run in runs:
        told = [
            f"{name} {row['busy_ratio']:.0%} busy" + (f", {row['swaps']} swaps" if row["swaps"] else "")
            for name, row in run["backends"].items()
        ]
        yield f"{run['policy']}: {'; '.join(told)}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    counts = [str(row[name]) for name in ("offered", "served", "late", "unfinished")]
    waits = [_time(row["wait_s"][name]) for name in ("p50", "p95", "p99")]
    shares = [_NONE if row.get(name) is None else f"{row[name]:.1%}" for name in ("share", "due_share")]
    return [*counts, *waits, _time(row["total_s"]["p99"]), *shares]


def _line(first: str, second: str, cells: Sequence[str]) -> str:
    return f"{first:18}{second:11}" + "".join(f"{cell:>10}" for cell in cells)


def _time(value_s: float | None) -> str:
    if value_s is None:
        return _NONE
    return f"{value_s * 1000:.0f} ms" if value_s < 1 else f"{value_s:.1f} s"
