"""Who is there: the newest snapshot of each worker and gateway."""

from __future__ import annotations

from dataclasses import dataclass, field

GATEWAY_KEY = "gateway/"
LIVE_MS = 5_000
# A position told from an older picture of the workers would be a guess.
FRESH_MS = 2_000


@dataclass
class Fleet:
    """When each sender of snapshots was last heard of, in broker time. Gateways are kept apart and count for nothing here."""

    _heard_ms: dict[str, int] = field(default_factory=dict)

    def snapshot(self, key: bytes | None, value: bytes | None, appended_ms: int) -> None:
        """Take note of a record of the workers' topic; without a value its sender is gone."""
        sender = (key or b"").decode(errors="replace")
        if not sender or sender.startswith(GATEWAY_KEY):
            return
        if value is None:
            self._heard_ms.pop(sender, None)
        else:
            self._heard_ms[sender] = appended_ms

    def workers(self, now_ms: int) -> int:
        """Return how many workers were heard of within five seconds."""
        self._heard_ms = {name: at for name, at in self._heard_ms.items() if now_ms - at < LIVE_MS}
        return len(self._heard_ms)

    def is_fresh(self, now_ms: int) -> bool:
        """Whether some worker was heard of within two seconds."""
        return any(now_ms - at <= FRESH_MS for at in self._heard_ms.values())
