"""From a submit body to a record, and what is wrong with a body."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ids import new_task_id
from gateway.problems import Kind, Problem
from gateway.submission import Submission, drafted, parsed
from schemas.codec import decode_request
from schemas.ids import home
from schemas.topics import Lane
from streams.deadlines import deadline_ms
from tests.gateway.fakes import NOW_MS

HOUR_MS = 3_600_000
MESSAGES = [{"role": "user", "content": "hello"}]


def made(caller: str = "ward7", **fields: Any) -> Submission:
    draft = drafted({"messages": MESSAGES, **fields}, caller)
    task_id = draft.body.task_id or new_task_id(draft.fingerprint, NOW_MS, b"r" * 10)
    return draft.submission(task_id, 12, now_ms=NOW_MS)


def test_the_record_is_a_request_of_the_caller_s_tenant_at_home_on_its_partition() -> None:
    found = made(tenant="theirs")
    request = decode_request(found.value)
    assert (found.task_id, "ward7", NOW_MS) == (request.task_id, request.tenant, request.created_at_ms)
    assert (home(found.task_id, 12), found.task_id[:4].encode()) == (found.partition, found.key)


def test_a_caller_s_own_id_is_the_record_s_id_and_key() -> None:
    found = made(task_id="ward7:018f")
    assert ("ward7:018f", "ward7:018f") == (found.task_id, decode_request(found.value).task_id)
    assert (home("ward7:018f", 12), b"ward7") == (found.partition, found.key)


def test_all_fields_of_a_request_travel_and_others_do_not() -> None:
    fields: dict[str, Any] = {
        "agent_type": "symptom-check",
        "model": "auto",
        "parameters": {"max_tokens": 5, "temperature": 1, "mirostat": 2, "tools": None},
        "cache": {"mode": "refresh", "ttl_s": 9},
        "batch_id": "b",
        "budget": "batch",
        "stream": False,
        "metadata": {"a": "b"},
        "schema_version": 1,
    }
    written = orjson.loads(made(**fields, priority="low", unknown=1, timeout_s=None).value)
    for name in ("task_id", "tenant", "created_at_ms", "messages"):
        written.pop(name)
    assert fields == written


@pytest.mark.parametrize(
    ("given_", "expected"),
    [("CRITICAL", Lane.CRITICAL), ("High", Lane.HIGH), (None, Lane.NORMAL), ("low", Lane.LOW)],
)
def test_priority_in_any_case(given_: str | None, expected: Lane) -> None:
    assert expected is made(priority=given_).lane


@pytest.mark.parametrize(
    ("fields", "left_ms"),
    [
        ({}, 71 * HOUR_MS),
        ({"timeout_s": 30}, 30_000),
        ({"timeout_s": 0.0001}, 1),
        ({"deadline_at_ms": NOW_MS + 5_000}, 5_000),
        ({"created_at_ms": 100, "deadline_at_ms": 5_100}, 5_000),
        ({"created_at_ms": 100}, 71 * HOUR_MS),
    ],
)
def test_the_deadline_counts_from_acceptance(fields: dict[str, Any], left_ms: int) -> None:
    assert NOW_MS + left_ms == deadline_ms(decode_request(made(**fields).value), NOW_MS)


def test_the_same_question_gets_the_same_prefix_whatever_its_lane_and_time() -> None:
    same = {made(priority=lane, timeout_s=5, metadata={"a": lane}).task_id[:4] for lane in Lane}
    assert 1 == len(same)
    assert made(caller="another").task_id[:4] not in same


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": "secret"}, "/messages"),
    ({"messages": []}, "/messages"),
    ({"messages": None}, "/messages"),
    ({"messages": [{"role": "secret", "content": "x"}]}, "/messages/0/role"),
    ({"messages": [{"role": "user", "content": 5}]}, "/messages/0/content"),
    ({"priority": "secret"}, "/priority"),
    ({"priority": 3}, "/priority"),
    ({"priority": ["high"]}, "/priority"),
    ({"parameters": {"max_tokens": 0}}, "/parameters/max_tokens"),
    ({"parameters": {"n": 2}}, "/parameters/n"),
    ({"metadata": {"secret": 5}}, "/metadata"),
    ({"cache": {"mode": "secret"}}, "/cache/mode"),
    ({"cache": {"mode": "use", "ttl_s": 4000}}, "/cache/ttl_s"),
    ({"timeout_s": 0}, "/timeout_s"),
    ({"timeout_s": 72 * 3600}, "/timeout_s"),
    ({"timeout_s": "secret"}, "/timeout_s"),
    ({"timeout_s": 5, "deadline_at_ms": NOW_MS + 5}, "/timeout_s"),
    ({"deadline_at_ms": "secret"}, "/deadline_at_ms"),
    ({"deadline_at_ms": NOW_MS}, "/deadline_at_ms"),
    ({"deadline_at_ms": NOW_MS + 72 * HOUR_MS}, "/deadline_at_ms"),
    ({"created_at_ms": 0, "deadline_at_ms": 72 * HOUR_MS}, "/deadline_at_ms"),
    ({"schema_version": 2}, "/schema_version"),
    ({"webhook_url": "https://secret"}, "/webhook_url"),
    ({"agent_type": ""}, "/agent_type"),
    ({"task_id": "has secret spaces"}, "/task_id"),
    ({"task_id": "x" * 129}, "/task_id"),
    ({"task_id": ""}, "/task_id"),
    ({"task_id": 5}, "/task_id"),
    ({"task_id": "critical.3.17"}, "/task_id"),
    ({"task_id": "theirs:replay.3.17"}, "/task_id"),
    ({"tenant": 5}, "/tenant"),
    ({"tenant": ""}, "/tenant"),
    ({"budget": "secret"}, "/budget"),
]


@pytest.mark.parametrize(("fields", "pointer"), WRONG)
def test_a_wrong_field_is_named_and_not_repeated(fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Problem) as caught:
        made(**fields)
    problem = caught.value
    assert Kind.INVALID is problem.kind
    assert pointer in {at for at, _ in problem.errors}
    assert "secret" not in f"{problem.detail} {problem.errors}"


def test_a_body_that_nests_too_deeply_is_invalid() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = {"a": deep}
    with pytest.raises(Problem) as caught:
        made(parameters={"response_format": deep})
    assert Kind.INVALID is caught.value.kind


def test_a_record_of_a_mebibyte_is_taken_and_a_larger_one_is_not() -> None:
    room = (1 << 20) - len(made(messages=[{"role": "user", "content": ""}]).value)
    assert 1 << 20 == len(made(messages=[{"role": "user", "content": "x" * room}]).value)
    with pytest.raises(Problem) as caught:
        made(messages=[{"role": "user", "content": "x" * (room + 1)}])
    assert Kind.TOO_LARGE is caught.value.kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", Kind.UNPARSABLE),
        (b"{", Kind.UNPARSABLE),
        (b"\xff\xfe", Kind.UNPARSABLE),
        (b"[" * 5000, Kind.UNPARSABLE),
        (b"[" * 100_000, Kind.UNPARSABLE),
        (b'{"a": 1, "a": 1}', Kind.UNPARSABLE),
        (b'{"a": [{"b": {"c": 1, "c": 2}}]}', Kind.UNPARSABLE),
        (b'{"a": 1, "\\u0061": 1}', Kind.UNPARSABLE),
        (b'{"a": NaN}', Kind.UNPARSABLE),
        (b'{"a": "\\ud800"}', Kind.UNPARSABLE),
        (b'{"a": 1e999}', Kind.UNPARSABLE),
        (b"[]", Kind.INVALID),
        (b"null", Kind.INVALID),
    ],
)
def test_a_body_that_is_no_object(body: bytes, kind: Kind) -> None:
    with pytest.raises(Problem) as caught:
        parsed(body)
    assert kind is caught.value.kind


def test_a_name_that_comes_twice_is_no_fault_where_it_names_two_things() -> None:
    assert {"a": {"a": "a"}, "b": [{"a": 1}, {"a": 2}]} == parsed(b'{"a": {"a": "a"}, "b": [{"a": 1}, {"a": 2}]}')


ASKED: dict[str, Any] = {"task_id": "t", "metadata": {"a": "b"}, "priority": "high"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"priority": "HIGH"}, True),
        ({"priority": "low"}, False),
        ({"metadata": {"a": "c"}}, False),
        ({"model": "m"}, False),
        ({"timeout_s": 30}, False),
        ({"unknown": 1}, True),
    ],
)
def test_a_stored_request_asks_the_same_when_every_field_and_its_lane_are_the_same(
    fields: dict[str, Any], expected: bool
) -> None:
    stored = made(**ASKED)
    assert expected is drafted({"messages": MESSAGES, **ASKED, **fields}, "ward7").is_of(stored.lane, stored.value)
    assert not drafted({"messages": MESSAGES, **ASKED, **fields}, "another").is_of(stored.lane, stored.value)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"timeout_s": 30}, {"timeout_s": 30}, True),
        ({"timeout_s": 30}, {"timeout_s": 31}, False),
        ({"timeout_s": 30}, {}, False),
        ({"deadline_at_ms": NOW_MS + 9_000}, {"deadline_at_ms": NOW_MS + 9_000}, True),
        ({"deadline_at_ms": NOW_MS + 9_000}, {"deadline_at_ms": NOW_MS + 9_001}, False),
        ({"created_at_ms": 5, "deadline_at_ms": 105}, {"created_at_ms": 5, "deadline_at_ms": 105}, True),
        ({"created_at_ms": 5, "deadline_at_ms": 105}, {"created_at_ms": 6, "deadline_at_ms": 106}, True),
        ({"created_at_ms": 5, "deadline_at_ms": 105}, {"created_at_ms": 5, "deadline_at_ms": 106}, False),
    ],
)
def test_a_stored_request_asks_the_same_when_the_caller_gave_it_the_same_time(
    before: dict[str, Any], after: dict[str, Any], expected: bool
) -> None:
    stored = made(**ASKED, **before)
    assert expected is drafted({"messages": MESSAGES, **ASKED, **after}, "ward7").is_of(stored.lane, stored.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["messages", "priority", "timeout_s", "deadline_at_ms", "created_at_ms", "parameters", "cache", "metadata", "model"]
)


@given(st.dictionaries(FIELDS, JSON, max_size=5))
def test_whatever_the_body_the_record_is_readable_or_there_is_a_problem(fields: dict[str, Any]) -> None:
    try:
        found = made(**fields)
    except Problem:
        return
    assert found.task_id == decode_request(found.value).task_id
