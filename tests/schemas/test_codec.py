"""Bytes to records: what is taken, what is refused and in which words, and that nothing of the payload is repeated."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.cache import CacheEntry
from schemas.codec import MAX_DEPTH, MAX_REQUEST_BYTES, DecodeError, decode, decode_request, encode, fingerprint
from schemas.gpu import GPUMetrics
from schemas.progress import Chunk, Started, WorkerSnapshot
from schemas.request import CachePolicy, InferenceTask
from schemas.result import ErrorType, Outcome, Result, Source
from schemas.topics import Lane
from streams.task import effective_parameters, fingerprint_of

MESSAGES = [{"role": "user", "content": "hello"}]
FULL: dict[str, Any] = {
    "schema_version": 1,
    "task_id": "ward7-018f",
    "tenant": "ward7",
    "agent_type": "symptom-check",
    "model": "auto",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "tool", "tool_call_id": "call-1", "content": None},
    ],
    "parameters": {
        "max_tokens": 128,
        "temperature": 0.2,
        "top_p": 1.0,
        "stop": [],
        "seed": 7,
        "response_format": None,
        "tools": None,
        "tool_choice": None,
        "mirostat": 2,
    },
    "created_at_ms": 1795420000000,
    "deadline_at_ms": 1795420030000,
    "cache": {"mode": "use", "ttl_s": 300},
    "batch_id": None,
    "budget": "live",
    "stream": False,
    "metadata": {"any": "string"},
}


def raw(**changed: Any) -> bytes:
    """Return a request's bytes."""
    return json.dumps({"messages": MESSAGES, **changed}).encode()


def refused(value: bytes | None) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode_request(value)
    return caught.value


# Requests that are taken


def test_only_messages_are_required() -> None:
    request = decode_request(raw())
    assert {"messages": MESSAGES, "schema_version": 1} == request.model_dump(exclude_none=True)


def test_a_request_with_every_field_is_kept_as_it_came() -> None:
    request = decode_request(orjson.dumps(FULL))
    assert FULL == request.model_dump()
    assert CachePolicy(mode="use", ttl_s=300) == request.cache


def test_null_is_absent() -> None:
    nulls = dict.fromkeys(set(InferenceTask.model_fields) - {"messages"})
    assert decode_request(raw()) == decode_request(raw(**nulls))


@pytest.mark.parametrize("priority", ["critical", 7, None, {"a": 1}])
def test_a_priority_is_ignored_since_the_topic_is_the_priority(priority: object) -> None:
    assert decode_request(raw()) == decode_request(raw(priority=priority))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text().filter(lambda name: name not in InferenceTask.model_fields), json_values, max_size=4))
def test_unknown_top_level_fields_are_ignored(unknown: dict[str, Any]) -> None:
    assert decode_request(orjson.dumps(FULL)) == decode_request(orjson.dumps({**unknown, **FULL}))


def test_of_a_key_that_stands_twice_the_last_counts() -> None:
    assert "b" == decode_request(b'{"task_id": "a", "messages": [{"role": "user"}], "task_id": "b"}').task_id


def test_fields_of_openai_that_are_not_known_here_travel_on() -> None:
    request = decode_request(raw(messages=[{"role": "assistant", "refusal": "no"}], parameters={"mirostat": 2}))
    assert [{"role": "assistant", "refusal": "no"}] == request.messages
    assert {"mirostat": 2} == request.parameters


# Requests that are refused

