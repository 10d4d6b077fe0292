"""Where the log of an embedded Kafka lies: claimed by one process at a time, formatted without Java."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import BinaryIO

from cli.embedded.errors import DataInUse, DataMismatch, EmbeddedError, explained
from cli.embedded.nodes import Node


class DataFolder:
    """The folder of a cluster: a named one is kept and locked, without a name it is made anew and thrown away."""

    def __init__(self, named: Path | None) -> None:
        self.is_kept = named is not None
        self._named = None if named is None else named.absolute()
        self._lock: BinaryIO | None = None
        self.path: Path | None = None

    def claim(self) -> Path:
        """Return the folder, made if need be; a second call returns the same one.

        Raises: DataInUse, DiskFull, NotWritable; EmbeddedError for a path that Kafka cannot read.
        """
        if self.path is None:
            folder = Path(tempfile.gettempdir()) if self._named is None else self._named
            try:
                self.path = self._made() if self._named is None else self._locked(self._named)
            except OSError as error:
                raise explained(error, folder) from error
        return self.path

    def release(self) -> None:
        """Give the folder up: a kept one may be claimed by others now, a throw-away one is gone."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self.path is not None and not self.is_kept:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path = None

    @staticmethod
    def _made() -> Path:
        return Path(tempfile.mkdtemp(prefix="triage-kafka-"))

    def _locked(self, folder: Path) -> Path:
        if "," in str(folder):
            raise EmbeddedError(f"Kafka reads a comma in {folder} as the end of the path: name a folder without one.")
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise DataInUse(folder) from error
        self._lock = lock
        return folder


def write_storage(node: Node, cluster_id: str, checkpoint: Path) -> None:
    """Make the node's empty log unless it has one: what `kafka-storage format` would do, without its second of Java.

    The checkpoint carries the feature levels; without it a node offers transactions and groups as of Kafka 3.3.
    """
    meta = node.data / "meta.properties"
    if meta.exists():
        return
    node.data.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint, node.data / "bootstrap.checkpoint")
    replace_text(meta, f"version=1\ncluster.id={cluster_id}\nnode.id={node.number}\n")


def ensure_cluster_id(data: Path, brokers: int) -> str:
    """Return the id of the cluster in `data`, made on first use.

    Raises: DataMismatch when the data were made by another number of brokers.
    """
    file = data / "cluster.json"
    if file.exists():
        known = json.loads(file.read_text())
        if known["brokers"] != brokers:
            raise DataMismatch(data, found=known["brokers"], asked=brokers)
        return str(known["cluster_id"])
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    replace_text(file, json.dumps({"cluster_id": cluster_id, "brokers": brokers}))
    return cluster_id


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader finds all of it or nothing."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
