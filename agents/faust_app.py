"""Faust apps with the settings under which they lose nothing. Every app of a worker is made here."""

from __future__ import annotations

from pathlib import Path

from agents.transport import App, TableManager, check_versions
from schemas.topics import MAX_RECORD_BYTES
from streams.settings import KafkaSettings
from wire.connection import broker_urls, faust_credentials


def new_app(
    group: str,
    kafka: KafkaSettings,
    *,
    datadir: Path,
    session_s: float,
    buffer_size: int,
    most_records: int | None = 500,
) -> App:
    """Return an app whose consumer group is `group`. It declares no topic: `triage topics apply` does.

    `session_s`: how soon after a worker's sudden end others take its partitions (the broker's floor is 6 s by default).
    `buffer_size` bounds each stream's queue, `most_records` one fetch's records (None: all that was fetched).
    """
    check_versions()
    return App(
        group,
        broker=broker_urls(kafka),
        broker_credentials=faust_credentials(kafka),
        broker_client_id=group,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / 4,
        broker_rebalance_timeout=30,
        broker_request_timeout=30,
        # A standing low backlog must not make its worker leave the group.
        broker_max_poll_interval=3600,
        broker_max_poll_records=most_records,
        # Bounds what is delivered again after a kill -9.
        broker_commit_interval=1.0,
        # Stock commits inline in the drain loop each 10,000 acknowledgements, which stalls intake.
        broker_commit_every=1_000_000,
        consumer_max_fetch_size=MAX_RECORD_BYTES,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=f"{kafka.group_instance_id}-{group}" if kafka.group_instance_id else None,
        stream_buffer_maxsize=buffer_size,
        # Stock waits for every unacknowledged event, without end, on a rebalance and at a stop.
        stream_wait_empty=False,
        stream_publish_on_commit=False,
        stream_processing_timeout=3600,
        broker_commit_livelock_soft_timeout=3600,
        cython_optimizations=True,
        producer_linger=0.002,
        producer_max_batch_size=131_072,
        producer_max_request_size=MAX_RECORD_BYTES,
        producer_request_timeout=120,
        producer_acks=-1,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=kafka.partitions,
        topic_replication_factor=kafka.replication,
        # At 0 Faust silently changes to an assignor that moves every partition.
        table_standby_replicas=1,
        recovery_consistency_check=False,
        store="memory://",
        datadir=str(datadir / group),
        web_enabled=False,
        worker_redirect_stdouts=False,
        # Without a prefix, bare environment variables would override these.
        env_prefix="TRIAGE_FAUST_INTERNAL_",
        TableManager=TableManager,
        autodiscover=False,
    )
