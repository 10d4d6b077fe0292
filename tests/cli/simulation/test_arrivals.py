"""What arrives when."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cli.errors import SettingsError
from cli.simulation.arrivals import Arrival, arrivals
from cli.simulation.scenario import Load


def of(until_s: float = 1000, seed: str = "1", **fields: Any) -> list[Arrival]:
    return list(arrivals(Load.model_validate(fields), seed, until_s))


def between(found: list[Arrival], from_s: float, until_s: float) -> int:
    return sum(from_s <= each.at_s < until_s for each in found)


def test_should_come_at_random_at_the_rate() -> None:
    found = of(rate=10)
    assert 10_000 == pytest.approx(len(found), rel=0.05)
    gaps = [b.at_s - a.at_s for a, b in pairwise(found)]
    assert 0.1 == pytest.approx((sum((gap - 0.1) ** 2 for gap in gaps) / len(gaps)) ** 0.5, rel=0.1)


def test_should_come_evenly_when_steady() -> None:
    assert [0.5, 1.0, 1.5] == [each.at_s for each in of(2, rate=2, arrivals="steady")]


def test_should_come_in_bursts_and_not_between_them() -> None:
    found = of(300, rate=20, arrivals="bursty", on_s=10, off_s=40, from_s=50)
    assert 0 == between(found, 0, 50)
    for start_s in range(50, 300, 50):
        assert 200 == pytest.approx(between(found, start_s, start_s + 10), rel=0.3)
        assert 0 == between(found, start_s + 10.001, start_s + 50)


def test_should_follow_the_curve() -> None:
    found = of(400, rate=100, arrivals="curve", curve=[[100, 0], [200, 1], [300, 0.5]])
    assert 0 == between(found, 0, 100)
    assert 5000 == pytest.approx(between(found, 100, 200), rel=0.05)
    assert 7500 == pytest.approx(between(found, 200, 300), rel=0.05)
    assert 5000 == pytest.approx(between(found, 300, 400), rel=0.05)


def test_should_have_the_backlog_there_at_the_start() -> None:
    assert [0.0, 0.0, 0.0, 1.0] == [each.at_s for each in of(1.5, rate=1, arrivals="steady", backlog=3)]


def test_should_draw_tokens_around_the_median_up_to_the_longest_answer() -> None:
    found = of(rate=10, prompt_tokens=70, answer_tokens={"median": 100, "p99": 400}, max_tokens=300)
    answers = sorted(each.answer_tokens for each in found)
    assert {70} == {each.prompt_tokens for each in found}
    assert 100 == pytest.approx(answers[len(answers) // 2], rel=0.05)
    assert 300 == answers[-1]


def test_should_be_the_same_for_the_same_seed_and_another_for_another() -> None:
    def told(seed: str) -> list[tuple[float, int, float]]:
        return [(each.at_s, each.answer_tokens, each.noise) for each in of(50, seed, rate=5)]

    assert told("1") == told("1")
    assert told("1") != told("2")


def test_should_replay_a_recorded_log_and_fill_in_what_it_does_not_say(tmp_path: Path) -> None:
    file = tmp_path / "day.jsonl"
    lines = [
        {"at_s": 3, "lane": "high", "tenant": "ward", "model": "m", "prompt_tokens": 7, "answer_tokens": 9},
        {"at_s": 1, "deadline_s": 5, "max_tokens": 50},
        {"at_s": 99},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    first, second = of(90, lane="low", file=file, from_s=10, prompt_tokens=20, answer_tokens=30)
    assert (11.0, "low", 20, 30, 50, 16.0) == (
        first.at_s,
        first.kind.lane,
        first.prompt_tokens,
        first.answer_tokens,
        first.kind.max_tokens,
        first.due_s,
    )
    assert (13.0, "high", "ward", "m", 7, 9) == (
        second.at_s,
        second.kind.lane,
        second.kind.tenant,
        second.kind.request.model,
        second.prompt_tokens,
        second.answer_tokens,
    )


def test_should_replay_results_from_when_the_first_was_made(tmp_path: Path) -> None:
    golden = json.loads(Path("tests/golden/result-completed.json").read_text())
    later = {**golden, "timing": {**golden["timing"], "created_at_ms": golden["timing"]["created_at_ms"] + 2500}}
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(later) + "\n" + json.dumps(golden))
    found = of(file=file)
    assert [0.0, 2.5] == [each.at_s for each in found]
    usage = golden["usage"]
    assert (golden["priority"], golden["tenant"], usage["prompt_tokens"], usage["completion_tokens"]) == (
        found[0].kind.lane,
        found[0].kind.tenant,
        found[0].prompt_tokens,
        found[0].answer_tokens,
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no JSON", "day.jsonl:2: neither a task"),
        ('{"at_s": 1, "lane": "urgent"}', "day.jsonl:2: lane "),
        ('{"lane": "high"}', "day.jsonl:2: at_s Field required"),
        ('{"timing": {}}', "day.jsonl:2: neither a task"),
    ],
)
def test_should_name_the_line_that_cannot_be_read(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "day.jsonl"
    file.write_text(f'{{"at_s": 0}}\n{line}\n')
    with pytest.raises(SettingsError) as caught:
        of(file=file)
    assert told in str(caught.value)
