"""A campaign from its start to its report."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.embedded.kafka import KafkaCluster
from tests.faults.campaign.backends import Backend
from tests.faults.campaign.load import Load
from tests.faults.campaign.nemesis import Nemesis
from tests.faults.campaign.outcomes import Outcomes
from tests.faults.campaign.report import Report, answered_again, silent_s
from tests.faults.campaign.schedule import LONG, Kind, Planned, plan
from tests.faults.campaign.system import BACKEND_TIMEOUT_S, Replicated, System
from tests.faults.checker import Limits, judge
from tests.faults.history import Recorder, dump_commits, dump_topics, read_history
from tests.support.kafka import FAST_GROUPS
from tests.support.proxy import Proxy
from wire.clock import monotonic_s

PARTITIONS = 6
BACKENDS, SLOTS = 3, 8
_FIRST_S = 90.0
_SAY_EVERY_S = 10.0
_LOOK_S = 0.25
# A task of the clients is due within 300 s at the latest, and a gateway or a worker ends it then.
_DRAIN_S = 330.0
_LAG_EVERY_S = 0.1
# Faults of one family wait for each other, and so may a few at the end.
_TURN_S = 30.0


@dataclass(frozen=True)
class Form:
    """How large a campaign is: seconds of load, sessions, rates. `per_s` is the most; what the machine bears is found out.

    `ok_ratio` of the clients' operations must succeed for the run to count.
    """

    seconds: float
    kinds: Sequence[Kind] = LONG
    per_s: float = 150.0
    workers: int = 2
    gateways: int = 2
    session_s: float = 6.0
    gap_s: tuple[float, float] = (4.0, 9.0)
    longest_s: float = 20.0
    ok_ratio: float = 0.8
    properties: Mapping[str, str] = field(default_factory=lambda: FAST_GROUPS)


async def run(form: Form, seed: int, folder: Path, say: Callable[[str], None]) -> Report:
    """Run a campaign and return its report; the history lies in `folder`/history.

    Raises: TimeoutError when the system does not come up; an ExceptionGroup when what was broken could not be mended.
    """
    history = folder / "history"
    planned = plan(seed, form.seconds, form.kinds, gap_s=form.gap_s, longest_s=form.longest_s)
    say(f"seed {seed}, {len(planned)} faults in {form.seconds:.0f} s:")
    for each in planned:
        say(str(each))
    with (
        KafkaCluster(brokers=3, properties=form.properties, logs=folder / "brokers") as cluster,
        Recorder.of_faults(history) as recorder,
        Recorder(history, "campaign") as own,
    ):
        async with _parts(form, seed, folder, cluster, say) as parts:
            nemesis = Nemesis(cluster, parts.system, parts.backends, parts.proxy, parts.load, recorder, say)
            load_s = await _load(form, parts, nemesis, planned, say)
            is_drained = await _drained(parts, say)
            own.write("finished")
            say("copying the logs")
            await dump_topics(cluster.bootstrap, parts.system.stack.names, history)
            await dump_commits(cluster.bootstrap, parts.system.stack.names, history)
    verdict = judge(history, _limits(parts.lag.most_s, form.ok_ratio))
    kinds, answered_s = answered_again(read_history(history), PARTITIONS)
    return Report(
        verdict,
        seed=seed,
        load_s=load_s,
        kinds=kinds,
        left_out=nemesis.left_out,
        answered_s=answered_s,
        silent_s=silent_s(read_history(history)),
        twice_count=_answered_twice(history, parts.backends),
        ended_alone={each.name: each.ended_alone for each in parts.system.all if each.ended_alone},
        overdue={each.name: each.overdue_count for each in parts.system.all if each.overdue_count},
        late={each.name: each.late_count for each in parts.system.all if each.late_count},
        is_drained=is_drained,
        lag_s=parts.lag.most_s,
    )


def _limits(lag_s: float, ok_ratio: float) -> Limits:
    """Return what a run may do whose event loop, backends and callers included, was once this late."""
    return Limits(late_s=1.0 + lag_s, grace_s=2.5 + lag_s, cancel_s=2.5 + lag_s, ok_ratio=ok_ratio)


class _Lag:
    """How late this loop was at most: the machine is as slow for everybody else."""

    def __init__(self) -> None:
        self.most_s = 0.0

    async def watch(self) -> None:
        while True:
            due_s = monotonic_s() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self.most_s = max(self.most_s, monotonic_s() - due_s)


@dataclass
class _Parts:
    system: System
    backends: Sequence[Backend]
    proxy: Proxy
    outcomes: Outcomes
    load: Load
    lag: _Lag


@asynccontextmanager
async def _parts(
    form: Form, seed: int, folder: Path, cluster: KafkaCluster, say: Callable[[str], None]
) -> AsyncIterator[_Parts]:
    """Start everything, the load excepted, and end it; raises out of the block what a part raised."""
    history, run_id = folder / "history", secrets.token_hex(3)
    # A worker has at most `SLOTS` calls at a backend, and so has one that is frozen or that drains beside its successor.
    limit = SLOTS * (form.workers + 1)
    async with contextlib.AsyncExitStack() as stack:
        backends = [
            await stack.enter_async_context(Backend(f"b{number}", history, limit=limit, seed=seed + number))
            for number in range(1, BACKENDS + 1)
        ]
        proxy = await stack.enter_async_context(Proxy(("127.0.0.1", backends[-1].server.port)))
        urls = [*(each.server.url for each in backends[:-1]), f"http://127.0.0.1:{proxy.port}"]
        deployed = await stack.enter_async_context(
            Replicated(
                cluster.bootstrap,
                folder / "system",
                [("openai", url) for url in urls],
                backend_extra=f"timeout_s = {BACKEND_TIMEOUT_S}",
                partitions=PARTITIONS,
                slots=SLOTS,
                session_s=form.session_s,
            )
        )
        outcomes = Outcomes(cluster.bootstrap, deployed.names, PARTITIONS)
        system = System(deployed, workers=form.workers, gateways=form.gateways, say=say)
        stack.callback(system.close)
        say("starting workers and gateways")
        await system.start()
        load = await stack.enter_async_context(
            Load(
                cluster.bootstrap,
                deployed.names,
                system.urls,
                outcomes,
                history,
                run=run_id,
                seed=seed,
                per_s=form.per_s,
            )
        )
        lag = _Lag()
        for work in (outcomes.follow(), system.watch(), lag.watch()):
            await stack.enter_async_context(_beside(work))
        yield _Parts(system, backends, proxy, outcomes, load, lag)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let something run while the block does."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _load(
    form: Form, parts: _Parts, nemesis: Nemesis, planned: Sequence[Planned], say: Callable[[str], None]
) -> float:
    """Let the clients ask and the nemesis break for the form's time; return how long it took."""
    began_s = monotonic_s()
    async with _beside(parts.load.run()):
        await _all_partitions_answer(parts.outcomes, began_s)
        async with _beside(_told(parts, began_s, say)):
            await nemesis.run(planned, form.seconds + _TURN_S)
            await asyncio.sleep(began_s + form.seconds - monotonic_s())
    return monotonic_s() - began_s


