"""Task ids, and the partition a task's records live on.

Source: `murmur2` is Kafka's default partitioner hash (KIP-480 era `DefaultPartitioner`, `org.apache.kafka.common.utils.Utils.murmur2`),
so that a Java, Python or Go producer that keys a request by its task_id places it on `home(task_id)`.
"""

from __future__ import annotations

import re

from schemas.topics import Lane

TASK_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MADE_ID = re.compile(r"(critical|high|normal|low)\.(\d{1,9})\.(\d{1,19})")
_MASK = 0xFFFFFFFF
_REPLAYED_ID_CHARACTERS = 96


def is_task_id(text: object) -> bool:
    """Whether a producer's own id may be used as it is."""
    return isinstance(text, str) and TASK_ID.fullmatch(text) is not None


def made_id(lane: Lane, partition: int, offset: int) -> str:
    """Return the id of a request that carries none of its own: `<lane>.<partition>.<offset>`."""
    return f"{lane.value}.{partition}.{offset}"


def replay_id(task_id: str, partition: int, offset: int) -> str:
    """Return the id under which the dead letter at this place runs again; replaying it twice gives the same id."""
    return f"{task_id[:_REPLAYED_ID_CHARACTERS]}:replay.{partition}.{offset}"


def key_of(task_id: str) -> bytes:
    """Return the record key that puts a task on its home partition: the part before the first `:`, or the whole id."""
    return task_id.partition(":")[0].encode()


def home(task_id: str, partitions: int) -> int:
    """Return the partition number where the records of `task_id` are looked for first.

    A made id names its partition; any other id is hashed as Kafka hashes its key.
    """
    made = _MADE_ID.fullmatch(task_id)
    if made is not None and int(made[2]) < partitions:
        return int(made[2])
    replayed = re.search(r":replay\.(\d{1,9})\.\d{1,19}$", task_id)
    if replayed is not None and int(replayed[1]) < partitions:
        return int(replayed[1])
    return partition_of(key_of(task_id), partitions)


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition Kafka's default partitioner gives `key`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit murmur2 of `data`, as an unsigned number."""
    m = 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & _MASK
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & _MASK
        k = (k ^ (k >> 24)) * m & _MASK
        h = (h * m & _MASK) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & _MASK
    h = (h ^ (h >> 13)) * m & _MASK
    return h ^ (h >> 15)