REFUSED = [
    (None, "the value is empty"),
    (b"", "the value is empty"),
    (b"\xff\xfe{}", "the value is not JSON in UTF-8"),
    (b'{"a": NaN}', "the value is not JSON in UTF-8"),
    (b'{"a": 1e999}', "the value has a number that is too large"),
    (b"[" * 2000 + b"]" * 2000, "the value is nested more than 128 levels deep"),
    (b"\xef\xbb\xbf{}", "the value is not JSON in UTF-8"),
    (b"{'messages': []}", "the value is not JSON in UTF-8"),
    (b'{"messages": ', "the value is not JSON in UTF-8"),
    (b'{"messages": []} x', "the value is not JSON in UTF-8"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "the value is not JSON in UTF-8"),
    (b'{"messages": [{"role": "user"}], "parameters": {"temperature": NaN}}', "the value is not JSON in UTF-8"),
    (
        b'{"messages": [{"role": "user"}], "parameters": {"temperature": 1e999}}',
        "the value has a number that is too large",
    ),
    (b"[" * 100_000, "the value is nested more than 128 levels deep"),
    (b"[" * 100_000 + b"]" * 100_000, "the value is nested more than 128 levels deep"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "the value is nested more than 128 levels deep"),
    (b"\x00\x00\x00\x00\x2a\x02payload", "Schema Registry prefix (schema id 42)"),
    (b"\x00\xff\xff\xff\xff", "Schema Registry prefix (schema id 4294967295)"),
    (b"\x00\x00\x00", "the value is not JSON in UTF-8"),
    (b"[]", "the value is not a JSON object"),
    (b"null", "the value is not a JSON object"),
    (b'"text"', "the value is not a JSON object"),
    (b"{}", "messages: Field required"),
    (raw(messages=[]), "messages: List should have at least 1 item"),
    (raw(messages="hello"), "messages: Input should be a valid list"),
    (raw(messages=["hello"]), "messages.0: "),
    (raw(messages=[{}]), "messages.0.role: Field required"),
    (raw(messages=[{"role": "boss"}]), "messages.0.role: Input should be 'system'"),
    (raw(messages=[{"role": "user", "content": 5}]), "messages.0.content."),
    (raw(messages=MESSAGES * 4097), "messages: List should have at most 4096 items"),
    (raw(task_id=""), "task_id: String should match pattern"),
    (raw(task_id="with space"), "task_id: String should match pattern"),
    (raw(task_id="x" * 129), "task_id: String should match pattern"),
    (raw(task_id="trailing\n"), "task_id: String should match pattern"),
    (raw(task_id=7), "task_id: Input should be a valid string"),
    (raw(tenant=""), "tenant: String should have at least 1 character"),
    (raw(tenant=["a"]), "tenant: Input should be a valid string"),
    (raw(agent_type=1), "agent_type: Input should be a valid string"),
    (raw(model=""), "model: String should have at least 1 character"),
    (raw(model="x" * 257), "model: String should have at most 256 characters"),
    (raw(parameters=[]), "parameters: Input should be a valid dictionary"),
    (raw(parameters={"max_tokens": 0}), "parameters.max_tokens: Input should be greater than or equal to 1"),
    (raw(parameters={"max_tokens": "128"}), "parameters.max_tokens: Input should be a valid integer"),
    (raw(parameters={"max_tokens": 1.5}), "parameters.max_tokens: Input should be a valid integer"),
    (raw(parameters={"temperature": 2.1}), "parameters.temperature: Input should be less than or equal to 2"),
    (raw(parameters={"top_p": -0.1}), "parameters.top_p: Input should be greater than or equal to 0"),
    (raw(parameters={"n": 2}), "parameters.n: Input should be 1"),
    (raw(parameters={"tools": {}}), "parameters.tools: Input should be a valid list"),
    (raw(created_at_ms="now"), "created_at_ms: Input should be a valid integer"),
    (raw(created_at_ms=-1), "created_at_ms: Input should be greater than or equal to 0"),
    (raw(deadline_at_ms=2**53 + 1), "deadline_at_ms: Input should be less than or equal to"),
    (raw(deadline_at_ms=10**400), "the value has a number that is too large"),
    (raw(cache={"mode": "maybe"}), "cache.mode: Input should be 'use', 'refresh' or 'bypass'"),
    (raw(cache={"ttl_s": 3601}), "cache.ttl_s: Input should be less than or equal to 3600"),
    (raw(cache="use"), "cache: Input should be"),
    (raw(batch_id="x" * 129), "batch_id: String should have at most 128 characters"),
    (raw(budget="cheap"), "budget: Input should be 'live' or 'batch'"),
    (raw(stream="yes"), "stream: Input should be a valid boolean"),
    (raw(metadata={"a": 1}), "metadata.*: Input should be a valid string"),
    (raw(metadata={str(n): "" for n in range(65)}), "metadata: Dictionary should have at most 64 items"),
    (raw(schema_version="1"), "schema_version: Input should be a valid integer"),
    (raw(schema_version=False), "schema_version: Input should be a valid integer"),
    (raw(schema_version=True), "schema_version: Input should be a valid integer"),
]


@pytest.mark.parametrize(
    ("value", "detail"), REFUSED, ids=[f"{n}-{detail[:40]}" for n, (_, detail) in enumerate(REFUSED)]
)
def test_what_is_not_a_request_is_refused_with_the_reason(value: bytes | None, detail: str) -> None:
    error = refused(value)
    assert (ErrorType.INVALID_REQUEST, True) == (error.type, detail in error.detail), error.detail
    assert len(error.detail) < 1000


@pytest.mark.parametrize("version", [0, 2, -1, 2**63])
def test_a_schema_version_of_the_future_is_named(version: int) -> None:
    error = refused(raw(schema_version=version, messages="in another form", task_id="ward7-1", tenant="ward7"))
    assert (ErrorType.UNSUPPORTED_SCHEMA, "ward7-1", "ward7") == (error.type, error.task_id, error.tenant)
    assert f"schema_version {version} is not one this version reads (1)" == error.detail


