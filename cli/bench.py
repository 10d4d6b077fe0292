"""`triage bench`: load against a running system, and what came of every task; or a scenario in virtual time."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import FAILED, INTERRUPTED, OK, SettingsError
from cli.simulation.policy import Policy
from schemas.topics import Lane
from streams.quantiles import quantile

if TYPE_CHECKING:
    import httpx

# Of ten tasks, so many are of each lane: mostly ordinary work, and some that cannot wait.
_MIX = {Lane.CRITICAL: 1, Lane.HIGH: 2, Lane.NORMAL: 4, Lane.LOW: 3}
_WAIT_S, _PATIENCE_S = 30, 600.0
_TELL_EVERY = 20

app = typer.Typer(no_args_is_help=True, help="Load against a running system, or in virtual time.")


@app.callback(invoke_without_command=True)
def _bench(
    context: typer.Context,
    simulate: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A scenario's TOML file, or the name of one that comes with Triage."),
    ] = None,
    policy: Annotated[
        list[Policy] | None, typer.Option(help="Of --simulate, in place of the scenario's; repeat it to compare.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Of --simulate, in place of the scenario's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of --simulate, in place of the scenario's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Of --simulate, in place of the scenario's.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="SVG", help="Of --simulate: draw the runs side by side.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of --simulate: one JSON object.")] = False,
) -> None:
    """Load against a running system; with --simulate a scenario in virtual time, on the worker's own Dispatcher.

    \b
    Example:
      triage bench --simulate overload --policy fifo --policy weights
    """
    if context.invoked_subcommand is not None:
        return
    if simulate is None:
        raise SettingsError("Say what to do: `triage bench load`, or `triage bench --simulate FILE`.")
    _simulate(simulate, {"policies": policy, "seconds": seconds, "seed": seed, "workers": workers}, picture, as_json)


def _simulate(given: str, changed: Mapping[str, object], picture: Path | None, as_json: bool) -> None:
    from cli.simulation import drawing, report, running, scenario
    from wire.clock import monotonic_s

    found, interrupted = running.run(given, scenario.load(given, changed), monotonic_s)
    if picture is not None:
        picture.write_text(drawing.drawn(found))
    typer.echo(json.dumps(found) if as_json else report.as_text(found))
    raise typer.Exit(INTERRUPTED if interrupted else FAILED if any(run["lost"] for run in found["runs"]) else OK)


@dataclass
class Tally:
    """What was sent and what came of it. Times in seconds, as the caller saw them; `queue_ms` as the results say."""

    sent: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    wait_s: dict[Lane, list[float]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    queue_ms: dict[Lane, list[float]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    refused: int = 0

    def end(self, lane: Lane, result: Mapping[str, Any], wait_s: float) -> None:
        """Take note of an outcome."""
        self.outcomes[result["outcome"]] = self.outcomes.get(result["outcome"], 0) + 1
        self.wait_s[lane].append(wait_s)
        queue_ms = (result.get("timing") or {}).get("queue_ms")
        if queue_ms is not None and not result.get("cached"):
            self.queue_ms[lane].append(queue_ms)

    @property
    def lost(self) -> int:
        """Tasks that were acknowledged and have no outcome."""
        return self.sent - sum(self.outcomes.values())

    @property
    def is_urgent_first(self) -> bool:
        """Whether no lane's median wait in the queue is longer than that of a lower one, by more than a tenth of a second."""
        medians = [_quantile(self.queue_ms[lane], 0.5) for lane in Lane if self.queue_ms[lane]]
        return all(higher <= lower + 100 for higher, lower in pairwise(medians))


