"""Small scenarios for tests, and a run of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.simulation.policy import Policy
from cli.simulation.scenario import Scenario
from cli.simulation.simulator import Simulation

GPU = {"name": "gpu", "slots": 2, "fixed_ms": 100}


def scenario(*loads: Mapping[str, Any], backends: Any = (GPU,), seconds: float = 30, **fields: Any) -> Scenario:
    """Return a scenario; no slot is reserved unless `settings` says so."""
    settings = {"lanes": {"critical": {"reserved_slots": 0}}}
    return Scenario.model_validate(
        {"seconds": seconds, "backends": backends, "loads": loads, "settings": settings, **fields}
    )


def ran(given: Scenario, policy: Policy = Policy.AS_SET, seconds: float | None = None) -> Simulation:
    """Return the simulation at its end, or after `seconds`; that nothing was lost or ended twice is checked."""
    simulation = Simulation(given, policy)
    simulation.advance(given.seconds if seconds is None else seconds)
    assert (0, 0) == (simulation.lost, simulation.account.ended_twice)
    return simulation
