"""Replay: the request that a dead letter becomes, or why it becomes none."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import MAX_REQUEST_BYTES, decode_request
from schemas.headers import Headers
from schemas.ids import home, is_task_id
from schemas.topics import Lane
from streams.deadlines import deadline_ms
from streams.replay import DeadLetter, NotReplayable, Replayed, replayed

MARKS = [("triage.task_id", b"ward7-1"), ("triage.lane", b"high"), ("triage.source", b"triage.requests.high/3/9")]
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
HOUR_MS = 3_600_000

names = st.text(min_size=1, max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | names
)
parts = st.lists(st.dictionaries(names, scalars, max_size=3), max_size=3)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={"content": names | parts | st.none(), "name": names},
)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 4096),
        "temperature": st.floats(0, 2),
        "stop": st.lists(names, max_size=2),
        "response_format": st.dictionaries(names, scalars, max_size=2),
        "custom": scalars,
    },
)
requests = st.fixed_dictionaries(
    {"messages": st.lists(messages, min_size=1, max_size=4)},
    optional={
        "task_id": st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True),
        "tenant": names,
        "model": names | st.none(),
        "agent_type": names,
        "parameters": parameters | st.none(),
        "created_at_ms": st.integers(0, 1 << 50),
        "batch_id": names,
        "cache": st.fixed_dictionaries({"mode": st.sampled_from(["use", "refresh", "bypass"])}),
        "metadata": st.dictionaries(names, names, max_size=5) | st.none(),
        "unknown": scalars,
    },
)


def letter(body: object, *headers: tuple[str, bytes], key: bytes | None = b"k", marks: Headers = MARKS) -> DeadLetter:
    """Return a dead letter whose request had `body` and `headers`."""
    value = body if isinstance(body, bytes | None) else orjson.dumps(body)
    return DeadLetter(3, 17, 1_000, key, value, [*headers, *marks])


def body_of(request: Replayed) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(request.value)
    return found


@given(requests, st.sampled_from(Lane), st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True), st.data())
def test_any_valid_request_stays_what_it_was_under_a_new_id(
    body: dict[str, Any], lane: Lane, task_id: str, data: st.DataObject
) -> None:
    partition, offset = data.draw(st.integers(0, 511)), data.draw(st.integers(0, 10**15))
    marks = [("triage.task_id", task_id.encode()), ("triage.lane", lane.value.encode())]
    dead = DeadLetter(partition, offset, 0, b"k", orjson.dumps(body), marks)
    made = replayed(dead)
    before, after = decode_request(dead.value), decode_request(made.value)
    changed = {"task_id": made.task_id, "metadata": {**(before.metadata or {}), "replay_of": task_id}}
    assert before.model_copy(update=changed) == after
    assert {**orjson.loads(dead.value or b""), **changed} == body_of(made)
    assert (lane, partition, b"k") == (made.lane, made.partition, made.key)
    assert f"{task_id[:96]}:replay.{partition}.{offset}" == made.task_id
    assert is_task_id(made.task_id)
    assert partition == home(made.task_id, 512)
    assert made == replayed(dead)


def test_a_replay_can_be_replayed_and_names_the_one_before() -> None:
    first = replayed(letter({**HELLO, "task_id": "ward7-1", "metadata": {"bed": "3"}}))
    marks = [("triage.task_id", first.task_id.encode()), ("triage.lane", b"high")]
    second = replayed(letter(first.value, marks=marks))
    assert "ward7-1:replay.3.17:replay.3.17" == second.task_id
    assert {"bed": "3", "replay_of": "ward7-1:replay.3.17"} == body_of(second)["metadata"]


def test_headers_of_ours_go_and_the_producers_stay_in_their_order() -> None:
    mixed = [("traceparent", b"00-1"), ("triage.batch", b"b;0;2"), ("x", b"\xff"), ("x", b"")]
    ours = [*MARKS, ("__dlq.errors.topic", b"t"), ("triage.error.type", b"internal")]
    assert [("traceparent", b"00-1"), ("x", b"\xff"), ("x", b"")] == replayed(letter(HELLO, *mixed, marks=ours)).headers


def test_what_the_worker_wrote_counts_not_what_a_producer_put_before_it() -> None:
    made = replayed(
        letter(HELLO, ("triage.task_id", b"forged"), ("triage.lane", b"critical"), ("triage.value_bytes", b"9"))
    )
    assert ("ward7-1:replay.3.17", Lane.HIGH) == (made.task_id, made.lane)


def test_a_record_without_a_key_gets_none() -> None:
    assert replayed(letter(HELLO, key=None)).key is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"created_at_ms": 5, "deadline_at_ms": 5 + HOUR_MS}, {"created_at_ms": 5, "deadline_at_ms": 5 + HOUR_MS}),
        ({"deadline_at_ms": HOUR_MS}, {}),
        ({"created_at_ms": None, "deadline_at_ms": HOUR_MS}, {"created_at_ms": None}),
        ({"created_at_ms": 5}, {"created_at_ms": 5}),
    ],
)
def test_a_deadline_counts_from_the_new_record_or_is_dropped(given: dict[str, Any], kept: dict[str, Any]) -> None:
    made = replayed(letter({**HELLO, **given}))
    body = body_of(made)
    assert kept == {name: body[name] for name in ("created_at_ms", "deadline_at_ms") if name in body}
    wanted_ms = HOUR_MS if "deadline_at_ms" in kept else 71 * HOUR_MS
    assert 1_000 + wanted_ms == deadline_ms(decode_request(made.value), 1_000)


@pytest.mark.parametrize(
    ("dead", "why"),
    [
        (letter(b"{"), "the value is not JSON in UTF-8"),
        (letter(b""), "the value is empty"),
        (letter(None), "the value is empty"),
        (
            letter(b"\x00\x00\x00\x00\x07abc"),
            "the value begins with a Schema Registry prefix (schema id 7); send plain JSON",
        ),
        (letter({"messages": []}), "messages: List should have at least 1 item after validation, not 0"),
        (letter({**HELLO, "schema_version": 2}), "schema_version 2 is not one this version reads (1)"),
        (letter(b"x" * (MAX_REQUEST_BYTES + 1)), "the value has 1048577 bytes; at most 1048576 are taken"),
        (
            letter(b"", marks=[*MARKS, ("triage.value_bytes", b"3000000")]),
            "the request of 3000000 bytes was too large to be kept; it was at triage.requests.high/3/9",
        ),
        (
            letter({**HELLO, "created_at_ms": 0, "deadline_at_ms": 72 * HOUR_MS}),
            "as a new task it would be refused: deadline_at_ms: lies more than 71 h ahead",
        ),
        (
            letter({**HELLO, "metadata": {str(number): "" for number in range(64)}}),
            "as a new task it would be refused: metadata: Dictionary should have at most 64 items after validation, not more",
        ),
        (letter(HELLO, marks=MARKS[1:]), "it does not say whose request it was: no worker of Triage wrote it"),
        (letter(HELLO, marks=MARKS[:1]), "it does not say whose request it was: no worker of Triage wrote it"),
        (
            letter(HELLO, marks=[("triage.task_id", b"with space"), MARKS[1]]),
            "it does not say whose request it was: no worker of Triage wrote it",
        ),
    ],
)
def test_what_cannot_run_again_is_refused_with_the_reason(dead: DeadLetter, why: str) -> None:
    with pytest.raises(NotReplayable) as refused:
        replayed(dead)
    assert why == str(refused.value)


def test_a_request_that_grows_over_the_limit_is_refused() -> None:
    empty = orjson.dumps({"messages": [{"role": "user", "content": ""}]})
    text = "x" * (MAX_REQUEST_BYTES - len(empty))
    dead = letter({"messages": [{"role": "user", "content": text}]})
    assert MAX_REQUEST_BYTES == dead.kept_bytes
    with pytest.raises(NotReplayable, match=r"^as a new task it would be refused: the value has \d+ bytes"):
        replayed(dead)


def test_a_refusal_never_repeats_the_request() -> None:
    with pytest.raises(NotReplayable) as refused:
        replayed(letter({"messages": [{"role": "secret", "content": "secret"}], "tenant": ""}))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "marks", "size"),
    [
        (b"12345", [], 5),
        (b"12345", [("triage.value_bytes", b"9")], 5),
        (b"", [("triage.value_bytes", b"9")], 9),
        (None, [("triage.value_bytes", b"9")], 9),
        (None, [("triage.value_bytes", b"-9")], 0),
        (None, [("triage.value_bytes", b"9" * 5000)], 0),
        (None, [], 0),
    ],
)
def test_the_size_is_the_requests_whether_its_bytes_were_kept_or_not(
    value: bytes | None, marks: Headers, size: int
) -> None:
    assert size == letter(value, marks=marks).request_bytes