@app.command()
def load(
    concurrency: Annotated[int, typer.Option(min=1, max=2000, help="Tasks under way at once.")] = 8,
    tasks: Annotated[int | None, typer.Option(min=1, help="Tasks in all; absent: five times the concurrency.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 8,
    gateway: Annotated[str | None, typer.Option(metavar="URL", help="Absent: the settings' gateway.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: Annotated[Path | None, typer.Option(help="Settings file.")] = None,
) -> None:
    """Send mixed tasks through a gateway, wait for each, and say whether one was lost.

    \b
    Exit code 0 when every task that was acknowledged has its outcome, 1 otherwise.
    Example:
      triage bench load --concurrency 100 --gateway http://127.0.0.1:8400
    """
    import asyncio

    from cli.configuration import load as settings_of
    from cli.errors import NotReachable

    place = settings_of(config).settings.gateway
    url = gateway or f"http://{place.host}:{place.port}"
    count = tasks or 5 * concurrency
    try:
        report = asyncio.run(_run(url, count, concurrency, max_tokens))
    except OSError as error:
        raise NotReachable(f"The gateway at {url} does not answer ({error}): --gateway names another.") from error
    typer.echo(json.dumps(report) if as_json else _as_text(report))
    raise typer.Exit(1 if report["lost"] else 0)


async def _run(url: str, count: int, concurrency: int, max_tokens: int) -> dict[str, Any]:
    """Keep `concurrency` tasks under way until `count` were sent and each has its outcome; return the report."""
    import asyncio

    import httpx

    from wire.clock import monotonic_s

    tally, rng = Tally(), random.Random(0)  # noqa: S311 - a mix, not a secret
    lanes = iter(rng.choices(list(_MIX), list(_MIX.values()), k=count))
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=_WAIT_S + 10, trust_env=False) as client:
        try:
            before = (await client.get("/v1/async/stats")).json()
            began_s = monotonic_s()

            async def one_after_another() -> None:
                for lane in lanes:
                    await _one(client, lane, max_tokens, tally)
                    done = sum(tally.outcomes.values())
                    if done % _TELL_EVERY == 0:
                        print(f"\r{done} of {count} ended", end="", file=sys.stderr, flush=True)

            await asyncio.gather(*(one_after_another() for _ in range(min(concurrency, count))))
            took_s = monotonic_s() - began_s
            after = (await client.get("/v1/async/stats")).json()
        except httpx.TransportError as error:
            raise OSError(str(error) or type(error).__name__) from error
    print(file=sys.stderr)
    return _report(tally, took_s, before, after)


async def _one(client: httpx.AsyncClient, lane: Lane, max_tokens: int, tally: Tally) -> None:
    from wire.clock import monotonic_s

    number = tally.sent + tally.refused
    body = {
        "priority": lane.value,
        "messages": [{"role": "user", "content": f"Say the number {number}."}],
        "parameters": {"max_tokens": max_tokens},
        "cache": {"mode": "bypass"},
    }
    began_s = monotonic_s()
    submitted = await client.post("/v1/async/submit", json=body)
    if submitted.status_code != 202:
        tally.refused += 1
        return
    tally.sent += 1
    link = submitted.json()["links"]["result"]
    while monotonic_s() - began_s < _PATIENCE_S:
        answer = await client.get(link, params={"wait": _WAIT_S})
        if answer.status_code == 200:
            tally.end(lane, answer.json(), monotonic_s() - began_s)
            return


def _report(tally: Tally, took_s: float, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    counted = {
        name: after[name] - before[name] for name in ("completed", "failed", "cancelled", "expired") if name in before
    }
    return {
        "sent": tally.sent,
        "refused": tally.refused,
        "outcomes": tally.outcomes,
        "lost": tally.lost,
        "took_s": round(took_s, 2),
        "tasks_per_s": round(sum(tally.outcomes.values()) / took_s, 2),
        "urgent_first": tally.is_urgent_first,
        "counted_by_stats": counted,
        "lanes": {
            lane.value: {
                "tasks": len(tally.wait_s[lane]),
                "p50_s": _quantile(tally.wait_s[lane], 0.5),
                "p95_s": _quantile(tally.wait_s[lane], 0.95),
                "p99_s": _quantile(tally.wait_s[lane], 0.99),
                "queue_p50_ms": _quantile(tally.queue_ms[lane], 0.5),
            }
            for lane in Lane
            if tally.wait_s[lane]
        },
    }


def _as_text(report: Mapping[str, Any]) -> str:
    rows = [f"{'lane':10}{'tasks':>8}{'p50':>10}{'p95':>10}{'p99':>10}{'in queue':>12}"]
    for lane, row in report["lanes"].items():
        times = "".join(f"{row[name]:>8.2f} s" for name in ("p50_s", "p95_s", "p99_s"))
        rows.append(f"{lane:10}{row['tasks']:>8}{times}{row['queue_p50_ms']:>9.0f} ms")
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(report["outcomes"].items()))
    refused = f", {report['refused']} refused" if report["refused"] else ""
    rows += [
        "",
        f"{report['sent']} tasks in {report['took_s']:.1f} s ({report['tasks_per_s']:.1f}/s): {outcomes or 'none ended'}{refused}.",
        f"{report['lost']} lost. The urgent waited less: {'yes' if report['urgent_first'] else 'no'}.",
        f"The gateway's statistics counted {sum(report['counted_by_stats'].values())} of them, and whatever else ran.",
    ]
    return "\n".join(rows)


def _quantile(values: Sequence[float], share: float) -> float:
    return round(quantile(values, share) or 0.0, 3)
