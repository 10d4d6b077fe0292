"""`triage dlq`: which dead letters are meant, what is done with each, how they look."""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import replace
from typing import Any, cast

import pytest
import typer

from cli.deadletters.asking import named, names_of, rate_of
from cli.deadletters.auditing import Audit
from cli.deadletters.letters import (
    RESULT_KEPT_MS,
    UNFINISHED,
    Filters,
    Letter,
    Place,
    Standing,
    letter_of,
    plan_purge,
    plan_replay,
    spans,
)
from cli.deadletters.replaying import Pace
from cli.deadletters.showing import body, lines, table, whole
from cli.errors import Failed, NoSuchTask, NotReachable
from cli.main import main
from schemas.audit import AuditRecord, Phase
from schemas.codec import decode
from schemas.ids import replay_id
from schemas.topics import Lane, TopicNames
from streams.replay import DeadLetter
from wire import reading
from wire.producing import DurableProducer, NotAcknowledged, RecordTooLarge

NOW_MS = 100_000_000_000
FAILED = Standing("failed", "ward7")
OPEN = Standing()


def letter(partition: int, offset: int, task_id: str | None = None, **fields: Any) -> Letter:
    """Return a dead letter of a task of its own, a minute old and a millisecond for each offset younger."""
    task_id = task_id or f"task-{partition}-{offset}"
    fields = {"at_ms": NOW_MS - 60_000 + offset, "lane": Lane.HIGH, "reason": "backend_timeout", **fields}
    made = replay_id(task_id, partition, offset)
    known = {"appended_ms": None, "detail": None, "attempts": 1, "source": None, "request_bytes": 9}
    return Letter(place=(partition, offset), task_id=task_id, replay_id=made, **{**known, **fields})


def places(letters: list[Letter]) -> list[Place]:
    return [each.place for each in letters]


def reasons(rows: list[tuple[Letter, str]]) -> dict[Place, str]:
    return {each.place: why for each, why in rows}


# Which are meant


@pytest.mark.parametrize(
    ("filters", "is_meant"),
    [
        (Filters(), True),
        (Filters(reason="backend_timeout"), True),
        (Filters(reason="internal"), False),
        (Filters(tenant="ward7"), True),
        (Filters(tenant="ward8"), False),
        (Filters(lane=Lane.HIGH), True),
        (Filters(lane=Lane.LOW), False),
        (Filters(older_than_ms=59_999), True),
        (Filters(older_than_ms=60_000), False),
        (Filters(newer_than_ms=60_001), True),
        (Filters(newer_than_ms=60_000), False),
        (
            Filters(reason="backend_timeout", tenant="ward7", lane=Lane.HIGH, older_than_ms=1, newer_than_ms=90_000),
            True,
        ),
        (Filters(reason="backend_timeout", tenant="ward7", lane=Lane.LOW), False),
    ],
)
def test_every_filter_must_hold(filters: Filters, is_meant: bool) -> None:
    assert is_meant == filters.matches(letter(0, 0), FAILED, now_ms=NOW_MS)


def test_the_oldest_come_first_across_partitions() -> None:
    letters = [letter(0, 5), letter(0, 7), letter(1, 6)]
    chosen = Filters().chosen(letters, dict.fromkeys(places(letters), FAILED), now_ms=NOW_MS)
    assert [(0, 5), (1, 6), (0, 7)] == places(chosen)


def test_letters_are_named_by_place_or_by_task() -> None:
    letters = [letter(0, 5, "a"), letter(0, 7, "a"), letter(1, 6, "b"), letter(1, 8, "c")]
    assert [(0, 5), (1, 6), (0, 7)] == places(named(names_of(["1/6", "a"]), letters))
    for unknown, told in (("9/9", "There is no dead letter 9/9."), ("d", "There is no dead letter of d.")):
        with pytest.raises(NoSuchTask) as none:
            named(names_of(["a", unknown]), letters)
        assert told == str(none.value)


@pytest.mark.parametrize(("text", "rate"), [("10/s", 10), ("10", 10), ("600/m", 10), ("0.5/s", 0.5), ("3600/h", 1)])
def test_a_rate_is_so_many_a_second(text: str, rate: float) -> None:
    assert rate == rate_of(text)


