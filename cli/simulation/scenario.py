"""What is simulated: model servers, loads and the policies to compare, from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cli.configuration import fault
from cli.errors import SettingsError
from cli.simulation.policy import Policy
from cli.toml_lines import KeyPath, key_lines
from schemas.request import DEFAULT_TENANT
from schemas.topics import Lane
from streams.settings import Settings

DEFAULT_MODEL = "model"
_SHIPPED = files("cli.simulation") / "scenarios"


# What a policy changes of `[settings.scheduling]`.
_SCHEDULING: Mapping[Policy, Mapping[str, object]] = {
    Policy.AS_SET: {},
    Policy.FIFO: {},
    Policy.STRICT: {"policy": "strict", "size_aware": False},
    Policy.WEIGHTS: {"policy": "weights", "size_aware": False},
    Policy.SIZE_AWARE: {"policy": "weights", "size_aware": True},
}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Tokens(_Table):
    """A log-normal number of tokens by its median and 99th percentile; without `p99`, or as a bare number, always the median."""

    median: int = Field(ge=1)
    p99: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, given: object) -> object:
        return {"median": given} if isinstance(given, int) else given

    @model_validator(mode="after")
    def _ascending(self) -> Tokens:
        if self.p99 is not None and self.p99 < self.median:
            raise ValueError("p99 must not be below the median")
        return self


class Load(_Table):
    """Tasks of one kind. `rate` is tasks per second while it comes at full strength.

    `poisson`: at random; `steady`: evenly; `bursty`: at random for `on_s`, then nothing for `off_s`, and so on; `curve`: at random,
    at a share of the rate that runs in straight lines through `curve`'s points of (seconds, share).
    `file` replays a recorded log instead: see `cli/simulation/arrivals.py`.
    """

    lane: Lane = Lane.NORMAL
    tenant: str = Field(DEFAULT_TENANT, min_length=1)
    model: str | None = None
    agent_type: str | None = None
    arrivals: Literal["poisson", "steady", "bursty", "curve"] = "poisson"
    rate: float = Field(0, ge=0)
    from_s: float = Field(0, ge=0)
    until_s: float | None = Field(None, gt=0)
    on_s: float | None = Field(None, gt=0)
    off_s: float | None = Field(None, gt=0)
    curve: list[tuple[float, float]] = Field(default_factory=list)
    backlog: int = Field(0, ge=0, description="Tasks that wait at the start.")
    file: Path | None = None
    prompt_tokens: Tokens = Tokens(median=200)
    answer_tokens: Tokens = Tokens(median=100)
    max_tokens: int | None = Field(None, ge=1, description="The longest answer allowed; absent: twice the median.")
    deadline_s: float | None = Field(None, gt=0, description="From the arrival; absent: none.")
    budget: Literal["live", "batch"] | None = None

    @property
    def longest_answer(self) -> int:
        return self.max_tokens or 2 * self.answer_tokens.median

    @field_validator("curve")
    @classmethod
    def _forwards(cls, curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
        times = [at_s for at_s, _ in curve]
        if times != sorted(times) or any(not 0 <= share <= 1 for _, share in curve):
            raise ValueError("must be [seconds, share] pairs, seconds ascending and shares from 0 to 1")
        return curve

    @model_validator(mode="after")
    def _complete(self) -> Load:
        if self.arrivals == "bursty" and (self.on_s is None or self.off_s is None):
            raise ValueError('arrivals = "bursty" needs on_s and off_s')
        if self.arrivals == "curve" and len(self.curve) < 2:
            raise ValueError('arrivals = "curve" needs a curve of two points or more')
        if not (self.rate or self.backlog or self.file):
            raise ValueError("nothing arrives: set rate, backlog or file")
        return self


class Change(_Table):
    """What becomes of a server for a while: its calls take `slowdown` times as long, or it is `down`."""

    at_s: float = Field(ge=0)
    for_s: float = Field(gt=0)
    slowdown: float = Field(1, gt=0)
    down: bool = False


class BackendModel(_Table):
    """A model server: a call takes `fixed_ms` + tokens × their ms, times a log-normal noise of mean about 1.

    Calls beyond `slots` wait in the server, first come first served. `one_model`: it holds one model at a time, and takes `swap_s`
    to load another when no call runs.
    """

    name: str
    slots: int = Field(8, ge=1, le=4096)
    fixed_ms: float = Field(20, ge=0)
    prompt_token_ms: float = Field(0, ge=0)
    answer_token_ms: float = Field(0, ge=0)
    noise: float = Field(0, ge=0, le=2, description="Standard deviation of the logarithm.")
    models: list[str] = Field(default_factory=lambda: [DEFAULT_MODEL], min_length=1)
    one_model: bool = False
    swap_s: float = Field(0, ge=0)
    changes: list[Change] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict, description="More of its [[backends]] entry.")


class Scenario(_Table):
    """Everything. `settings` is what `triage.toml` would say; its backends come from `backends`."""

    title: str = ""
    seconds: float = Field(300, gt=0)
    seed: int = 0
    workers: int = Field(1, ge=1, le=64, description="Each has its part of the keys and of every backend's slots.")
    policies: list[Policy] = Field(default_factory=lambda: [Policy.AS_SET], min_length=1)
    backends: list[BackendModel] = Field(min_length=1)
    loads: list[Load] = Field(min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)

    def worker_settings(self, policy: Policy) -> Settings:
        """Return what the worker of a run is set to. Raises: ValidationError."""
        backends = [
            {
                "name": row.name,
                "url": "http://simulated",
                "models": row.models,
                "max_concurrency": -(-row.slots // self.workers),
            }
            | row.settings
            for row in self.backends
        ]
        return Settings.model_validate({**self.settings, "backends": backends, **self._scheduling(policy)})

    def _scheduling(self, policy: Policy) -> dict[str, Any]:
        given = self.settings.get("scheduling", {})
        changed = _SCHEDULING[policy]
        return {"scheduling": {**given, **changed} if isinstance(given, dict) else given}

    @field_validator("settings")
    @classmethod
    def _without_backends(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if "backends" in settings:
            raise ValueError(
                "must not name backends: [[backends]] of the scenario are them, each with its own settings"
            )
        return settings


def shipped() -> list[str]:
    """Return the names of the scenarios that come with Triage."""
    return sorted(each.name.removesuffix(".toml") for each in _SHIPPED.iterdir() if each.name.endswith(".toml"))


def load(given: str, changed: Mapping[str, object] | None = None) -> Scenario:
    """Return the scenario of a file, or the shipped one of that name. `changed` is in place of what it says, where not None.

    Raises: SettingsError, one line for each fault.
    """
    path = Path(given)
    try:
        if not path.exists() and given in shipped():
            text = (_SHIPPED / f"{given}.toml").read_text()
        else:
            text = path.read_text()
        values = tomllib.loads(text) | {key: value for key, value in (changed or {}).items() if value not in (None, [])}
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{given}: not TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{given}: not UTF-8.") from error
    except OSError as error:
        names = ", ".join(shipped())
        raise SettingsError(
            f"The scenario {given} cannot be read ({error.strerror}). Those that come with Triage are: {names}."
        ) from error
    lines = key_lines(text)

    def told(error: ValidationError, model: type[BaseModel], place: Callable[[KeyPath], KeyPath]) -> SettingsError:
        faults = []
        for each in error.errors(include_input=False):
            path = tuple(str(part) for part in each["loc"])
            full = place(path)
            line = next((lines[full[:length]] for length in range(len(full), 0, -1) if full[:length] in lines), 1)
            above = full[: len(full) - len(path)]
            faults.append(fault(each["type"], path, each["msg"], f"{given}:{line}", model, above))
        return SettingsError("\n".join(faults))

    try:
        scenario = Scenario.model_validate(values)
    except ValidationError as error:
        raise told(error, Scenario, lambda path: path) from error
    try:
        for policy in Policy:
            scenario.worker_settings(policy)
    except ValidationError as error:
        raise told(error, Settings, _within_settings) from error
    return scenario.model_copy(update={"loads": [_found(row, path) for row in scenario.loads]})


def _within_settings(path: KeyPath) -> KeyPath:
    return path if path[:1] == ("backends",) else ("settings", *path)


def _found(row: Load, scenario: Path) -> Load:
    """Return the load with its recorded log's place, which is given from where the scenario lies."""
    if row.file is None:
        return row
    file = scenario.parent / row.file
    if not file.exists():
        raise SettingsError(f"{scenario}: loads.file: there is no {file}.")
    return row.model_copy(update={"file": file})
