"""Joules per task and model from the cards' counters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.energy import EnergyMeter, ModelEnergy


def test_should_bill_a_task_alone_on_its_card_with_all_of_it() -> None:
    meter = EnergyMeter()
    meter.reading("a", 1000.0, now_s=0)
    meter.started("t", ["a"], 100)
    meter.reading("a", 1300.0, now_s=1)
    assert 300.0 == meter.ended("t", model="m", tokens=60)
    assert {"m": ModelEnergy(300.0, 60, 1)} == meter.models
    assert 5.0 == meter.models["m"].joules_per_token


def test_should_share_by_tokens_and_give_nothing_twice() -> None:
    meter = EnergyMeter()
    meter.reading("a", 0.0, now_s=0)
    for task, tokens in (("small", 100), ("large", 300)):
        meter.started(task, ["a"], tokens)
    meter.reading("a", 400.0, now_s=1)
    assert 100.0 == meter.ended("small", model="m", tokens=100)
    assert 300.0 == meter.ended("large", model="m", tokens=300)


def test_should_not_bill_anyone_for_an_idle_card() -> None:
    meter = EnergyMeter()
    for second in range(10):
        meter.reading("a", 30.0 * second, now_s=second)
    meter.started("t", ["a"], 100)
    meter.reading("a", 600.0, now_s=10)
    assert 330.0 == meter.ended("t", model="m", tokens=100)
    meter.reading("a", 900.0, now_s=11)  # it ran for a part of this second
    meter.reading("a", 930.0, now_s=12)
    meter.started("u", ["a"], 100)
    meter.reading("a", 1000.0, now_s=13)
    assert 370.0 == meter.ended("u", model="m", tokens=100)


def test_should_add_the_cards_of_a_model_that_spans_several() -> None:
    meter = EnergyMeter()
    for gpu in ("a", "b"):
        meter.reading(gpu, 0.0, now_s=0)
    meter.started("t", ["a", "b"], 100)
    meter.reading("a", 200.0, now_s=1)
    meter.reading("b", 250.0, now_s=1)
    assert 450.0 == meter.ended("t", model="m", tokens=100)


@pytest.mark.parametrize("gpus", [[], ["none"], ["a", "none"]])
def test_should_say_that_it_does_not_know_rather_than_nothing(gpus: list[str]) -> None:
    meter = EnergyMeter()
    meter.reading("a", 0.0, now_s=0)
    meter.reading("none", None, now_s=0)
    meter.started("t", gpus, 100)
    meter.reading("a", 100.0, now_s=1)
    assert meter.ended("t", model="m", tokens=100) is None
    assert meter.ended("t", model="m", tokens=100) is None  # and a task ends once
    assert (100, 1) == (meter.models["m"].tokens, meter.models["m"].task_count)


def test_should_not_know_the_energy_of_a_task_between_two_readings() -> None:
    meter = EnergyMeter()
    meter.reading("a", 0.0, now_s=0)
    meter.started("t", ["a"], 100)
    assert meter.ended("t", model="m", tokens=100) is None
    meter.started("u", ["a"], 100)
    meter.reading("a", 200.0, now_s=1)
    assert 200.0 == meter.ended("u", model="m", tokens=100)
    assert 1.0 == meter.models["m"].joules_per_token


@pytest.mark.parametrize("later", [10.0, 1e12])
def test_should_not_bill_a_counter_that_began_anew_or_jumped(later: float) -> None:
    meter = EnergyMeter()
    meter.reading("a", 1000.0, now_s=0)
    meter.started("t", ["a"], 100)
    meter.reading("a", later, now_s=1)
    meter.reading("a", later + 50, now_s=2)
    assert 50.0 == meter.ended("t", model="m", tokens=100)


def test_should_bill_its_own_part_where_other_workers_use_the_card() -> None:
    meter = EnergyMeter()
    meter.reading("a", 0.0, now_s=0)
    meter.started("t", ["a"], 100)
    meter.reading("a", 400.0, now_s=1, own_ratio=0.25)
    assert 100.0 == meter.ended("t", model="m", tokens=100)


def test_should_bill_steady_work_with_what_it_takes() -> None:
    """300 W, four tasks at a time, each 4 s and 100 tokens: 300 J a task, 3 J a token."""
    meter, joules = EnergyMeter(), []
    for number in range(4):
        meter.started(f"t{number}", ["a"], 100)
    for second in range(200):
        meter.reading("a", 300.0 * second, now_s=second)
        joules.append(meter.ended(f"t{second}", model="m", tokens=100))
        meter.started(f"t{second + 4}", ["a"], 100)
    assert 300.0 == pytest.approx(joules[-1])
    assert 3.0 == pytest.approx(meter.models["m"].joules_per_token, rel=0.03)


moves = st.lists(
    st.tuples(st.sampled_from(["start", "end", "read"]), st.integers(0, 3), st.integers(1, 500)), max_size=60
)


@given(moves)
def test_no_more_is_billed_than_the_cards_took(rows: list[tuple[str, int, int]]) -> None:
    meter, counter, billed = EnergyMeter(), 0.0, 0.0
    meter.reading("a", counter, now_s=0)
    for now_s, (move, number, amount) in enumerate(rows, start=1):
        if move == "start":
            meter.started(str(number), ["a"], amount)
        elif move == "end":
            joules = meter.ended(str(number), model="m", tokens=amount)
            assert joules is None or joules >= 0
            billed += joules or 0.0
        else:
            counter += amount
            meter.reading("a", counter, now_s=now_s)
    assert billed <= counter + 1e-6
