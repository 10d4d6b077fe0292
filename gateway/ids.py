"""Task ids that the gateway makes: `<4 hex of the fingerprint>:<uuid7 without dashes>`.

Keyed by the part before the colon, requests that ask the same lie on one partition, where one worker sees them; the uuid7 says when
the task was made.
"""

from __future__ import annotations

import re

PREFIX_CHARACTERS = 4
RANDOM_BYTES = 10
_MADE_HERE = re.compile(r"[0-9a-f]{4}:([0-9a-f]{12})7[0-9a-f]{3}[89ab][0-9a-f]{15}")


def uuid7_hex(at_ms: int, random: bytes) -> str:
    """Return a version 7 UUID as 32 hex digits, from epoch milliseconds and ten random bytes. Source: RFC 9562 section 5.7."""
    bits = int.from_bytes(random[:RANDOM_BYTES], "big")
    rand_a, rand_b = bits >> 68, bits & ((1 << 62) - 1)
    return f"{at_ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b:032x}"


def new_task_id(fingerprint: str, at_ms: int, random: bytes) -> str:
    """Return the id of a task accepted at `at_ms` that asks what `fingerprint` stands for."""
    return f"{fingerprint[:PREFIX_CHARACTERS]}:{uuid7_hex(at_ms, random)}"


def made_at_ms(task_id: str) -> int | None:
    """Return when a gateway made this id, None when it is not one of a gateway's."""
    made = _MADE_HERE.fullmatch(task_id)
    return int(made[1], 16) if made else None
