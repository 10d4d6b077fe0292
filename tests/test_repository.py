"""What the repository promises of itself."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "streams", "wire", "agents", "gateway", "cli")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@cache
def imported() -> set[str]:
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", ["faust", "aiokafka", "pynvml", "pydantic", "httpx", "prometheus_client", "orjson"])
def test_product_code_uses_each_package_it_was_asked_to_use(package: str) -> None:
    assert package in imported()


def test_there_are_few_direct_dependencies_and_each_has_its_reason() -> None:
    assert len(PYPROJECT["project"]["dependencies"]) <= 18
    block = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("\n]")[0]
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    unexplained = [
        line for before, line in zip(["", *lines], lines, strict=False) if line[0] == '"' and before[:1] != "#"
    ]
    assert [] == unexplained


def test_the_lock_pins_every_file_by_hash_and_names_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    blocks = re.split(r"^(?=[a-z0-9][a-z0-9._-]*==)", lock, flags=re.MULTILINE)[1:]
    assert len(blocks) > 50
    assert [] == [block.partition("==")[0] for block in blocks if "--hash=sha256:" not in block]


def test_the_lock_names_the_extras_that_a_package_asks_of_another() -> None:
    """Without them pip takes the newest release for `coverage[toml]`, and refuses it for want of a hash."""
    locked = re.findall(
        r"^([a-z0-9._-]+)(?:\[(.*?)\])?==", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE
    )
    extras = {name: set(filter(None, re.split(r",\s*", given))) for name, given in locked}
    missing = set()
    for name in extras:
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        for each in map(Requirement, wanted):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                missing |= {
                    (each.name, extra) for extra in each.extras - extras.get(canonicalize_name(each.name), set())
                }
    assert set() == missing


def test_the_wheel_carries_every_package() -> None:
    assert list(PACKAGES) == PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_only_readings_and_a_servers_dates_know_the_wall_clock() -> None:
    """Deadlines, retries and leases go by the broker's time and monotonic seconds: a clock that is set changes none of them."""
    found = {
        str(path.relative_to(ROOT))
        for package in ("schemas", "streams", "wire", "agents", "gateway")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\bwall_ms\b|\btime\.time\b|datetime\.now|utcnow", path.read_text())
    }
    assert found == {"wire/clock.py", "agents/gpu_publisher.py", "agents/gpu_metrics.py", "agents/backends/refusals.py"}
