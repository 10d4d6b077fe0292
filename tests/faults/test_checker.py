"""The checker on histories of a few lines, each about one rule; needs no broker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.faults.checker import Anomaly, Limits, judge, judge_lines
from tests.faults.checker.verdict import at_most
from tests.faults.history import Line, Recorder, digest, nonce_in, read_history

TOPIC, RETRY, DLQ, RESULTS = "t.requests.high", "t.retry.5s", "dlq.t.requests", "t.results"
CLIENT = {"who": "client-1", "task": "a"}


def request(at_ms: float = 1_000, offset: int = 0, **fields: Any) -> Line:
    row = {"task": "a", "tenant": "ward1", "nonce": "nonce-a", "topic": TOPIC, "partition": 0}
    return {"what": "request", **row, "offset": offset, "at_ms": at_ms, **fields}


def result(at_ms: float = 1_200, offset: int = 0, **fields: Any) -> Line:
    row = {"task": "a", "tenant": "ward1", "topic": RESULTS, "partition": 0, "offset": offset, "at_ms": at_ms}
    told = {"outcome": "completed", "answer": "echo nonce-a", "digest": "d1", "batch": "b1", "source": f"{TOPIC}/0/0"}
    return {"what": "result", **row, **told, **fields}


def commit(at_ms: float = 1_300, offset: int = 1, topic: str = TOPIC, **fields: Any) -> Line:
    row = {"group": "t-high", "topic": topic, "partition": 0, "offset": offset, "at_ms": at_ms}
    return {"what": "commit", **row, **fields}


def retry(at_ms: float, offset: int = 0, **fields: Any) -> Line:
    return {"what": "retry", "task": "a", "topic": RETRY, "partition": 0, "offset": offset, "at_ms": at_ms, **fields}


def dead(at_ms: float) -> Line:
    return {"what": "dead", "task": "a", "topic": DLQ, "partition": 0, "offset": 0, "at_ms": at_ms}


def dumped(first: int = 0) -> Line:
    return {"what": "dumped", "topic": RESULTS, "partition": 0, "first": first, "end": 1}


def submitted(**fields: Any) -> Line:
    return {"what": "submitted", "who": "client-1", "nonce": "nonce-a", "tenant": "ward1", "at_ms": 990, **fields}


def acknowledged(at_ms: float = 1_010, **fields: Any) -> Line:
    return {"what": "acknowledged", **CLIENT, "at_ms": at_ms, **fields}


def read(status: str, at_ms: float = 2_000, **fields: Any) -> Line:
    return {"what": "read", **CLIENT, "status": status, "at_ms": at_ms, **fields}


def began(at_ms: float = 1_050, call: str = "c1", **fields: Any) -> Line:
    return {"what": "began", "backend": "b1", "call": call, "nonce": "nonce-a", "at_ms": at_ms, **fields}


def ended(at_ms: float = 1_150, call: str = "c1") -> Line:
    return {"what": "ended", "backend": "b1", "call": call, "at_ms": at_ms}


def fault(phase: str, at_ms: float = 0, name: str = "kill-1") -> Line:
    return {"what": "fault", "fault": name, "phase": phase, "at_ms": at_ms}


def finished(at_ms: float) -> Line:
    return {"what": "finished", "at_ms": at_ms}


ASKED = [submitted(), acknowledged()]
SERVED = [request(), result(), commit(), dumped(), *ASKED, began(), ended(), read("completed", digest="d1")]
FAILED = result(outcome="failed", answer=None)
CANCELLED = result(1_100, outcome="cancelled", answer=None)


def found(*lines: Line, limits: Limits | None = None) -> set[str]:
    return judge_lines(lines, limits).names


def test_a_served_task_passes_and_every_anomaly_is_judged() -> None:
    verdict = judge_lines(SERVED)
    assert "PASSED" == verdict.word
    assert {"completed": 1} == verdict.outcomes
    assert {} == verdict.unjudged


ALLOWED: dict[str, list[Line]] = {
    "a later result that differs": [*SERVED[:2], result(1_250, 1, digest="d2", batch="b2"), *SERVED[2:]],
    "a result written again": [*SERVED[:2], result(1_250, 1), *SERVED[2:]],
    "a commit past what was handed over": [
        request(),
        retry(1_200),
        result(9_000),
        commit(1_300),
        commit(9_100, topic=RETRY),
    ],
    "a dead letter after the commit of what was handed over": [
        request(),
        retry(1_200),
        dead(8_900),
        {**FAILED, "at_ms": 9_000},
        commit(1_300),
        commit(9_100, topic=RETRY),
    ],
    "a retry record that is handed over": [
        request(),
        retry(1_200),
        retry(2_200, 1),
        result(3_000),
        commit(),
        commit(2_300, topic=RETRY),
        commit(3_100, 2, topic=RETRY),
    ],
    "one id on two partition numbers": [
        request(),
        request(partition=1),
        result(),
        result(partition=1, source=f"{TOPIC}/1/0", digest="d2", outcome="expired"),
        submitted(task="a", partition=1),
        acknowledged(partition=1),
        read("expired", partition=1, digest="d2"),
        *ASKED,
        read("completed", partition=0, digest="d1"),
    ],
    "a status that overlaps a later one": [
        request(),
        result(),
        *ASKED,
        read("completed"),
        read("queued", asked_ms=1_500),
    ],
    "a call that is aborted soon after its deadline": [
        request(deadline_ms=1_500),
        result(1_510, outcome="expired", answer=None),
        began(),
        ended(1_600),
    ],
    "calls for a prompt that tasks share": [
        request(),
        request(offset=1, task="b"),
        CANCELLED,
        result(task="b", source=f"{TOPIC}/0/1"),
        began(),
        ended(9_000),
    ],
    "a retry record that is not due": [
        request(),
        retry(1_200, due_ms=601_200),
        result(602_000),
        commit(),
        commit(602_100, topic=RETRY),
    ],
    "one prompt of two tenants": [
        request(),
        request(offset=1, task="b", tenant="ward2"),
        result(),
        result(task="b", tenant="ward2", source=f"{TOPIC}/0/1"),
        submitted(tenant="ward2"),
    ],
    "a replay under a new id": [
        request(),
        dead(1_100),
        FAILED,
        request(5_000, 1, task="a:replay.0.0", nonce=None),
        result(5_100, 1, task="a:replay.0.0", source=f"{TOPIC}/0/1"),
        {"what": "replayed", "task": "a", "new": "a:replay.0.0", "at_ms": 4_999},
    ],
    "unknown for another tenant": [request(), result(), *ASKED, read("unknown", who="client-2", tenant="ward2")],
    "a request in the log that nobody was told of": [
        request(),
        result(),
        submitted(),
        {"what": "unanswered", "at_ms": 2_000},
    ],
    "a request known by its place": [
        request(task="high.0.0", nonce=None),
        dead(1_100) | {"task": "high.0.0"},
        FAILED | {"task": "high.0.0"},
        {"what": "acknowledged", "who": "producer", "topic": TOPIC, "partition": 0, "offset": 0, "at_ms": 1_010},
    ],
}


@pytest.mark.parametrize("lines", ALLOWED.values(), ids=ALLOWED.keys())
def test_it_allows(lines: list[Line]) -> None:
    asked = [] if any(line["what"] == "acknowledged" for line in lines) else ASKED
    assert set() == found(*lines, *asked)


BROKEN: dict[str, tuple[Anomaly, list[Line]]] = {
    "acknowledged and nowhere": (Anomaly.LOST, ASKED),
    "in the log without an outcome": (Anomaly.LOST, [request(), submitted()]),
    "a dead letter and no result": (Anomaly.LOST, [request(), dead(1_100), *ASKED]),
    "another outcome told": (Anomaly.CHANGED, [request(), result(), *ASKED, read("expired")]),
    "other bytes told": (Anomaly.CHANGED, [request(), result(), *ASKED, read("completed", digest="d2")]),
    "the second record told": (
        Anomaly.CHANGED,
        [request(), CANCELLED, result(1_300, 1), *ASKED, read("completed", digest="d1")],
    ),
    "a result without a request": (Anomaly.PHANTOM, [request(), result(), result(1_300, 1, task="b"), *ASKED]),
    "a result that names no request": (Anomaly.PHANTOM, [request(), result(source=f"{TOPIC}/0/7"), *ASKED]),
    "a request that nobody sent": (Anomaly.PHANTOM, [request(nonce="nonce-b"), result(answer="nonce-b")]),
    "a status of what nobody asked for": (Anomaly.PHANTOM, [read("queued", task="b")]),
    "an answer to another prompt": (Anomaly.CROSSED, [request(), result(answer="echo nonce-b"), *ASKED]),
    "another tenant's result": (Anomaly.CROSSED, [request(), result(tenant="ward2"), *ASKED]),
    "a request under another tenant": (Anomaly.CROSSED, [request(tenant="ward2"), result(tenant="ward2"), *ASKED]),
    "shown to another tenant": (Anomaly.CROSSED, [request(), result(), *ASKED, read("completed", tenant="ward2")]),
    "acknowledged before it was in the log": (Anomaly.EARLY, [request(), result(), submitted(), acknowledged(950)]),
    "told before it was in the log": (Anomaly.EARLY, [request(), result(), *ASKED, read("completed", 1_100)]),
    "told what the log does not have": (Anomaly.EARLY, [request(), *ASKED, read("completed")]),
    "unknown after it was acknowledged": (Anomaly.REGRESS, [request(), result(), *ASKED, read("unknown")]),
    "queued after processing": (Anomaly.REGRESS, [request(), result(), *ASKED, read("processing"), read("queued")]),
    "a second client's queued after its own processing": (
        Anomaly.REGRESS,
        [request(), result(), *ASKED, read("processing", who="c2"), read("queued", who="c2")],
    ),
    "more calls than the limit": (
        Anomaly.OVERRUN,
        [
            request(),
            result(),
            *ASKED,
            {"what": "backend", "backend": "b1", "limit": 1, "at_ms": 0},
            began(),
            began(call="c2"),
        ],
    ),
    "a call long after its deadline": (
        Anomaly.OVERRUN,
        [request(deadline_ms=1_500), result(outcome="expired", answer=None), *ASKED, began(), ended(2_600)],
    ),
    "a call that nothing ends": (
        Anomaly.OVERRUN,
        [request(deadline_ms=1_500), result(outcome="expired", answer=None), *ASKED, began(), finished(9_000)],
    ),
    "a call begun after the deadline": (
        Anomaly.LATE_DISPATCH,
        [request(deadline_ms=1_500), result(outcome="expired", answer=None), *ASKED, began(1_900), ended(1_950)],
    ),
    "a cancelled call that goes on": (Anomaly.UNCANCELLED, [request(), CANCELLED, *ASKED, began(), ended(2_200)]),
    "a commit past what is open": (Anomaly.OVERCOMMIT, [request(), result(1_400), commit(1_300), *ASKED]),
    "a commit past a retry record that is open": (
        Anomaly.OVERCOMMIT,
        [request(), retry(1_200), result(9_000), commit(1_300), commit(1_400, topic=RETRY), *ASKED],
    ),
    "a commit that goes back": (
        Anomaly.ZOMBIE_WRITE,
        [request(), request(offset=1), result(), commit(offset=2), commit(1_400, offset=1), *ASKED],
    ),
    "a commit of an old generation": (
        Anomaly.ZOMBIE_WRITE,
        [
            request(),
            result(),
            {"what": "generation", "group": "t-high", "generation": 5, "at_ms": 0},
            commit(generation=4),
            *ASKED,
        ],
    ),
    "commits that stand still": (Anomaly.STUCK, [request(), result(), commit(62_000), *ASKED]),
    "commits that never come": (
        Anomaly.STUCK,
        [request(), request(offset=1), result(), commit(), *ASKED, finished(90_000)],
    ),
    "failed without a dead letter": (Anomaly.UNDEAD_LETTERED, [request(), FAILED, *ASKED]),
    "a dead letter after the result": (Anomaly.UNDEAD_LETTERED, [request(), dead(1_201), FAILED, *ASKED]),
    "a dead letter after the commit": (
        Anomaly.UNDEAD_LETTERED,
        [request(), dead(1_400), FAILED, commit(1_300), *ASKED],
    ),
    "a batch that answers twice": (Anomaly.CHANGED, [request(), result(), result(1_210, 1, digest="d2"), *ASKED]),
    "a replay under the old id": (
        Anomaly.PHANTOM,
        [request(), request(5_000, 1), result(), *ASKED, {"what": "replayed", "task": "a", "at_ms": 4_999}],
    ),
}


@pytest.mark.parametrize(("anomaly", "lines"), BROKEN.values(), ids=BROKEN.keys())
def test_it_calls_by_name(anomaly: Anomaly, lines: list[Line]) -> None:
    assert {anomaly.value} <= found(*lines)


def test_one_broken_rule_of_the_calls_or_commits_is_reported_once_and_alone() -> None:
    alone = [Anomaly.LATE_DISPATCH, Anomaly.UNCANCELLED, Anomaly.OVERCOMMIT, Anomaly.ZOMBIE_WRITE, Anomaly.REGRESS]
    for anomaly, lines in BROKEN.values():
        if anomaly in alone:
            verdict = judge_lines(lines)
            assert {anomaly: 1} == {name: finding.count for name, finding in verdict.findings.items()}


def test_time_in_which_a_fault_is_active_counts_for_nobody() -> None:
    broken = [request(), result(), commit(70_000), *ASKED]
    active = [fault("planned"), fault("begun", 5_000), fault("evidence"), fault("ended", 40_000)]
    assert {"STUCK"} == found(*broken)
    assert set() == found(*active, *broken)
    assert 70 - 1 - 35 == judge_lines([*active, *broken]).longest_stall_s


def test_overlapping_faults_are_active_once() -> None:
    first = [fault("begun", 10_000), fault("ended", 30_000)]
    second = [fault("begun", 20_000, "pause-2"), fault("ended", 40_000, "pause-2")]
    verdict = judge_lines([*first, *second, request(), result(), commit(70_000), *ASKED])
    assert 70 - 1 - 30 == verdict.longest_stall_s


def test_what_comes_after_the_finish_makes_no_stall() -> None:
    lines = [request(), request(offset=1), result(), commit(), *ASKED, finished(2_000), read("completed", 90_000)]
    assert 0.7 == judge_lines(lines).longest_stall_s


def test_one_id_on_two_partition_numbers_counts_as_two_tasks() -> None:
    verdict = judge_lines(ALLOWED["one id on two partition numbers"])
    assert (2, {"completed": 1, "expired": 1}) == (verdict.counts["tasks"], verdict.outcomes)


def test_recovery_is_the_time_from_a_fault_to_the_next_outcome() -> None:
    faults = [fault("begun", 1_100), fault("ended", 1_150), fault("begun", 5_000, "kill-2")]
    verdict = judge_lines([*faults, *SERVED])
    assert {"kill-1": 0.05, "kill-2": None} == verdict.recoveries_s


INVALID: dict[str, tuple[str, list[Line]]] = {
    "nothing was asked": ("no client did anything", [dumped()]),
    "most operations were not ok": (
        "50.0% of the clients' operations were ok; at least 80% are asked",
        [*SERVED, {"what": "unread", "at_ms": 2_000}, {"what": "unread", "at_ms": 2_000}],
    ),
    "a planned fault was never begun": ("the fault kill-1 was planned and never begun", [fault("planned"), *SERVED]),
    "a fault left no evidence": (
        "the fault kill-1 left no evidence that it happened",
        [fault("planned"), fault("begun"), fault("ended"), *SERVED],
    ),
    "the logs were not copied": ("no log was copied to its end", [line for line in SERVED if line["what"] != "dumped"]),
    "records were gone": (
        f"the records of {RESULTS}/0 below 7 were gone before they were copied",
        [*SERVED, dumped(first=7)],
    ),
}


@pytest.mark.parametrize(("reason", "lines"), INVALID.values(), ids=INVALID.keys())
def test_it_refuses_a_run_in_which(reason: str, lines: list[Line]) -> None:
    verdict = judge_lines(lines)
    assert ("INVALID", [reason]) == (verdict.word, verdict.invalid)
    assert not verdict.passed


def test_a_broken_promise_fails_also_a_run_that_proves_nothing() -> None:
    assert "FAILED" == judge_lines([fault("planned"), *ASKED]).word


def test_what_nobody_could_have_seen_is_said_to_be_unjudged() -> None:
    verdict = judge_lines([request(), result(), *ASKED])
    assert "not judged: no commits in the history" == verdict.unjudged[Anomaly.OVERCOMMIT]
    assert {"OVERCOMMIT", "STUCK", "ZOMBIE-WRITE", "OVERRUN", "LATE-DISPATCH", "UNCANCELLED", "CHANGED", "REGRESS"} == {
        anomaly.value for anomaly in verdict.unjudged
    }
    assert "STUCK                        0  not judged: no commits in the history" in verdict.table()


@pytest.mark.parametrize(("count", "share"), [(0, None), (1, 1.0), (3_000, 0.001), (1_000_000, 3e-6)])
def test_the_rule_of_three(count: int, share: float | None) -> None:
    assert share == at_most(count)


def test_the_table_names_the_task_and_what_happened() -> None:
    table = judge_lines([request(), result(1_400), commit(1_300), dumped(), *ASKED]).table()
    assert "OVERCOMMIT                   1  <<<" in table
    assert f"    a committed past {TOPIC}/0/0, which was open for 100 ms more" in table


def test_a_calls_backend_that_starts_again_has_no_calls() -> None:
    start = {"what": "backend", "backend": "b1", "limit": 1, "at_ms": 1_100}
    assert set() == found(request(), result(), *ASKED, began(), start, began(1_150, "c2"), ended(1_190, "c2"))


def test_a_line_that_nobody_knows_is_no_silent_gap() -> None:
    with pytest.raises(ValueError, match="no line is called 'acknowleged'"):
        judge_lines([{"what": "acknowleged", "task": "a"}])


def test_digests_leave_out_the_status_a_gateway_adds() -> None:
    row = {"task_id": "a", "outcome": "completed", "output": {"content": "x"}}
    assert digest(row) == digest({**dict(reversed(row.items())), "status": "completed"})
    assert digest(row) != digest({**row, "output": {"content": "y"}})


def test_a_nonce_is_found_in_a_prompt() -> None:
    assert "nonce-7fA" == nonce_in("please repeat nonce-7fA, thank you")
    assert None is nonce_in("please")


def test_lines_of_all_participants_are_read_in_the_order_of_time_after_faults_and_logs(tmp_path: Path) -> None:
    with Recorder(tmp_path, "b") as second, Recorder(tmp_path, "a") as first, Recorder.of_faults(tmp_path) as nemesis:
        first.write("submitted", number=1)
        second.write("submitted", number=2)
        first.write("submitted", number=3)
        nemesis.write("fault", number=0)
    (tmp_path / "log-results-t.jsonl").write_bytes(orjson.dumps({"number": 0.5}) + b"\n")
    lines = list(read_history(tmp_path))
    assert [0, 0.5, 1, 2, 3] == [line["number"] for line in lines]
    assert ["nemesis", "a", "b", "a"] == [line["who"] for line in lines if "who" in line]


def test_a_recorders_times_are_broker_time(tmp_path: Path) -> None:
    with Recorder(tmp_path, "near") as near, Recorder(tmp_path, "far", broker_ahead_ms=60_000) as far:
        near.write("read", at_s=5.0)
        far.write("read", at_s=5.0)
    first, second = read_history(tmp_path)
    assert second["at_ms"] - first["at_ms"] == pytest.approx(60_000, abs=50)


def test_a_line_that_a_kill_cut_short_is_left_out_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "seen-a.jsonl"
    path.write_bytes(b'{"what":"read","at_ms":1}\n{"what":"re')
    assert [{"what": "read", "at_ms": 1}] == list(read_history(tmp_path))
    path.write_bytes(b'{"what":"re\n{"what":"read","at_ms":1}\n')
    with pytest.raises(ValueError, match=r"seen-a\.jsonl: line 1 is not JSON"):
        list(read_history(tmp_path))


def test_a_folder_is_judged_by_hand_with_the_lines_of_what_went_wrong(tmp_path: Path) -> None:
    _write(tmp_path, [request(), dumped()], [*ASKED, began()])
    command = [sys.executable, "-m", "tests.faults.checker", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (1, "") == (run.returncode, run.stderr)
    assert "LOST                         1  <<<\n    a acknowledged, and no outcome" in run.stdout
    assert '\na\n  {"what":"request","task":"a"' in run.stdout
    assert '\n  {"what":"began","backend":"b1"' in run.stdout
    document = subprocess.run([*command, "--json"], capture_output=True, timeout=60, check=False).stdout
    assert {"LOST"} == set(orjson.loads(document)["anomalies"])


def test_a_folder_is_judged_as_its_lines_are(tmp_path: Path) -> None:
    _write(tmp_path, SERVED[:4], SERVED[4:])
    verdict, by_lines = judge(tmp_path).as_json(), judge_lines(SERVED).as_json()
    assert by_lines | {"judging_s": 0} == verdict | {"judging_s": 0}


def _write(folder: Path, logged: list[Line], seen: list[Line]) -> None:
    for name, lines in (("log-requests", logged), ("seen-client", seen)):
        with (folder / f"{name}.jsonl").open("wb") as file:
            file.writelines(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
