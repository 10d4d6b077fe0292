"""Makes the archive that saves about a second at every later start of a Kafka node.

Run as a module it can be a child of its own: `python -m cli.embedded.aot`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from cli.embedded.errors import EmbeddedError
from cli.embedded.jars import locked
from cli.embedded.jvm import Jvm, ensure_jvm
from cli.embedded.kafka import KafkaCluster

_WRITE_S = 120.0  # the runtime writes the archive while it ends: 7 s on an idle machine


def train_aot(*, jvm: Jvm | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Return the AOT archive for this runtime, these flags and these jars; makes it (about 9 s) unless it is there.

    Clusters use it by themselves from then on. Archives of other versions are removed. Call it from the main thread.

    Raises: EmbeddedError when it could not be made; Kafka works as well without it.
    """
    jvm = jvm or ensure_jvm()
    archive = jvm.archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with locked(archive.parent / "aot.lock"):
        if not archive.exists():
            if progress:
                progress("Preparing faster starts of Kafka, once on this machine")
            _train(jvm, archive)
    return archive


def _train(jvm: Jvm, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".training-") as folder:
        draft = Path(folder) / archive.name
        cluster = KafkaCluster(jvm=jvm, jvm_flags=(f"-XX:AOTCacheOutput={draft}",))
        cluster.start()
        cluster.stop(_WRITE_S)
        if not draft.exists():
            raise EmbeddedError("The Java runtime wrote no archive: Kafka starts a second slower, and works as well.")
        for old in archive.parent.glob("*.aot"):
            old.unlink()
        draft.replace(archive)


if __name__ == "__main__":
    train_aot()
