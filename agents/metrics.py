"""A worker's Prometheus metrics; the names are a contract. Label children are made once, so that the hot path looks nothing up."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from schemas import __version__
from schemas.result import Outcome
from schemas.topics import Lane

_WAIT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class WorkerMetrics:
    """What a worker counts. Every series of a bounded label exists from the start, at 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        accepted = counter("triage_requests_accepted", "Requests taken in.", "lane")
        redelivered = counter(
            "triage_redelivered", "Requests delivered again that had an outcome or were held.", "lane"
        )
        results = counter("triage_results", "Outcomes made durable.", "lane", "outcome")
        wait = Histogram(
            "triage_queue_wait_seconds", "Intake to dispatch.", ["lane"], buckets=_WAIT_BUCKETS_S, registry=registry
        )
        total = Histogram(
            "triage_end_to_end_seconds", "Append to outcome.", ["lane"], buckets=_WAIT_BUCKETS_S, registry=registry
        )
        size = Histogram("triage_batch_size", "Tasks in a batch.", ["lane"], buckets=_BATCH_BUCKETS, registry=registry)
        window = gauge("triage_batch_window_seconds", "How long a batch's oldest member waits for company.", "lane")
        waiting = gauge("triage_waiting_requests", "Held by this worker and not dispatched.", "lane")
        oldest = gauge("triage_oldest_wait_seconds", "Wait of the oldest task not dispatched.", "lane")
        rebalances = counter("triage_rebalances", "Times this worker's partitions changed.", "lane")
        lookups = counter("triage_cache_lookups", "Answers looked for in the cache.", "result")
        self.accepted = {lane: accepted.labels(lane.value) for lane in Lane}
        self.redelivered = {lane: redelivered.labels(lane.value) for lane in Lane}
        self.results = {(lane, end): results.labels(lane.value, end.value) for lane in Lane for end in Outcome}
        self.queue_wait_s = {lane: wait.labels(lane.value) for lane in Lane}
        self.end_to_end_s = {lane: total.labels(lane.value) for lane in Lane}
        self.batch_size = {lane: size.labels(lane.value) for lane in Lane}
        self.window_s = {lane: window.labels(lane.value) for lane in Lane}
        self.waiting = {lane: waiting.labels(lane.value) for lane in Lane}
        self.oldest_wait_s = {lane: oldest.labels(lane.value) for lane in Lane}
        self.rebalances = {lane: rebalances.labels(lane.value) for lane in Lane}
        self.cache_hits, self.cache_misses = lookups.labels("hit"), lookups.labels("miss")
        self.coalesced = lookups.labels("coalesced")
        self.rejected = counter("triage_rejected", "Records refused before queueing.", "reason")
        self.retries = counter("triage_retries", "Tries after a failure: in place, or the retry topic gone to.", "tier")
        self.dead_letters = counter("triage_dead_letters", "Records written to the dead-letter topic.", "reason")
        self.inference_s = Histogram(
            "triage_inference_seconds", "Model call.", ["model", "backend"], buckets=_WAIT_BUCKETS_S, registry=registry
        )
        self.tokens = counter("triage_tokens", "Tokens as backends count them.", "direction", "model")
        self.decisions = counter("triage_routing_decisions", "Batches sent, by why there.", "reason")
        self.producer_replaced = counter("triage_producer_replaced", "Producers replaced after a lost batch.")
        self.backend_up = gauge("triage_backend_up", "1 when the server answers its probe.", "backend")
        self.in_flight = gauge("triage_in_flight_requests", "Calls running.", "backend")
        self.backend_limit = gauge("triage_backend_concurrency_limit", "Calls that may run.", "backend")
        self.backend_latency_s = gauge("triage_backend_latency_ema_seconds", "Moving average.", "backend", "model")
        self.backend_failure_ratio = gauge("triage_backend_failure_ratio", "Moving average.", "backend")
        self.gpu_pressure = gauge(
            "triage_gpu_pressure", "0 LOW, 1 NORMAL, 2 HIGH, 3 CRITICAL; absent when unknown.", "gpu"
        )
        gauge("triage_build_info", "Always 1.", "version").labels(__version__).set(1)
