"""Programs that some tests need and Debian packages: installed once where that may be done, named elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from cli.embedded.jars import locked

_LIMIT_S = 150
_APT = ["apt-get", "-qq", "-o", f"DPkg::Lock::Timeout={_LIMIT_S}"]


def program(name: str, package: str) -> str:
    """Return the path of a program, after installing Debian's `package` where it is missing and we may (root on Debian).

    `package` may name several, by spaces. Where it cannot be had the test is skipped, with `CI=true` failed, and the package named.
    """
    found = shutil.which(name)
    detail = ""
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with locked(Path(tempfile.gettempdir()) / "triage-tests-apt.lock"):
            detail = "" if shutil.which(name) else _install(package)
        found = shutil.which(name)
    return found or lacks(f"this test needs `{name}`: install Debian's package {package}. {detail}".strip())


def lacks(what: str) -> str:
    """Skip the test, with `CI=true` fail it, since the machine lacks something."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def _install(package: str) -> str:
    """Install a package and return what apt said if it could not."""
    install = [*_APT, "install", "--yes", "--no-install-recommends", *package.split()]
    said = _run(install)
    if said and not _run([*_APT, "update"]):  # a new machine has no package lists, an older one may have stale ones
        said = _run(install)
    return said


def _run(command: list[str]) -> str:
    try:
        ended = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(command[:5])} did not end within {_LIMIT_S} s"
    return (ended.stderr.strip() or f"exit {ended.returncode}") if ended.returncode else ""
