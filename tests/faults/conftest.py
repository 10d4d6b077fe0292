"""How long the campaign may take: its length is an option, so its time-out is too."""

from __future__ import annotations

import pytest

_CAMPAIGN = "test_under_seeded_faults_nothing_is_lost_and_nothing_told_changes"
# What a campaign takes besides its load: starting everything, and waiting for what is open.
_AROUND_S = 600.0
_SHORT_S = 30.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seconds: float = config.getoption("--fault-seconds") or _SHORT_S
    for item in items:
        if item.name == _CAMPAIGN:
            item.add_marker(pytest.mark.timeout(seconds + _AROUND_S))
