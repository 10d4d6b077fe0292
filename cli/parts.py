"""How the parts of a deployment are, from what Kafka shows: decisions over values, and their lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway.fleet import GATEWAY_KEY, LIVE_MS, Fleet

# A record from further ahead comes from a broker whose clock is not this machine's.
_AHEAD_MS = 1_000


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest record of one sender; `at_ms` is broker time, `value` None: it is gone."""

    key: str
    value: bytes | None
    at_ms: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What Kafka shows. `now_ms` is broker time, `topics` what the catalogue has, `differences` where the cluster is not so."""

    now_ms: int
    brokers: int
    topics: int
    differences: Sequence[str]
    workers: Sequence[Heard]
    gpus: Sequence[Heard]


def is_in_doubt(now_ms: int, newest_ms: int | None) -> bool:
    """Whether this machine's clock cannot tell how old records are: somebody writes every three seconds, and none seems recent."""
    return newest_ms is not None and not -_AHEAD_MS <= now_ms - newest_ms <= LIVE_MS


def picture(seen: Seen, *, bootstrap: str, stale_after_s: float, insecure: Sequence[str] | None) -> dict[str, Any]:
    """Return how each part is, in the words of the gateway's health body: healthy when nothing is wrong, else degraded.

    `insecure`: what only `allow_insecure_dev` permits, None when it is off.
    """
    fleet = Fleet(stale_after_s=stale_after_s)
    for each in seen.workers:
        fleet.snapshot(each.key.encode(), each.value, each.at_ms)
    for each in seen.gpus:
        fleet.sample(each.key.encode(), each.value, each.at_ms)
    body: dict[str, Any] = {
        "status": "healthy",
        "reasons": [],
        "kafka": "reachable",
        "bootstrap": bootstrap,
        "brokers": seen.brokers,
        "topics": {"wanted": seen.topics, "differences": list(seen.differences)},
        "workers": fleet.workers(seen.now_ms),
        "backends": [asdict(each) for each in fleet.backends(seen.now_ms)],
        "gpus": [asdict(each) for each in fleet.gpus(seen.now_ms)],
        "gateways": [
            {"id": each.key.removeprefix(GATEWAY_KEY), "age_s": _age_s(each, seen)}
            for each in seen.workers
            if each.key.startswith(GATEWAY_KEY) and each.value is not None
        ],
        "allow_insecure_dev": insecure is not None,
        "insecure": list(insecure or ()),
    }
    body["reasons"] = [f"{name}: {told}" for name, told, is_well in _parts(body) if is_well is False]
    if body["reasons"]:
        body["status"] = "degraded"
    return body


def lines(body: dict[str, Any]) -> list[str]:
    """Return one line per part of a health body, this module's or a gateway's."""
    marks = {True: "ok", False: "wrong", None: "-"}
    return [f"{name:9} {marks[is_well]:6} {told}" for name, told, is_well in _parts(body)]


def _parts(body: dict[str, Any]) -> Iterator[tuple[str, str, bool | None]]:
    """Yield each part's name, its line, and whether it is well; None: it says nothing about health."""
    if "gateway" in body:
        told = "; ".join([f"{body['gateway']} is {body['status']}", *body.get("reasons", ())])
        yield "gateway", told, body["status"] == "healthy"
    yield "kafka", _kafka_line(body), body.get("kafka") == "reachable"
    if "topics" in body:
        yield "topics", *_topics(body["topics"])
    workers = body.get("workers")
    if isinstance(workers, int):
        yield "workers", f"{workers or 'none'} heard of in the last {LIVE_MS // 1000} s", workers > 0
    yield "backends", *_backends_line(body.get("backends") if workers else None)
    yield "gpus", *_gpus_line(body.get("gpus"))
    if "gateways" in body:
        heard = [f"{each['id']} {each['age_s']:.0f} s ago" for each in body["gateways"]]
        yield "gateways", f"heard of: {', '.join(heard) or 'none'}", None
    if body.get("allow_insecure_dev"):
        yield "settings", "; ".join(["allow_insecure_dev is on", *body.get("insecure", ())]), None


def _kafka_line(body: dict[str, Any]) -> str:
    where = f" at {body['bootstrap']}" if "bootstrap" in body else ""
    brokers = body.get("brokers")
    count = "" if brokers is None else f", {brokers} broker{'s' * (brokers != 1)}"
    return f"{body.get('kafka')}{where}{count}"


def _topics(topics: dict[str, Any]) -> tuple[str, bool]:
    found = topics["differences"]
    if not found:
        return f"{topics['wanted']} match the catalogue", True
    told = f"{len(found)} differences from the catalogue" if len(found) > 1 else "a difference from the catalogue"
    return f"{told}, first {found[0]} (`triage topics verify` names all)", False


def _backends_line(rows: list[dict[str, Any]] | None) -> tuple[str, bool | None]:
    if rows is None:
        return "not known: no worker tells", None
    if not rows:
        return "no worker has one", False
    told = "; ".join(_backend_line(row) for row in rows)
    return told, all(row["up"] for row in rows)


def _backend_line(row: dict[str, Any]) -> str:
    state = "up" if row["up"] else "down"
    reason = f" ({row['reason']})" if row.get("reason") else ""
    return f"{row['name']} is {state}{reason}, {row.get('in_flight')} of {row.get('limit')} in flight"


def _gpus_line(rows: list[dict[str, Any]] | None) -> tuple[str, bool | None]:
    if rows is None:
        return "not known", None
    told = "; ".join(_gpu_line(row) for row in rows)
    return told or "none reports: it works without", all(not row["lost"] and not row["stale"] for row in rows)


def _gpu_line(row: dict[str, Any]) -> str:
    age = row.get("age_s")
    state = "lost" if row["lost"] else "stale" if row["stale"] else "seen"
    return f"{row['uuid']} on {row.get('host')} {state}{'' if age is None else f' {age:.1f} s ago'}"


def _age_s(heard: Heard, seen: Seen) -> float:
    return max(seen.now_ms - heard.at_ms, 0) / 1000
