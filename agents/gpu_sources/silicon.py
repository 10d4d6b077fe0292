"""A card that is not there, as physics: what load and cooling do to its temperature, its clock and its power."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

GIB = 1 << 30
AMBIENT_C = 30.0
# A card warms and cools behind its load.
_THERMAL_LAG_S = 15
# So long ago a temperature no longer shows; what lies further back is not worked out.
_SETTLED_S = 300
# From here below its limit a card slows itself down, bit by bit, to a third of its work at the limit.
SOFT_LIMIT_C = 5.0
_LEAST_WORK = 0.3
_AT_THE_POWER_CAP, _IDLE = 0.95, 0.02


@dataclass(frozen=True, slots=True)
class Profile:
    """A model of card, in round figures of its data sheet. `full_c` is its temperature under full load when cooled as meant."""

    name: str
    memory_bytes: int
    idle_w: float
    full_w: float
    slow_mhz: int
    fast_mhz: int
    full_c: float = 78.0
    limit_c: float = 90.0


GENERIC = Profile("simulated 24 GB", 24 * GIB, 30.0, 320.0, 1410, 2520)
PROFILES: Mapping[str, Profile] = {
    "generic": GENERIC,
    "t4": Profile("simulated T4", 16 * GIB, 10.0, 70.0, 585, 1590, limit_c=93.0),
    "a10": Profile("simulated A10", 24 * GIB, 20.0, 150.0, 885, 1695, limit_c=95.0),
    "l4": Profile("simulated L4", 24 * GIB, 17.0, 72.0, 795, 2040, limit_c=93.0),
    "l40s": Profile("simulated L40S", 48 * GIB, 35.0, 350.0, 1110, 2520, limit_c=95.0),
    "a100": Profile("simulated A100 80 GB", 80 * GIB, 60.0, 400.0, 1065, 1410, full_c=68.0),
    "h100": Profile("simulated H100 80 GB", 80 * GIB, 70.0, 700.0, 1185, 1980, full_c=70.0, limit_c=87.0),
    "h200": Profile("simulated H200 141 GB", 141 * GIB, 75.0, 700.0, 1185, 1980, full_c=70.0, limit_c=87.0),
    "b200": Profile("simulated B200 180 GB", 180 * GIB, 140.0, 1000.0, 1120, 1965, full_c=70.0, limit_c=87.0),
    "rtx4090": Profile("simulated RTX 4090", 24 * GIB, 22.0, 450.0, 2235, 2520, full_c=72.0),
}


@dataclass(frozen=True, slots=True)
class Drive:
    """What a card is made to do at a moment: ratios from 0 to 1. `cooling` 1 is as meant, 0.5 moves half of the heat away."""

    load: float
    memory_ratio: float
    cooling: float = 1.0


@dataclass(slots=True)
class Silicon:
    """A card's temperature and energy, worked out second by second from what it was made to do.

    The state depends on the drive and the time alone, so two of them that are asked for the same second agree.
    """

    profile: Profile = GENERIC
    temperature_c: float = AMBIENT_C
    energy_joules: float = 0.0
    _second: int | None = field(default=None)

    def advance(self, second: int, drive: Callable[[float], Drive]) -> None:
        """Go on to that second; after a gap begin anew from a settled state some minutes before."""
        if self._second is None or not 0 <= second - self._second <= 2 * _SETTLED_S:
            self._begin(second - _SETTLED_S, drive)
        assert self._second is not None
        for at_s in range(self._second + 1, second + 1):
            self._step(drive(at_s))
        self._second = second

    def work(self) -> float:
        """Return which share of its work the card's heat leaves it: 1 below the soft limit, 0.3 from the limit on."""
        over_c = self.temperature_c - (self.profile.limit_c - SOFT_LIMIT_C)
        return 1 - (1 - _LEAST_WORK) * min(max(over_c / SOFT_LIMIT_C, 0.0), 1.0)

    def power_w(self, load: float) -> float:
        """Return what the card draws."""
        return self.profile.idle_w + (self.profile.full_w - self.profile.idle_w) * load * self.work()

    def sm_clock_mhz(self, load: float) -> int:
        """Return the clock: slow when idle, fast under load, slower again when too hot."""
        profile = self.profile
        return round((profile.slow_mhz + (profile.fast_mhz - profile.slow_mhz) * load) * self.work())

    def clock_event_reasons(self, load: float) -> list[str]:
        """Return what holds the clock back, by NVML's names."""
        if self.temperature_c >= self.profile.limit_c:
            return ["hw_slowdown", "hw_thermal_slowdown"]
        if self.work() < 1:
            return ["sw_thermal_slowdown"]
        if load >= _AT_THE_POWER_CAP:
            return ["sw_power_cap"]
        return ["gpu_idle"] if load <= _IDLE else []

    def _begin(self, second: int, drive: Callable[[float], Drive]) -> None:
        first, profile = drive(second), self.profile
        self._second = second
        self.temperature_c = AMBIENT_C + self._rise_c(profile.idle_w, first.cooling)
        self.energy_joules = max(second, 0) * (profile.idle_w + profile.full_w) / 2

    def _step(self, drive: Drive) -> None:
        power_w = self.power_w(drive.load)
        towards_c = AMBIENT_C + self._rise_c(power_w, drive.cooling)
        self.temperature_c += (towards_c - self.temperature_c) / _THERMAL_LAG_S
        self.energy_joules += power_w

    def _rise_c(self, power_w: float, cooling: float) -> float:
        return (self.profile.full_c - AMBIENT_C) * power_w / self.profile.full_w / max(cooling, 0.05)
