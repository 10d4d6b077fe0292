"""What `triage gpu-publisher` costs with eight cards: memory and CPU, on simulated cards and through NVML's ABI.

The second asks a library that stands in for the driver's and reads a file at each call, so a real driver costs less.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.harness import child, cpu_s, rss_mb
from cli.embedded.kafka import KafkaCluster
from streams.settings import KafkaSettings
from tests.support.nvml import Machine, build

CARDS = 8
_SETTINGS = {"KAFKA__REPLICATION": "1", "METRICS__PORT": "0", "ALLOW_INSECURE_DEV": "true"}


def main(seconds: float = 20) -> None:
    """Print a row per source."""
    print(f"\ntriage gpu-publisher, {CARDS} cards once a second, {seconds:.0f} s (goal: 55 MB, 1 % of a core)")
    print(f"{'source':<28}{'memory MB':>10}{'CPU %':>8}")
    with KafkaCluster() as cluster, tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        folder = Path(path)
        _topics(cluster.bootstrap)
        machine = Machine(folder / "machine", patch)
        for index in range(CARDS):
            machine.card(index)
        for name, value in _SETTINGS.items():
            patch.setenv(f"TRIAGE_{name}", value)
        patch.setenv("TRIAGE_KAFKA__BOOTSTRAP", cluster.bootstrap)
        patch.setenv("LD_LIBRARY_PATH", str(build(folder).parent))
        for title, source in (("simulated", f"simulated:{CARDS}"), ("nvml (stand-in library)", "nvml")):
            patch.setenv("TRIAGE_GPUS__SOURCE", source)
            _row(title, seconds)


def _topics(bootstrap: str) -> None:
    import asyncio

    from wire.topics import apply

    asyncio.run(apply(KafkaSettings(bootstrap=bootstrap, replication=1)))


def _row(title: str, seconds: float) -> None:
    with child([sys.executable, "-m", "cli", "gpu-publisher", "--json"]) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "ready"
        time.sleep(3)
        used = cpu_s(process.pid)
        time.sleep(seconds)
        print(f"{title:<28}{rss_mb(process.pid):>10.1f}{(cpu_s(process.pid) - used) / seconds * 100:>8.2f}")


if __name__ == "__main__":
    main()
