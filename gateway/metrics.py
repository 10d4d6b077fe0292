"""What Prometheus reads of a gateway."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from schemas import __version__
from schemas.topics import Lane


class GatewayMetrics:
    """The gateway's own figures; what workers count is read from them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        accepted = Counter(
            "triage_requests_accepted_total", "Requests that are durable in a lane.", ["lane"], registry=self.registry
        )
        self.accepted = {lane: accepted.labels(lane.value) for lane in Lane}
        self.rejected = Counter(
            "triage_rejected_total", "Requests that were refused, by problem.", ["reason"], registry=self.registry
        )
        self.on_two_partitions = self.rejected.labels("id_on_two_partitions")
        self.producer_replaced = Counter(
            "triage_producer_replaced_total", "Producers replaced after a lost batch.", registry=self.registry
        )
        info = Gauge("triage_build_info", "Always 1.", ["version"], registry=self.registry)
        info.labels(__version__).set(1)