async def _all_partitions_answer(outcomes: Outcomes, since_s: float) -> None:
    async with asyncio.timeout(_FIRST_S):
        while min(outcomes.last_s.values()) < since_s:  # noqa: ASYNC110 - it is polled anyway
            await asyncio.sleep(_LOOK_S)


async def _told(parts: _Parts, began_s: float, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(_SAY_EVERY_S)
        outcomes, load = parts.outcomes, parts.load
        say(
            f"{monotonic_s() - began_s:7.1f} s  {outcomes.count:,} outcomes, {len(outcomes.waiting)} open, "
            f"{load.open_calls} calls, {load.per_s:.0f}/s"
        )


async def _drained(parts: _Parts, say: Callable[[str], None]) -> bool:
    """Wait until every client has its answer and every request is committed; return whether that came in time."""
    say("nothing is broken any more; waiting for what is open")
    try:
        async with asyncio.timeout(_DRAIN_S), _beside(_told(parts, monotonic_s(), say)):
            await parts.load.finished()
            while parts.outcomes.waiting or await parts.outcomes.lag() != 0:  # noqa: ASYNC110 - the brokers are asked
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        say(f"open after {_DRAIN_S:g} s: {sorted(parts.outcomes.waiting)[:5]}, lag {await parts.outcomes.lag()}")
        return False
    return True


def _answered_twice(history: Path, backends: Sequence[Backend]) -> int:
    """Return how often a backend answered a task that one had answered before; tasks that share a prompt are left out."""
    asked: defaultdict[str, set[str]] = defaultdict(set)
    for line in read_history(history):
        if line["what"] == "request" and "nonce" in line:
            asked[line["nonce"]].add(line["task"])
    answered: Counter[str] = Counter()
    for backend in backends:
        answered += backend.answered
    return sum(answered[nonce] - 1 for nonce, tasks in asked.items() if len(tasks) == 1 and answered[nonce] > 1)