def test_a_value_over_one_mib_is_too_large_and_one_of_exactly_that_is_taken() -> None:
    padding = "x" * (MAX_REQUEST_BYTES - len(raw(padding="")))
    assert decode_request(raw(padding=padding)).messages
    error = refused(raw(padding=padding + "x"))
    assert (ErrorType.REQUEST_TOO_LARGE, "the value has 1048577 bytes; at most 1048576 are taken") == (
        error.type,
        error.detail,
    )


def test_who_sent_a_request_that_is_wrong_is_told_where_it_can_be_read() -> None:
    error = refused(raw(task_id="ward7-1", tenant="ward7", stream="yes"))
    assert ("ward7-1", "ward7") == (error.task_id, error.tenant)
    error = refused(raw(task_id="with space", tenant=["a"], stream="yes"))
    assert (None, None) == (error.task_id, error.tenant)


def test_no_more_than_three_faults_are_described() -> None:
    error = refused(raw(tenant=1, model=1, stream=1, batch_id=1, budget=1))
    assert error.detail.endswith("and 2 more")
    assert 3 == error.detail.count("; ")


def nested(levels: int) -> bytes:
    """Return a request that is nested in so many levels in all."""
    inner = levels - 4  # request, messages, message, content
    content = b'[{"type":"text","text":"x","deep":' + b"[" * (inner - 1) + b"]" * (inner - 1) + b"}]"
    return b'{"task_id":"deep","messages":[{"role":"user","content":' + content + b"}]}"


def test_what_is_read_can_be_written_again() -> None:
    # orjson reads 1024 levels and writes 254: a request in between could be neither run nor given an outcome.
    request = decode_request(nested(MAX_DEPTH))
    assert fingerprint_of(request, effective_parameters(request))
    for levels in (MAX_DEPTH + 1, 300, 1000):
        error = refused(nested(levels))
        assert (ErrorType.INVALID_REQUEST, "deep") == (error.type, error.task_id)
        assert "nested more than 128 levels deep" in error.detail


def test_many_brackets_side_by_side_are_not_deep() -> None:
    parts = [{"type": "text", "text": "[[[{{{"} for _ in range(500)]
    assert decode_request(raw(messages=[{"role": "user", "content": parts}])).messages


CANARY = "canary-7f3a"
canaries = st.sampled_from([CANARY, f"{CANARY} and more", f"x{CANARY}", f"{CANARY}\n", f"{CANARY}ä" * 9])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | canaries,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(canaries, inner, max_size=2),
    max_leaves=6,
)
PLACES = [
    *((name,) for name in FULL),
    *(("parameters", name) for name in FULL["parameters"]),
    *(("cache", name) for name in FULL["cache"]),
    *(("metadata", name) for name in ("any", CANARY)),
    *(("messages", number, name) for number in range(3) for name in ("role", "content", CANARY)),
    ("messages", 1, "content", 0),
    ("messages", 0),
]


def put(document: Any, place: tuple[Any, ...], value: object) -> None:
    """Set a value deep inside, where the way to it is still there."""
    *way, last = place
    for step in way:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(document, dict) or (isinstance(document, list) and last in range(len(document))):
        document[last] = value


def refusal(value: bytes) -> DecodeError | None:
    try:
        decode_request(value)
    except DecodeError as error:
        return error
    return None


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(PLACES), junk), min_size=1, max_size=4))
def test_no_refusal_repeats_a_value_or_a_key_of_the_senders(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    document = json.loads(json.dumps(FULL))
    for place, value in changes:
        put(document, place, value)
    error = refusal(json.dumps(document).encode())
    if error is not None:
        assert CANARY not in error.detail
        assert CANARY not in str(error)
        # The validator's own error, which quotes its input, is not shown with ours.
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_bytes_are_read_or_refused_and_never_repeated(before: bytes, after: bytes) -> None:
    error = refused(before + CANARY.encode() + after)
    assert CANARY not in error.detail


@given(json_values)
def test_any_json_is_read_or_refused(value: Any) -> None:
    error = refusal(orjson.dumps(value))
    assert (error is None) <= (isinstance(value, dict) and "messages" in value)


# Records of ours

RECORDS = [Result, Started, Chunk, WorkerSnapshot, CacheEntry, GPUMetrics]

# What JSON can say without loss: integers that fit, numbers that are finite, no zero with a sign.
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0),
    str: st.text(max_size=20),
    bool: st.booleans(),
    type(None): st.none(),
    Any: json_values,
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for every value of a field's type."""
    origin, inner = get_origin(kind), [values_of(each) for each in get_args(kind)]
    if kind in PLAIN:
        return PLAIN[kind]
    if origin in (Union, UnionType):
        return st.one_of(inner)
    if origin is list:
        return st.lists(inner[0], max_size=2)
    if origin is tuple:
        return st.tuples(*inner)
    if origin is dict:
        return st.dictionaries(*inner, max_size=2)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{field.name: values_of(hints[field.name]) for field in fields(kind)})
    assert issubclass(kind, Enum), kind
    return st.sampled_from(kind)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_decoding_what_was_encoded_is_the_identity(kind: type) -> None:
    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(values_of(kind))
    def check(record: Any) -> None:
        assert record == decode(kind, encode(record))
        assert record == decode(kind, orjson.dumps({**asdict(record), "from a newer version": [1]}))

    check()


