"""What is forgotten stays forgotten, for every gateway, and nothing unfinished ever is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.finished import Finished, FinishedFile
from schemas.result import Outcome
from schemas.topics import Lane
from tests.gateway.fakes import NAMES, NOW_MS, FakeGateway, FakeLogs, make_result, make_view
from tests.gateway.test_idempotency import restarted


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as running:
        yield running


async def cleanup(gateway: FakeGateway, older_than_s: object) -> tuple[int, dict[str, Any]]:
    response = await gateway.http.post("/v1/async/cleanup", json={"older_than_s": older_than_s})
    gateway.fake.feed()
    while gateway.view.finished.has_more_to_forget:
        gateway.view.finished.forget_older(0)
    return response.status_code, response.json()


async def codes(gateway: FakeGateway, *task_ids: str) -> list[int]:
    return [(await gateway.http.get(f"/v1/async/result/{task_id}")).status_code for task_id in task_ids]


def ended(gateway: FakeGateway, task_id: str, ago_s: float = 0, **fields: Any) -> None:
    now_ms = gateway.fake.now_ms
    gateway.fake.now_ms -= round(ago_s * 1000)
    gateway.fake.put_result(make_result(task_id, **fields))
    gateway.fake.now_ms = now_ms


async def test_what_ended_long_enough_ago_is_gone_and_the_rest_stays(gateway: FakeGateway) -> None:
    ended(gateway, "old", 61)
    ended(gateway, "just-as-old", 60)
    ended(gateway, "young", 59)
    gateway.fake.put_request(task_id="unfinished")
    assert (200, {"forgotten": 2}) == await cleanup(gateway, 60)
    assert [410, 410, 200, 202] == await codes(gateway, "old", "just-as-old", "young", "unfinished")
    for path in ("status", "cancel"):
        method = "DELETE" if path == "cancel" else "GET"
        response = await gateway.http.request(method, f"/v1/async/{path}/old")
        assert (410, "urn:triage:problem:gone") == (response.status_code, response.json()["type"])
    stats = (await gateway.http.get("/v1/async/stats")).json()
    assert (1, 1) == (stats["completed"], stats["queued"])


async def test_everything_that_has_ended_may_be_forgotten_whatever_the_clocks_say(gateway: FakeGateway) -> None:
    ended(gateway, "by a broker that is ahead", -0.25)
    ended(gateway, "now")
    assert (200, {"forgotten": 2}) == await cleanup(gateway, 0)
    assert (200, {"forgotten": 0}) == await cleanup(gateway, 0)


async def test_every_gateway_forgets_alike_and_after_a_restart(gateway: FakeGateway) -> None:
    ended(gateway, "old", 100)
    ended(gateway, "young", 10)
    await cleanup(gateway, 50)
    restarted(gateway)
    assert [410, 200] == await codes(gateway, "old", "young")
    while gateway.view.finished.has_more_to_forget:
        gateway.view.finished.forget_older(0)
    stats = (await gateway.http.get("/v1/async/stats")).json()
    assert 1 == sum(stats[outcome.value] for outcome in Outcome)


async def test_a_lesser_cleanup_takes_nothing_back(gateway: FakeGateway) -> None:
    ended(gateway, "old", 100)
    ended(gateway, "young", 10)
    assert [(200, {"forgotten": 2}), (200, {"forgotten": 0})] == [await cleanup(gateway, age) for age in (5, 50)]
    restarted(gateway)
    assert [410, 410] == await codes(gateway, "old", "young")


async def test_of_two_cleanups_at_once_the_greater_is_what_the_topic_keeps(gateway: FakeGateway) -> None:
    through_ms = gateway.fake.now_ms - 1_000

    def meanwhile() -> None:
        gateway.fake.put(NAMES.state, 0, b"cleanup/default", orjson.dumps({"through_ms": through_ms}))

    gateway.fake.before_append = meanwhile
    await cleanup(gateway, 50)
    records = gateway.fake.records[NAMES.state, 0]
    assert (b"cleanup/default", through_ms) == (records[-1].key, orjson.loads(records[-1].value or b"")["through_ms"])


async def test_another_tenant_s_tasks_stay(gateway: FakeGateway) -> None:
    ended(gateway, "theirs", 100, tenant="another")
    assert (200, {"forgotten": 0}) == await cleanup(gateway, 0)
    assert not gateway.view.is_forgotten(gateway.view.finished.find("theirs")[0])


async def test_a_late_record_of_a_forgotten_task_changes_nothing(gateway: FakeGateway) -> None:
    ended(gateway, "t", 100)
    await cleanup(gateway, 50)
    ended(gateway, "t", outcome=Outcome.FAILED)
    gateway.fake.put_request(task_id="t")
    assert [410] == await codes(gateway, "t")


async def test_a_batch_leaves_out_what_is_forgotten_and_is_gone_with_the_last(gateway: FakeGateway) -> None:
    body = {"tasks": [{"messages": [{"role": "user", "content": str(number)}]} for number in range(2)]}
    batch = (await gateway.http.post("/v1/async/submit-batch", json=body)).json()
    for task_id in batch["task_ids"]:
        assert 200 == (await gateway.http.delete(f"/v1/async/cancel/{task_id}")).status_code
        gateway.fake.now_ms += 10_000
    path = f"/v1/async/batch-status/{batch['batch_id']}"
    assert {"forgotten": 1} == (await cleanup(gateway, 15))[1]
    found = (await gateway.http.get(path)).json()
    assert (2, 1, 1, 0, [batch["task_ids"][1]]) == (
        found["total"],
        found["forgotten"],
        found["cancelled"],
        found["pending"],
        [row["task_id"] for row in found["tasks"]],
    )
    await cleanup(gateway, 0)
    assert 410 == (await gateway.http.get(path)).status_code
    assert 410 == (await gateway.http.get(f"/v1/async/events?batch_id={batch['batch_id']}")).status_code


@pytest.mark.parametrize("age", [-1, "60", None, True, [], 1e12])
async def test_an_age_that_is_none_is_invalid_and_stores_nothing(gateway: FakeGateway, age: object) -> None:
    code, body = await cleanup(gateway, age)
    assert (422, "/older_than_s") == (code, body["errors"][0]["pointer"])
    assert not gateway.fake.records[NAMES.state, 0]


async def test_a_large_body_is_not_read(gateway: FakeGateway) -> None:
    response = await gateway.http.post("/v1/async/cleanup", json={"older_than_s": 1, "more": "x" * 5_000})
    assert 413 == response.status_code


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"cleanup/t", b"{}"),
        (b"cleanup/t", b"["),
        (b"cleanup/t", b'{"through_ms": null}'),
        (b"cleanup/t", b'{"through_ms": 1e999}'),
        (b"\xff", b"{}"),
        (b"cleanup/t", b"[]"),
    ],
)
def test_state_that_nobody_understands_is_counted_and_passed_over(key: bytes, value: bytes) -> None:
    logs = FakeLogs(make_view())
    logs.put(NAMES.state, 0, key, value)
    logs.put(NAMES.state, 0, b"keys/k-1", b"{}")
    logs.put(NAMES.state, 0, None, None)
    logs.feed()
    assert (1, -1) == (logs.view.not_understood, logs.view.finished.forgotten_ms("t"))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("end"), st.integers(0, 30), st.sampled_from(["a", "b"])),
            st.tuples(st.just("forget"), st.integers(0, 30), st.sampled_from(["a", "b"])),
            st.tuples(st.just("flush"), st.just(0), st.just("")),
            st.tuples(st.just("sweep"), st.integers(1, 7), st.just("")),
        ),
        max_size=30,
    )
)
def test_counted_is_what_is_not_forgotten_in_whatever_order_it_becomes_known(steps: list[tuple[str, int, str]]) -> None:
    found, rows, forgotten = FinishedFile(), dict[str, tuple[str, int]](), {"a": -1, "b": -1}
    for number, (what, value, tenant) in enumerate(steps):
        if what == "end":
            rows[f"t{number}"] = (tenant, value)
            found.add(Finished(f"t{number}", 0, tenant, Outcome.COMPLETED, Lane.LOW, number, value))
            found.consumed(0, number + 1)
        elif what == "forget":
            forgotten[tenant] = max(forgotten[tenant], value)
            found.forget(tenant, value)
        elif what == "flush":
            found.flush()
        else:
            found.forget_older(-1, looked_at=value)
    found.flush()
    found.forget("a", forgotten["a"])
    for _ in range(2):
        found.forget_older(-1, looked_at=1_000)
    expected = sum(at_ms > forgotten[tenant] for tenant, at_ms in rows.values())
    assert expected == sum(found.counts().values())
    assert sum(tenant == "a" for tenant, _ in rows.values()) == sum(found.count_ended("a", -1, NOW_MS))
    found.close()
