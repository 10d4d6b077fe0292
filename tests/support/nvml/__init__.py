"""A `libnvidia-ml.so.1` that answers what a file says: NVML without a card, through the real ABI."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.support.debian import program

SOURCE = Path(__file__).with_name("libnvidia-ml.c")
NAME = "libnvidia-ml.so.1"
GIB = 1 << 30


def build(folder: Path, *flags: str) -> Path:
    """Return the library, built into `folder`."""
    library = folder / NAME
    command = [program("gcc", "gcc libc6-dev"), "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", *flags]
    # Without a soname, by which the loader would take it for the driver's own where that is asked for later.
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return library


@contextmanager
def loaded(library: Path) -> Iterator[None]:
    """Make pynvml call `library`, and afterwards what it called before."""
    before = pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache)
    pynvml.nvmlLib = ctypes.CDLL(str(library))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        yield
    finally:
        pynvml.nvmlLib = before[0]
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml._nvmlGetFunctionPointer_cache.update(before[1])


def cards_or_skip() -> int:
    """Return how many cards the real driver of this machine shows; without one, skip, in CI too: few machines have a card."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no card of NVIDIA's here: {error}")
    count: int = pynvml.nvmlDeviceGetCount()
    pynvml.nvmlShutdown()
    return count or pytest.skip("the driver here sees no card")


class Machine:
    """What the library answers, in the file that it reads; changes hold from its next call on."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._lines: dict[str, Any] = {}
        monkeypatch.setenv("FAKE_NVML", str(path))
        self.set(count=0)

    def set(self, values: dict[str, Any] | None = None, **more: Any) -> None:
        """Set lines; None takes one away."""
        self._lines |= {**(values or {}), **more}
        text = "".join(f"{key}={value}\n" for key, value in self._lines.items() if value is not None)
        beside = self._path.with_suffix(".new")
        beside.write_bytes(text.encode(errors="surrogateescape"))
        beside.replace(self._path)

    def card(self, index: int = 0, **values: Any) -> None:
        """Put a card in, or change one; a name's double underscore is a dot (`fail__PowerUsage=3`)."""
        known = {
            "uuid": f"GPU-{index}",
            "name": "NVIDIA L4",
            "total": 24 * GIB,
            "used": 6 * GIB,
            "utilization": 37,
            "power": 71_500,
            "energy": 1_234_567,
            "temperature": 61,
            "slowdown": 90,
            "reasons": 0x44,
            "clock": 2040,
        }
        is_new = f"{index}.uuid" not in self._lines
        changes = {**(known if is_new else {}), **values}
        count = max(int(self._lines.get("count") or 0), index + 1) if is_new else self._lines["count"]
        self.set({"count": count, **{f"{index}.{key.replace('__', '.')}": value for key, value in changes.items()}})
