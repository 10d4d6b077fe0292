"""Ids that the gateway makes. A task's: `<4 hex of the fingerprint>:<uuid7 without dashes>`, a batch's: `sb-<uuid7>`.

Keyed by the part before the colon, requests that ask the same lie on one partition, where one worker sees them; the uuid7 says when
the task was made. Under an idempotency key a hash of what was sent stands in the place of the uuid7, so that it is the same id again.
"""

from __future__ import annotations

import hashlib
import re

PREFIX_CHARACTERS = 4
RANDOM_BYTES = 10
# Not as long as a uuid7, so that neither is taken for the other.
_HASH_CHARACTERS = 40
# What a request without an id, and a replayed one, are called: nobody else may take these names.
GIVEN = r"(critical|high|normal|low)\.[0-9]+\.[0-9]+|.*:replay\.[0-9]+\.[0-9]+"
_GIVEN = re.compile(GIVEN)
_MADE_HERE = re.compile(r"[0-9a-f]{4}:([0-9a-f]{12})7[0-9a-f]{3}[89ab][0-9a-f]{15}")


def uuid7_hex(at_ms: int, random: bytes) -> str:
    """Return a version 7 UUID as 32 hex digits, from epoch milliseconds and ten random bytes. Source: RFC 9562 section 5.7."""
    bits = int.from_bytes(random[:RANDOM_BYTES], "big")
    rand_a, rand_b = bits >> 68, bits & ((1 << 62) - 1)
    return f"{at_ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b:032x}"


def new_task_id(fingerprint: str, at_ms: int, random: bytes) -> str:
    """Return the id of a task accepted at `at_ms` that asks what `fingerprint` stands for."""
    return f"{fingerprint[:PREFIX_CHARACTERS]}:{uuid7_hex(at_ms, random)}"


def new_batch_id(at_ms: int, random: bytes) -> str:
    """Return the id of a batch accepted at `at_ms`."""
    return f"sb-{uuid7_hex(at_ms, random)}"


def hash_of(*parts: str | bytes) -> str:
    """Return what stands for these parts together."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:_HASH_CHARACTERS]


def keyed_task_id(fingerprint: str, hashed: str) -> str:
    """Return the id of a task under an idempotency key; `hashed` stands for all that makes it another task."""
    return f"{fingerprint[:PREFIX_CHARACTERS]}:{hashed}"


def is_given(task_id: str) -> bool:
    """Whether Triage itself gives ids of this form, so that a caller may not."""
    return _GIVEN.fullmatch(task_id) is not None


def made_at_ms(task_id: str) -> int | None:
    """Return when a gateway made this id, None when it is not one of a gateway's."""
    made = _MADE_HERE.fullmatch(task_id)
    return int(made[1], 16) if made else None
