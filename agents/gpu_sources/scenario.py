"""What simulated cards are made to do: a walk by a seed, and what a scenario's file says instead.

    seed = 7
    [[cards]]                                  # card 0; the K of simulated:K says how many there are
    profile = "h100"
    load = [[0, 0.2], [60, 0.9]]               # [second, value]: it moves evenly between, and stays after the last
    memory_ratio = [[0, 0.3], [120, 0.97]]
    cooling = [[30, 1.0], [40, 0.4]]           # a fan that fails
    [[cards]]
    repeat_s = 300                             # begins anew
    noise_ratio = 0.01                         # of the memory, one standard deviation
    lost = [[40, 70]]                          # from second to second
    faults = [["xid_79", 50, 80]]
    absent = [["temperature_c", 0, 20]]

Seconds count from when the reader began.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, field
from itertools import pairwise
from math import pi, sin
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agents.gpu_sources.silicon import GENERIC, PROFILES, Drive, Profile

_Ratio = Annotated[float, Field(ge=0, le=1)]
_Frames = list[tuple[float, _Ratio]]


class BadScenario(ValueError):
    """The file is no scenario; the message says what is wrong where."""


class CardScript(BaseModel):
    """What one card does; what is not said follows the walk."""

    model_config = ConfigDict(extra="forbid")

    profile: str = "generic"
    load: _Frames = Field(default_factory=list)
    memory_ratio: _Frames = Field(default_factory=list)
    cooling: _Frames = Field(default_factory=list)
    noise_ratio: float = Field(0.0, ge=0, le=0.5)
    repeat_s: float | None = Field(None, gt=0)
    lost: list[tuple[float, float]] = Field(default_factory=list)
    faults: list[tuple[str, float, float]] = Field(default_factory=list)
    absent: list[tuple[str, float, float]] = Field(default_factory=list)

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PROFILES:
            raise ValueError(f"none of {', '.join(PROFILES)}")
        return name

    @field_validator("load", "memory_ratio", "cooling")
    @classmethod
    def _in_order(cls, frames: _Frames) -> _Frames:
        if any(later[0] <= sooner[0] for sooner, later in pairwise(frames)):
            raise ValueError("seconds must rise")
        return frames


class Scenario(BaseModel):
    """What the cards do, in the order of their index; cards beyond the list follow the walk."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 0
    cards: list[CardScript] = Field(default_factory=list)


def load_scenario(path: Path) -> Scenario:
    """Return the scenario in a TOML file. Raises: BadScenario."""
    try:
        return Scenario.model_validate(tomllib.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise BadScenario(f"{path}: {_told(error)}") from error


@dataclass(frozen=True, slots=True)
class Wave:
    """A smooth walk between 0 and 1: two sines around the middle. It is a function of the time alone."""

    periods_s: tuple[float, float]
    phases: tuple[float, float]
    amplitudes: tuple[float, float] = (0.35, 0.10)

    def at(self, t_s: float) -> float:
        """Return the value at `t_s`."""
        terms = zip(self.amplitudes, self.periods_s, self.phases, strict=True)
        return 0.5 + sum(a * sin(2 * pi * t_s / period + phase) for a, period, phase in terms)


@dataclass(slots=True)
class Course:
    """What one card is made to do over time, by its script and its own walk."""

    seed: int
    index: int
    script: CardScript = field(default_factory=CardScript)
    _memory: Wave = field(init=False)
    _load: Wave = field(init=False)

    def __post_init__(self) -> None:
        dice = random.Random(f"{self.seed}/{self.index}")  # noqa: S311 - a walk, no secret
        self._memory, self._load = _wave(dice, 600.0, 150.0), _wave(dice, 90.0, 20.0)

    @property
    def profile(self) -> Profile:
        """The model of the card."""
        return PROFILES.get(self.script.profile, GENERIC)

    def drive(self, at_s: float, since_s: float) -> Drive:
        """Return what the card is made to do at second `at_s` of the walk, `since_s` after the scenario began."""
        script, since_s = self.script, self._within(since_s)
        memory_ratio = _value(script.memory_ratio, since_s, 0.1 + 0.8 * self._memory.at(at_s))
        if script.noise_ratio:
            dice = random.Random(f"{self.seed}/{self.index}/{round(at_s)}")  # noqa: S311 - noise, no secret
            memory_ratio = min(max(memory_ratio + dice.gauss(0, script.noise_ratio), 0.0), 1.0)
        load = _value(script.load, since_s, self._load.at(at_s))
        return Drive(load, memory_ratio, _value(script.cooling, since_s, 1.0))

    def is_lost(self, since_s: float) -> bool:
        """Whether the card is off the bus."""
        return any(begin <= self._within(since_s) < end for begin, end in self.script.lost)

    def faults(self, since_s: float) -> list[str]:
        """Return what is broken about it."""
        return _during(self.script.faults, self._within(since_s))

    def absent(self, since_s: float) -> list[str]:
        """Return the readings that it does not give."""
        return _during(self.script.absent, self._within(since_s))

    def _within(self, since_s: float) -> float:
        since_s = max(since_s, 0.0)
        return since_s if self.script.repeat_s is None else since_s % self.script.repeat_s


def _wave(dice: random.Random, slow_s: float, quick_s: float) -> Wave:
    return Wave(
        (slow_s * dice.uniform(0.8, 1.25), quick_s * dice.uniform(0.8, 1.25)),
        (dice.uniform(0, 2 * pi), dice.uniform(0, 2 * pi)),
    )


def _value(frames: _Frames, at_s: float, otherwise: float) -> float:
    if not frames:
        return otherwise
    if at_s <= frames[0][0]:
        return frames[0][1]
    for (begin_s, begin), (end_s, end) in pairwise(frames):
        if at_s <= end_s:
            return begin + (end - begin) * (at_s - begin_s) / (end_s - begin_s)
    return frames[-1][1]


def _during(spans: list[tuple[str, float, float]], at_s: float) -> list[str]:
    return [name for name, begin, end in spans if begin <= at_s < end]


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
