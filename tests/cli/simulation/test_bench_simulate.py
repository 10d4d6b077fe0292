"""`triage bench --simulate` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cli.main import main
from cli.simulation import running, scenario
from cli.simulation.simulator import Simulation

SMALL = """
title = "Two lanes"
seconds = 20
policies = ["fifo", "weights"]
[[backends]]
name = "gpu"
slots = 2
fixed_ms = 100
[[loads]]
lane = "critical"
tenant = "ward"
rate = 5
[[loads]]
lane = "low"
rate = 60
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def test_should_show_the_policies_side_by_side(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["bench", "--simulate", str(small)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Two lanes (20 s of virtual time")
    assert [["critical", "fifo"], ["critical", "weights"], ["low", "fifo"], ["low", "weights"]] == [
        line.split()[:2] for line in lines if line.startswith(("critical", "low"))
    ]
    assert "weights: 0 lost, 0 ended twice." in lines


def test_should_print_one_json_object_and_take_flags_in_place_of_the_file(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--json", "--policy", "as set", "--seconds", "5", "--seed", "7"]
    assert 0 == main(["bench", "--simulate", str(small), *arguments])
    report = json.loads(capsys.readouterr().out)
    assert (5.0, 7, ["as set"]) == (report["seconds"], report["seed"], [run["policy"] for run in report["runs"]])
    row = report["runs"][0]["lanes"]["critical"]
    assert {"offered", "served", "wait_s", "total_s", "share", "due_share", "late"} <= set(row)


def test_should_draw_a_picture_that_needs_nothing_from_elsewhere(small: Path, tmp_path: Path) -> None:
    picture = tmp_path / "small.svg"
    assert 0 == main(["bench", "--simulate", str(small), "--picture", str(picture)])
    root = ElementTree.parse(picture).getroot()
    told = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Two lanes", "critical", "low", "fifo", "weights", "due"} <= set(told)
    assert "href" not in picture.read_text()


def test_should_print_what_there_is_when_interrupted(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Simulation.advance

    def interrupted(self: Simulation, until_s: float) -> None:
        advance(self, until_s)
        if self.policy.value == "weights" and until_s >= 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "advance", interrupted)
    assert 130 == main(["bench", "--simulate", str(small)])
    said = capsys.readouterr().out
    assert "fifo: 0 lost, 0 ended twice.\n" in said
    assert "weights: 0 lost, 0 ended twice; stopped at 8 s." in said


def test_should_tell_how_far_it_is(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter(range(10_000))
    running.run("small", scenario.load(str(small)), lambda: float(next(ticks)))
    assert "fifo: 1 of 20 s" in capsys.readouterr().err


FAULTS = [
    (("rate = 60", "rat = 60"), "small.toml:15: loads.1.rat is not a setting; did you mean rate?"),
    (("rate = 60", 'arrivals = "bursty"\nrate = 1'), 'arrivals = "bursty" needs on_s and off_s'),
    (("rate = 60", ""), "small.toml:13: loads.1 nothing arrives: set rate, backlog or file."),
    (("rate = 60", 'file = "none.jsonl"'), "there is no "),
    (("slots = 2", "slots = 0"), "small.toml:7: backends.0.slots should be greater than or equal to 1."),
    (("slots = 2", "settings = { kind = 3 }"), "backends.0.kind should be"),
    (('"weights"', '"best"'), "small.toml:4: policies.1 should be"),
    (
        ("seconds = 20", "seconds = 20\n[settings.lanes.low]\nweigt = 1"),
        "settings.lanes.low.weigt is not a setting; did",
    ),
    (
        ("seconds = 20", "seconds = 20\n[settings.lanes.low]\nweight = 0"),
        "small.toml:5: settings.lanes.low.weight should",
    ),
    (("seconds = 20", "seconds = 20\n[[settings.backends]]\nname = 'b'"), "settings must not name backends"),
    (("seconds = 20", "seconds = = 20"), "small.toml: not TOML"),
]


@pytest.mark.parametrize(("change", "told"), FAULTS)
def test_should_name_key_and_line_of_what_is_wrong(
    small: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], told: str
) -> None:
    small.write_text(SMALL.replace("policies", "# policies", change[0].startswith("seconds")).replace(*change))
    assert 2 == main(["bench", "--simulate", str(small)])
    assert told in capsys.readouterr().err.replace(f"{small.parent}/", "")


def test_should_name_the_scenarios_there_are_when_it_does_not_know_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["bench", "--simulate", "overlord"])
    assert ", ".join(scenario.shipped()) in capsys.readouterr().err


def test_should_say_what_to_do_when_nothing_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["bench", "--seconds", "3"])
    assert "triage bench --simulate FILE" in capsys.readouterr().err


@pytest.mark.parametrize("name", scenario.shipped())
def test_should_read_every_scenario_that_comes_with_it(name: str) -> None:
    found: Any = scenario.load(name)
    assert found.title