def test_a_result_always_has_every_field() -> None:
    result = Result("a", "default", Outcome.CANCELLED, Lane.LOW, Source("triage.requests.low", 0, 1))
    expected = {
        "schema_version": 1,
        "task_id": "a",
        "tenant": "default",
        "outcome": "cancelled",
        "priority": "low",
        "agent_type": None,
        "model": None,
        "backend": None,
        "output": None,
        "usage": None,
        "error": None,
        "cached": False,
        "coalesced_with": None,
        "attempts": 0,
        "batch": None,
        "batch_id": None,
        "timing": {
            "created_at_ms": None,
            "accepted_at_ms": None,
            "dispatched_at_ms": None,
            "finished_at_ms": None,
            "queue_ms": None,
            "inference_ms": None,
        },
        "routing": {"reason": None, "pressure": None, "dropped": []},
        "source": {"topic": "triage.requests.low", "partition": 0, "offset": 1},
        "metadata": {},
    }
    assert expected == json.loads(encode(result))


def test_gpu_readings_that_are_not_there_are_null() -> None:
    optional = {field.name for field in fields(GPUMetrics)} - {
        "schema_version",
        "gpu",
        "source",
        "sampled_at_ms",
        "clock_event_reasons",
        "processes",
        "lost",
        "errors",
        "faults",
    }
    sample = {"gpu": {"uuid": "u", "index": 0, "name": "n", "host": "h"}, "source": "nvml", "sampled_at_ms": 1}
    written = json.loads(encode(decode(GPUMetrics, orjson.dumps(sample))))
    assert {None} == {written[name] for name in optional}


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (b"", "value: Invalid JSON"),
        (b"{}", "Field required"),
        (b'{"task_id": 1, "attempt": 1, "seq": 0, "delta": ""}', "task_id: Input should be a valid string"),
        (b"[" * 100_000, "value: Invalid JSON"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(value: bytes, detail: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(Chunk, value)
    assert detail in caught.value.detail


# Fingerprints


def test_the_order_of_keys_and_the_form_of_the_json_do_not_matter() -> None:
    one = decode_request(b'{"messages": [{"role": "user", "content": "x"}], "parameters": {"seed": 1, "top_p": 0.5}}')
    two = decode_request(b'{"parameters":{"top_p":0.5,"seed":1},"messages":[{"content":"x","role":"user"}]}')
    assert fingerprint_of(one, effective_parameters(one)) == fingerprint_of(two, effective_parameters(two))


def test_the_fingerprint_is_hex_sha256_of_canonical_json() -> None:
    # printf '["t",null,[],{"a":1,"b":2}]' | sha256sum
    assert (
        fingerprint("t", None, [], {"b": 2, "a": 1})
        == "1d02aafe134445bc9d90c3bec59fb5a170cd11f928eb985434df8c205a14b4e1"
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant": "other"},
        {"model": "big"},
        {"agent_type": "other"},
        {"messages": [{"role": "user", "content": "bye"}]},
        {"parameters": {"max_tokens": 1}},
    ],
)
def test_another_question_has_another_fingerprint(changed: dict[str, Any]) -> None:
    one, two = decode_request(raw()), decode_request(raw(**changed))
    assert fingerprint_of(one, effective_parameters(one)) != fingerprint_of(two, effective_parameters(two))


@pytest.mark.parametrize(
    "changed",
    [
        {"task_id": "other"},
        {"deadline_at_ms": 5},
        {"metadata": {"a": "b"}},
        {"stream": True},
        {"model": "auto"},
        {"tenant": "default"},
        {"parameters": {"max_tokens": 256, "seed": None}},
        {"parameters": {"max_completion_tokens": 256}},
    ],
)
def test_the_same_question_has_the_same_fingerprint(changed: dict[str, Any]) -> None:
    one, two = decode_request(raw()), decode_request(raw(**changed))
    assert fingerprint_of(one, effective_parameters(one)) == fingerprint_of(two, effective_parameters(two))
