"""Python, the libraries that must be of one release, and the codecs of compressed batches."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version

from cli.checks.finding import Finding, error, ok, warning

LIBRARIES, CODECS = "libraries", "codecs"
_DISTRIBUTION = "triage-kafka"
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;,]+)$")
_REINSTALL = "install triage-kafka anew into an environment of its own, as its lock file has it"
_SAMPLE = b"triage " * 64

Codec = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]


def look() -> list[Finding]:
    """Look at this environment."""
    wanted = pinned()
    return [*libraries(wanted, {name: _installed(name) for name in wanted}), *codecs(_codecs())]


def pinned() -> dict[str, str]:
    """Return name -> version of what Triage needs in one release exactly; {} when it runs without being installed."""
    try:
        needed = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    return {match[1]: match[2] for each in needed if (match := _PINNED.match(each))}


def libraries(wanted: Mapping[str, str], found: Mapping[str, str | None]) -> list[Finding]:
    """Return which library is not of the release that Triage corrects and was tried with."""
    wrong = [
        error(
            LIBRARIES,
            f"{name} is {found[name] or 'not installed'}, Triage needs {needed} exactly",
            f"pip install '{name}=={needed}'",
        )
        for name, needed in wanted.items()
        if found[name] != needed
    ]
    if wrong:
        return wrong
    if not wanted:
        return [warning(LIBRARIES, f"{_DISTRIBUTION} is not installed, so its libraries are unknown", _REINSTALL)]
    rows = ", ".join(f"{name} {release}" for name, release in wanted.items())
    return [ok(LIBRARIES, f"Python {platform.python_version()}, {rows}")]


def codecs(known: Mapping[str, Codec]) -> list[Finding]:
    """Return which codec does not give back what it was given; a batch in such a one would stall its partition."""
    broken = {name: reason for name, codec in known.items() if (reason := _why_broken(*codec)) is not None}
    if not broken:
        return [ok(CODECS, ", ".join(known))]
    return [
        error(CODECS, f"{name}: {reason}; a batch compressed so stalls its partition", "pip install cramjam")
        for name, reason in broken.items()
    ]


def _why_broken(encode: Callable[[bytes], bytes], decode: Callable[[bytes], bytes]) -> str | None:
    try:
        return None if bytes(decode(encode(_SAMPLE))) == _SAMPLE else "does not give back what it was given"
    except Exception as failure:  # noqa: BLE001 - whatever a codec raises, it does not work
        return f"{type(failure).__name__}: {failure}"


def _codecs() -> dict[str, Codec]:
    from aiokafka import codec

    names = ("gzip", "snappy", "lz4", "zstd")
    return {name: (getattr(codec, f"{name}_encode"), getattr(codec, f"{name}_decode")) for name in names}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
