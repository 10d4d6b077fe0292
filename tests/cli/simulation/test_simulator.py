"""The simulator around the real Dispatcher, on scenarios whose outcome is known."""

from __future__ import annotations

from typing import Any

import pytest

from cli.simulation.policy import Policy
from schemas.topics import Lane
from tests.cli.simulation.scenes import GPU, ran, scenario

ONCE: dict[str, Any] = {"arrivals": "steady", "rate": 1, "prompt_tokens": 10, "answer_tokens": 20}


def test_should_serve_a_quiet_load_at_once_for_as_long_as_a_call_takes() -> None:
    backend = {**GPU, "fixed_ms": 50, "prompt_token_ms": 1, "answer_token_ms": 2}
    row = ran(scenario(ONCE, backends=[backend], seconds=10.5)).figures()["lanes"]["normal"]
    assert {"p50": 0.0, "p95": 0.0, "p99": 0.0} == row["wait_s"]
    assert {"p50": 0.1, "p95": 0.1, "p99": 0.1} == row["total_s"]
    assert (10, 10, 0, 300, 1.0, 1.0) == (
        row["offered"],
        row["served"],
        row["unfinished"],
        row["tokens"],
        row["share"],
        row["due_share"],
    )


def test_should_be_the_same_run_for_the_same_seed_and_another_for_another() -> None:
    def told(seed: int) -> dict[str, Any]:
        loads = [{"lane": lane, "rate": 6, "answer_tokens": {"median": 20, "p99": 90}} for lane in ("critical", "low")]
        backend = {**GPU, "answer_token_ms": 2, "noise": 0.3}
        return ran(scenario(*loads, backends=[backend], seed=seed)).figures()

    assert told(1) == told(1)
    assert told(1) != told(2)


def test_should_stop_and_go_on_where_it_stopped() -> None:
    given = scenario({"rate": 25})
    halves = ran(given, seconds=11.7)
    halves.advance(given.seconds)
    assert ran(given).figures() == halves.figures()


def test_should_leave_a_backlog_in_kafka_beyond_what_the_worker_holds() -> None:
    simulation = ran(scenario({"backlog": 2000}, seconds=0.05))
    assert (512, 2000 - 512 - 2) == (
        simulation.workers[0].decides.waiting(Lane.NORMAL),
        simulation.workers[0].unfetched,
    )


def test_should_give_the_yardstick_one_queue_whatever_the_lane() -> None:
    loads = [{"lane": "low", "backlog": 200}, {"lane": "critical", "backlog": 1, "from_s": 0.01}]
    lanes = ran(scenario(*loads), Policy.FIFO).figures()["lanes"]
    assert 9.99 == pytest.approx(lanes["critical"]["wait_s"]["p50"])
    assert 200 == lanes["low"]["served"]


def test_should_end_by_its_deadline_what_was_not_answered_and_count_it_late() -> None:
    row = ran(scenario({"backlog": 100, "deadline_s": 1.05})).figures()["lanes"]["normal"]
    assert (100, 0) == (row["served"] + row["expired"], row["unfinished"])
    assert row["late"] == row["expired"]
    assert 20 == pytest.approx(row["served"], abs=2)


def test_should_try_again_what_a_server_broke_off_and_lose_nothing() -> None:
    backend = {**GPU, "fixed_ms": 1000, "changes": [{"at_s": 5.5, "for_s": 3, "down": True}]}
    simulation = ran(scenario({"backlog": 20}, backends=[backend], seconds=60))
    row = simulation.figures()["lanes"]["normal"]
    assert (20, 20, 0) == (row["offered"], row["served"], row["unfinished"])
    assert 12 <= max(simulation.account.lanes[Lane.NORMAL].totals_s) <= 20


def test_should_use_another_server_while_one_is_down() -> None:
    down = {**GPU, "name": "down", "changes": [{"at_s": 0, "for_s": 1000, "down": True}]}
    figures = ran(scenario({"rate": 5}, backends=[GPU, down])).figures()
    assert (0.0, True) == (figures["backends"]["down"]["busy_ratio"], figures["backends"]["gpu"]["busy_ratio"] > 0.2)


def test_should_take_longer_while_a_server_is_slow() -> None:
    backend = {**GPU, "changes": [{"at_s": 10, "for_s": 10, "slowdown": 5}]}
    simulation = ran(scenario(ONCE, backends=[backend], seconds=30.5))
    totals = sorted(simulation.account.lanes[Lane.NORMAL].totals_s)
    assert [0.1] * 20 + [0.5] * 10 == pytest.approx(totals)


def test_should_load_another_model_only_when_no_call_runs() -> None:
    backend = {**GPU, "models": ["a", "b"], "one_model": True, "swap_s": 3}
    loads = [{"model": "a", "backlog": 1}, {"model": "b", "backlog": 1, "from_s": 0.05}]
    simulation = ran(scenario(*loads, backends=[backend]), Policy.FIFO)
    totals = sorted(simulation.account.lanes[Lane.NORMAL].totals_s)
    # The first model is loaded when it is first asked for, the second when the first call has ended.
    assert [3.1, 6.15] == pytest.approx(totals)
    assert 1 == simulation.figures()["backends"]["gpu"]["swaps"]


@pytest.mark.parametrize("policy", Policy)
def test_should_lose_nothing_through_overload_outage_and_deadlines(policy: Policy) -> None:
    backends = [
        {**GPU, "noise": 0.5, "changes": [{"at_s": 5, "for_s": 4, "down": True}]},
        {**GPU, "name": "other", "models": ["model", "large"], "one_model": True, "swap_s": 1},
    ]
    loads = [
        {"lane": "critical", "rate": 3, "deadline_s": 2},
        {"lane": "normal", "rate": 30, "deadline_s": 5, "tenant": "a"},
        {"lane": "low", "rate": 5, "model": "large", "arrivals": "bursty", "on_s": 3, "off_s": 3},
    ]
    simulation = ran(scenario(*loads, backends=backends), policy)
    # When nothing more comes, everything ends.
    simulation.advance(2000)
    assert (0, 0) == (simulation.lost, sum(row["unfinished"] for row in simulation.figures()["lanes"].values()))


def test_should_split_keys_and_slots_between_workers() -> None:
    loads = [{"lane": "high", "backlog": 3000}, {"lane": "low", "backlog": 3000}]
    simulation = ran(scenario(*loads, backends=[{**GPU, "slots": 6}], workers=3))
    figures = simulation.figures()
    assert 1.0 == pytest.approx(figures["backends"]["gpu"]["busy_ratio"], abs=0.01)
    assert [0.8, 0.2] == pytest.approx([figures["lanes"][name]["share"] for name in ("high", "low")], abs=0.02)
    left = [each.unfetched + len(each.decides) for each in simulation.workers]
    assert [1400, 1400, 1400] == pytest.approx(left, rel=0.1)  # of 6000, 60 a second were served
