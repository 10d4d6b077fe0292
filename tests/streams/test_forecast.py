"""The forecast of a card's memory: what it says, when it refuses, and how often it was right."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.forecast import JUDGED_S, MIN_SAMPLES, Forecast, Forecaster, NoForecast, Sample, forecast, steps

HORIZON = int(JUDGED_S)
SEEDS = range(4)


def samples(ratios: Iterable[float]) -> list[Sample]:
    """Return one sample a second."""
    return [Sample(float(second), ratio) for second, ratio in enumerate(ratios)]


def line(start: float, per_s: float, seconds: int = 60) -> list[Sample]:
    return samples(start + per_s * second for second in range(seconds))


def test_should_carry_a_line_on() -> None:
    found = forecast(line(0.2, 0.005))
    assert isinstance(found, Forecast)
    assert 0.495 == pytest.approx(found.used_ratio)
    assert 0.005 == pytest.approx(found.slope_per_s)
    assert 0.795 == pytest.approx(found.at(60).used_ratio)
    assert 0.0 == found.seconds_to(0.4)
    assert 41.0 == pytest.approx(found.seconds_to(0.7))
    assert 71.0 == pytest.approx(found.seconds_to(0.85))
    assert found.is_rising


@pytest.mark.parametrize("per_s", [0.0, -0.004])
def test_should_never_reach_a_level_by_standing_still_or_falling(per_s: float) -> None:
    found = forecast(line(0.5, per_s))
    assert isinstance(found, Forecast)
    assert (None, False) == (found.seconds_to(0.7), found.is_rising)


def test_should_be_surer_of_the_near_than_of_the_far() -> None:
    dice = random.Random(1)
    found = forecast(samples(0.5 + dice.gauss(0, 0.01) for _ in range(100)))
    assert isinstance(found, Forecast)
    widths = [found.half_width(in_s) for in_s in (0, 30, 60, 300)]
    assert sorted(widths) == widths
    assert 0 < found.confidence < 1


def test_should_keep_the_band_within_the_card() -> None:
    found = forecast(line(0.9, 0.005, 20))
    assert isinstance(found, Forecast)
    assert (1.0, 1.0) == (found.at(300).used_ratio, found.at(300).high)


def test_should_refuse_from_too_few_samples() -> None:
    assert NoForecast("only 19 samples of at least 20") == forecast(line(0.2, 0.001, MIN_SAMPLES - 1))
    assert isinstance(forecast(line(0.2, 0.001, MIN_SAMPLES)), Forecast)


def test_should_refuse_from_too_noisy_samples() -> None:
    dice = random.Random(1)
    found = forecast(samples(dice.uniform(0, 1) for _ in range(30)))
    assert isinstance(found, NoForecast)
    assert found.reason.startswith("too noisy: ±")


def test_should_refuse_right_after_a_step_and_answer_with_a_wider_band_later() -> None:
    before, after = [0.3] * 60, [0.45] * 19
    assert NoForecast("memory stepped by 15% of the card 19 samples ago") == forecast(samples(before + after))
    found = forecast(samples([*before, *after, 0.45]))
    assert isinstance(found, Forecast)
    assert 0.15 == pytest.approx(found.step)
    assert 0.0 == pytest.approx(found.slope_per_s)
    assert found.at(1).high > 0.6


def test_should_refuse_where_memory_goes_in_steps() -> None:
    assert NoForecast("memory went in 2 steps within the last 60 samples") == forecast(
        samples([0.3] * 20 + [0.5] * 20 + [0.3] * 20)
    )


def test_should_take_a_step_that_takes_some_samples_for_one() -> None:
    [found] = steps(samples([0.3] * 20 + [0.35, 0.40, 0.45] + [0.5] * 20))
    assert (23, True) == (found.first, found.is_up)
    assert 0.2 == pytest.approx(found.size)


def test_should_not_take_a_steep_ramp_or_a_missing_sample_for_a_step() -> None:
    assert [] == steps(line(0.1, 0.03, 30))
    assert [] == steps([sample for sample in line(0.1, 0.02, 40) if sample.at_s not in (17, 18, 19)])


def test_should_begin_anew_when_a_clock_is_set_back() -> None:
    card = Forecaster()
    for sample in [*line(0.2, 0.001, 50), Sample(3.0, 0.2)]:
        card.add(sample)
    assert NoForecast("only 1 samples of at least 20") == card.now()


@dataclass
class Score:
    """How a backtest went."""

    asked: int = 0
    answered: int = 0
    inside: int = 0

    @property
    def answers(self) -> float:
        return self.answered / self.asked

    @property
    def hits(self) -> float:
        return self.inside / self.answered


def backtest(ratios: list[float], score: Score, *, first: int = MIN_SAMPLES - 1) -> None:
    """Forecast every third second from `first` on, and compare with what came a minute later."""
    card = Forecaster()
    for second, ratio in enumerate(ratios[:-HORIZON]):
        card.add(Sample(second, ratio))
        if second < first or second % 3:
            continue
        score.asked += 1
        found = card.now()
        if isinstance(found, Forecast):
            point = found.at(HORIZON)
            score.answered += 1
            score.inside += point.low <= ratios[second + HORIZON] <= point.high


def clipped(ratio: float) -> float:
    return min(max(ratio, 0.0), 1.0)


def ramp(dice: random.Random, sigma: float, per_s: float) -> list[float]:
    start = 0.1 if per_s >= 0 else 0.9
    return [clipped(start + per_s * second + dice.gauss(0, sigma)) for second in range(360)]


@pytest.mark.parametrize("sigma", [0.0, 0.002, 0.01, 0.03])
@pytest.mark.parametrize("per_s", [0.002, 0.0005, -0.001])
def test_should_be_right_on_ramps_as_often_as_it_says(sigma: float, per_s: float) -> None:
    score = Score()
    for seed in SEEDS:
        backtest(ramp(random.Random(seed), sigma, per_s), score)
    assert score.answers >= 0.80
    assert score.hits >= 0.85


@pytest.mark.parametrize("sigma", [0.001, 0.01, 0.04])
def test_should_be_right_on_noise_as_often_as_it_says(sigma: float) -> None:
    score = Score()
    for seed in SEEDS:
        dice = random.Random(seed)
        backtest([clipped(0.5 + dice.gauss(0, sigma)) for _ in range(360)], score)
    assert score.answers >= 0.80
    assert score.hits >= 0.85


def step(dice: random.Random, second: int) -> float:
    return (0.3 if second < 150 else 0.6) + dice.gauss(0, 0.005)


def sawtooth(period: int) -> Callable[[random.Random, int], float]:
    return lambda dice, second: 0.3 + 0.4 * (second % period) / period + dice.gauss(0, 0.005)


@pytest.mark.parametrize(("shape", "first_s"), [(step, 150), *((sawtooth(period), period) for period in (15, 40, 90))])
def test_should_refuse_or_widen_within_ten_samples_of_a_step(
    shape: Callable[[random.Random, int], float], first_s: int
) -> None:
    for seed in SEEDS:
        dice, card, before = random.Random(seed), Forecaster(), 0.0
        for second in range(first_s + 99):
            card.add(Sample(second, shape(dice, second)))
            found = card.now()
            width = found.half_width(HORIZON) if isinstance(found, Forecast) else 1.0
            if second < first_s:
                before = width if isinstance(found, Forecast) else before
            elif second >= first_s + 10:
                assert isinstance(found, NoForecast) or width > 3 * before


@pytest.mark.parametrize("period", [15, 40, 90, 150])
def test_should_not_be_taken_in_by_sawteeth_again_and_again(period: int) -> None:
    score = Score()
    for seed in SEEDS:
        dice = random.Random(seed)
        ratios = [sawtooth(period)(dice, second) for second in range(2 * period + 400)]
        backtest(ratios, score, first=2 * period + 10)
    assert score.answered - score.inside <= 0.15 * score.asked


ratios = st.lists(st.floats(0, 1), min_size=0, max_size=100)


@given(ratios)
def test_a_forecast_is_within_the_card_and_its_band_holds_its_line(used: list[float]) -> None:
    found = forecast(samples(used))
    if isinstance(found, NoForecast):
        assert found.reason
        return
    for in_s in (0, 1, 60, 3600):
        point = found.at(in_s)
        assert 0 <= point.low <= point.used_ratio <= point.high <= 1
    assert 0 <= found.confidence <= 1


@given(ratios, st.floats(-1e9, 1e9))
def test_only_differences_of_times_matter(used: list[float], shift_s: float) -> None:
    moved = [Sample(round(shift_s) + sample.at_s, sample.used_ratio) for sample in samples(used)]
    one, other = forecast(samples(used)), forecast(moved)
    assert isinstance(one, Forecast) == isinstance(other, Forecast)
    if isinstance(one, Forecast) and isinstance(other, Forecast):
        assert one.slope_per_s == pytest.approx(other.slope_per_s, abs=1e-9)
