"""The routes keep what their description says, for whatever a caller may send: generated calls, each with every check there is."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import orjson
import pytest
import uvicorn
from hypothesis import HealthCheck, settings

from gateway import describe
from gateway.app import new_app
from gateway.server import _Protocol, listen
from schemas.result import Outcome
from tests.gateway.fakes import NOW_MS, FakeGateway, make_result

if os.environ.get("CI") != "true":
    pytest.importorskip("schemathesis", reason="it is not installed")
import schemathesis
from schemathesis.config import SchemathesisConfig

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=700)
_MOST_EPOCH_MS = 1 << 53


class Served:
    """A gateway over logs that are lists, with a real HTTP server in a thread of its own; counts the calls."""

    def __init__(self) -> None:
        self.cases = 0
        self._started: Future[tuple[FakeGateway, uvicorn.Server]] = Future()
        self._listening = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Served:
        self._thread.start()
        self.gateway, self._server = self._started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def stored(self) -> int:
        """How many records there are in the logs."""
        return sum(map(len, list(self.gateway.fake.records.values())))

    async def _run(self) -> None:
        async with FakeGateway() as gateway:
            gateway.fake.put_request(task_id="queued")
            for outcome in Outcome:
                gateway.fake.put_result(make_result(outcome.value, outcome))
            gateway.fake.feed()
            gateway.waiters.close()  # nobody waits here: results and streams end at once
            config = uvicorn.Config(new_app(gateway), http=_Protocol, lifespan="off", log_config=None)
            server = uvicorn.Server(config)
            self._started.set_result((gateway, server))
            await server.serve(sockets=[self._listening])


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as running:
        yield running


_CONFIG: dict[str, Any] = {
    "generation": {"allow-x00": False},
    # That one of two parameters is to be named no schema can say.
    "operations": [
        {
            "include-path": "/v1/async/events",
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 404, 410, 422]}},
        }
    ],
}
SCHEMA = schemathesis.openapi.from_dict(orjson.loads(describe.openapi()), config=SchemathesisConfig.from_dict(_CONFIG))
_numbers = itertools.count()


def whole(value: Any) -> Any:
    """Write whole numbers without a fraction: to JSON Schema `1.0` is an integer, to us it is none."""
    if isinstance(value, dict):
        return {name: whole(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return list(map(whole, value))
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value


def fit(case: Any) -> None:
    """Mend what no schema can say: a key stands for one body, and a deadline lies in the time of this gateway."""
    case.body = whole(case.body)
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[!-~]{1,240}", key):
        case.headers["Idempotency-Key"] = f"{key}{next(_numbers)}"
    due_ms = case.body.get("deadline_at_ms") if isinstance(case.body, dict) else None
    if type(due_ms) is int and 0 <= due_ms <= _MOST_EPOCH_MS:
        created_ms = case.body.get("created_at_ms")
        began_ms = created_ms if type(created_ms) is int and created_ms >= 0 else NOW_MS
        case.body["deadline_at_ms"] = began_ms + 30_000


def check(case: Any, served: Served) -> None:
    fit(case)
    stored = served.stored
    response = case.call_and_validate(base_url=served.url)
    served.cases += 1
    if response.status_code >= 400:
        assert stored == served.stored, "a refused call was stored"


@pytest.mark.faults
@SCHEMA.parametrize()
@QUICK
def test_every_route_keeps_its_description(case: Any, served: Served) -> None:
    check(case, served)


@pytest.mark.faults
@pytest.mark.timeout(1_800)
@SCHEMA.parametrize()
@LONG
def test_every_route_keeps_its_description_for_long(case: Any, served: Served, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--fault-seconds") is None:
        pytest.skip("`make test-faults` sends thousands")
    check(case, served)