@pytest.mark.parametrize("text", ["0", "0/s", "-1", "10/d", "fast", "", "10/ s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        rate_of(text)


# What is done


def test_a_replay_takes_each_failed_task_once_and_says_why_it_leaves_others() -> None:
    twin, older = letter(0, 9, "task-0-1"), letter(0, 1)
    letters = [older, letter(0, 2), letter(0, 3), letter(0, 4), letter(0, 5), twin, letter(1, 1, "task-0-1")]
    standings = dict.fromkeys(places(letters), FAILED) | {
        (0, 2): replace(FAILED, replay="completed"),
        (0, 3): replace(FAILED, replay=UNFINISHED),
        (0, 4): Standing("cancelled", "ward7"),
        (0, 5): OPEN,
    }
    plan = plan_replay(letters, letters, standings, now_ms=NOW_MS, by_name=False)
    assert [(0, 1), (1, 1)] == places(plan.go)
    assert [(0, 2), (0, 3)] == places(plan.done)
    assert {
        (0, 4): "its task ended as cancelled; name it to run it again",
        (0, 5): "the result of its task is not written yet",
        (0, 9): "its task has an older dead letter, 0/1",
    } == reasons(plan.skipped)


def test_a_named_letter_runs_again_whatever_became_of_its_task_but_never_before_its_result() -> None:
    letters = [letter(0, 4), letter(0, 5)]
    standings = {(0, 4): Standing("cancelled", "ward7"), (0, 5): OPEN}
    plan = plan_replay(letters, letters, standings, now_ms=NOW_MS, by_name=True)
    assert ([(0, 4)], [(0, 5)]) == (places(plan.go), list(reasons(plan.skipped)))


def test_a_task_whose_older_letter_the_filters_leave_out_is_not_run_by_its_younger() -> None:
    letters = [letter(0, 1, "a"), letter(0, 2, "a")]
    plan = plan_replay(letters[1:], letters, dict.fromkeys(places(letters), FAILED), now_ms=NOW_MS, by_name=False)
    assert ([], [(0, 2)]) == (places(plan.go), list(reasons(plan.skipped)))


def test_a_limit_counts_only_what_is_left_to_replay() -> None:
    letters = [letter(0, offset) for offset in range(4)]
    standings = dict.fromkeys(places(letters), FAILED) | {(0, 0): replace(FAILED, replay="completed")}
    plan = plan_replay(letters, letters, standings, now_ms=NOW_MS, by_name=False, limit=2)
    assert ([(0, 1), (0, 2)], [(0, 0)]) == (places(plan.go), places(plan.done))


def test_a_result_that_is_no_longer_kept_was_written() -> None:
    old = [letter(0, 1, at_ms=NOW_MS - RESULT_KEPT_MS), letter(0, 2, at_ms=NOW_MS - RESULT_KEPT_MS + 1)]
    standings = dict.fromkeys(places(old), OPEN)
    assert [(0, 1)] == places(plan_replay(old, old, standings, now_ms=NOW_MS, by_name=False).go)
    assert [(0, 1)] == places(plan_purge(old, old, standings, now_ms=NOW_MS).letters)


def test_a_purge_ends_in_each_partition_before_the_first_that_is_not_meant() -> None:
    letters = [letter(0, 3), letter(0, 4), letter(0, 6), letter(0, 7), letter(1, 0), letter(1, 1), letter(2, 5)]
    standings = dict.fromkeys(places(letters), FAILED)
    chosen = [each for each in letters if each.place not in ((0, 6), (2, 5))]
    plan = plan_purge(chosen, letters, standings, now_ms=NOW_MS)
    assert {0: 5, 1: 2} == plan.before
    assert [(0, 3), (0, 4), (1, 0), (1, 1)] == places(plan.letters)
    assert {(0, 7): "0/6 before it stays"} == reasons(plan.kept)


def test_a_purge_keeps_a_letter_whose_result_is_not_written_yet_and_all_behind_it() -> None:
    letters = [letter(0, 3), letter(0, 4), letter(0, 6)]
    standings = dict.fromkeys(places(letters), FAILED) | {(0, 4): OPEN}
    plan = plan_purge(letters, letters, standings, now_ms=NOW_MS)
    assert {0: 4} == plan.before
    assert {(0, 4): "the result of its task is not written yet", (0, 6): "0/4 before it stays"} == reasons(plan.kept)


def test_a_pace_is_even_and_makes_up_for_nothing() -> None:
    pace = Pace(10)
    assert 0 == pace.delay_s(5.0)
    assert pytest.approx(0.1) == pace.delay_s(5.0)
    assert pytest.approx(0.15) == pace.delay_s(5.05)
    assert 0 == pace.delay_s(9.0)
    assert pytest.approx(0.1) == pace.delay_s(9.0)


# What is put on record


class Producer:
    """Remembers what it was given, or fails as told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.written = error, list[tuple[str, bytes, AuditRecord]]()

    async def write(self, topic: str, partition: int, *, key: bytes, value: bytes, timeout_s: float) -> int:
        if self.error is not None:
            raise self.error
        self.written.append((topic, key, decode(AuditRecord, value)))
        return 0


async def test_an_action_has_two_records_under_one_writer() -> None:
    producer = Producer()
    audit = Audit(cast(DurableProducer, producer), TopicNames(), "dlq.purge", {"lane": "low"})
    letters = [letter(1, 4), letter(1, 2), letter(0, 3)]
    await audit.began({"chosen": 3}, spans(letters))
    await audit.ended({"removed": 1}, spans(letters[1:2]), "NotLeader")
    (topic, key, began), (_, second_key, ended) = producer.written
    user = pwd.getpwuid(os.getuid()).pw_name
    assert ("triage.audit", began.writer.encode(), key, user) == (topic, key, second_key, began.who)
    assert began.writer.startswith(f"cli/{user}@")
    assert (Phase.BEGAN, {"chosen": 3}, {"0": (3, 3), "1": (2, 4)}, None) == (
        began.phase,
        began.counts,
        began.offsets,
        began.error,
    )
    assert (
        replace(
            began,
            phase=Phase.ENDED,
            counts={"removed": 1},
            offsets={"1": (2, 2)},
            error="NotLeader",
            at_ms=ended.at_ms,
        )
        == ended
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [(NotAcknowledged("triage.audit", 1, may_be_written=False), NotReachable), (RecordTooLarge("too large"), Failed)],
)
async def test_what_cannot_be_put_on_record_is_not_done(error: Exception, told: type[Exception]) -> None:
    audit = Audit(cast(DurableProducer, Producer(error)), TopicNames(), "dlq.purge", {})
    with pytest.raises(told):
        await audit.began({}, {})


# How they look

DEAD = DeadLetter(
    partition=3,
    offset=17,
    at_ms=1_700_000_000_000,
    key=b"ward7",
    value=b'{"messages": "a secret"',
    headers=[
        ("traceparent", b"00-1"),
        ("odd\x1b", b"\xff\x00"),
        ("triage.task_id", b"ward7-1"),
        ("triage.lane", b"high"),
        ("triage.attempts", b"2"),
        ("triage.source", b"triage.requests.high/3/9"),
        ("triage.error.type", b"invalid_request"),
        ("__dlq.errors.message", b"the value is not JSON in UTF-8"),
    ],
)
LETTER = letter_of(DEAD)


def test_a_list_is_a_table_with_the_outcome_beside_it() -> None:
    foreign = letter_of(
        replace(DEAD, offset=18, headers=[("triage.task_id", b"\x1b[31m"), ("triage.error.type", b"\x1b")])
    )
    standings = {LETTER.place: replace(FAILED, replay="completed"), foreign.place: OPEN}
    shown = [
        "PLACE  TASK     LANE  TENANT  ERROR            ATTEMPTS  AGE  OUTCOME   REPLAY",
        "3/17   ward7-1  high  ward7   invalid_request  2         2h   failed    completed",
        "3/18   -        -     -       ?                -         2h   not kept  -",
    ]
    assert shown == table([LETTER, foreign], standings, now_ms=DEAD.at_ms + 7_200_000)


def test_an_outcome_that_is_not_written_yet_is_not_one_that_is_gone() -> None:
    row = table([LETTER], {LETTER.place: OPEN}, now_ms=DEAD.at_ms)[1]
    assert row.endswith("0s   not yet  -")
    assert True is body(LETTER, OPEN, now_ms=DEAD.at_ms)["outcome_pending"]


def test_a_letter_is_shown_with_its_headers_and_why_it_cannot_be_replayed() -> None:
    shown = lines(DEAD, LETTER, FAILED, now_ms=DEAD.at_ms + 90_000)
    assert [
        "3/17 ward7-1",
        "  lane        high",
        "  tenant      ward7",
        "  error       invalid_request: the value is not JSON in UTF-8",
        "  attempts    2",
        "  dead since  2023-11-14T22:13:20.000Z (1m)",
        "  request     triage.requests.high/3/9",
        "  size        23 bytes",
        "  key         ward7",
        "  outcome     failed",
        "  replay      not possible: the value is not JSON in UTF-8",
        "  headers",
        "    traceparent: 00-1",
        "    odd?: 0xff00",
        "    triage.task_id: ward7-1",
    ] == shown[:15]


def test_no_text_of_a_request_is_shown() -> None:
    told = [*lines(DEAD, LETTER, FAILED, now_ms=0), *table([LETTER], {LETTER.place: FAILED}, now_ms=0)]
    told.append(str(whole(DEAD, LETTER, FAILED, now_ms=0)))
    assert not [line for line in told if "secret" in line]


def test_for_machines_a_letter_has_its_place_why_and_both_outcomes() -> None:
    assert {
        "partition": 3,
        "offset": 17,
        "task_id": "ward7-1",
        "lane": "high",
        "tenant": "ward7",
        "error": {"type": "invalid_request", "detail": "the value is not JSON in UTF-8"},
        "attempts": 2,
        "dead_at": "2023-11-14T22:13:20.000Z",
        "age_s": 0.5,
        "source": {"topic": "triage.requests.high", "partition": 3, "offset": 9},
        "bytes": 23,
        "outcome": "failed",
        "outcome_pending": False,
        "replay": {"task_id": "ward7-1:replay.3.17", "status": None},
    } == body(LETTER, FAILED, now_ms=DEAD.at_ms + 500)


# How it ends


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["list", "--reason", "backend_timeouts"], 2, "did you mean backend_timeout?"),
        (["list", "--lane", "urgent"], 2, "they are critical, high, normal, low."),
        (["list", "--older-than", "1 year"], 2, "is no duration such as 30s, 10m, 1h or 2d."),
        (["list", "--limit", "0"], 2, "--limit"),
        (["replay", "--rate", "quick"], 2, "is no rate such as 10/s or 600/m."),
        (["replay", "3/17", "--lane", "low"], 2, "name dead letters or filter them, not both."),
        (["replay", "3/17", "--limit", "3"], 2, "name dead letters or filter them, not both."),
        (["show", "3/x"], 4, "A dead letter is named by PARTITION/OFFSET or by its task_id."),
        (["replay", "with space"], 4, "A dead letter is named by PARTITION/OFFSET or by its task_id."),
    ],
)
def test_wrong_usage_is_told_before_kafka_is_asked(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code == main(["dlq", *arguments])
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert told in shown


@pytest.fixture
def _without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIAGE_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setenv("ALLOW_INSECURE_DEV", "true")


@pytest.mark.usefixtures("_without_a_broker")
def test_without_a_broker_it_ends_within_five_seconds() -> None:
    began_s = time.monotonic()
    assert 3 == main(["dlq", "list"])
    assert time.monotonic() - began_s < 5


@pytest.mark.usefixtures("_without_a_broker")
@pytest.mark.parametrize("arguments", [["list"], ["show", "3/17"], ["replay", "a"], ["purge", "--yes"]])
def test_without_a_broker_every_verb_says_so_and_ends_with_3(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reading, "CONNECT_S", 0.2)
    assert 3 == main(["dlq", *arguments])
    assert "Kafka does not answer at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["list", "show", "replay", "purge"])
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["dlq", verb, "--help"])
    assert f"triage dlq {verb} " in capsys.readouterr().out.partition("Example:")[2]
