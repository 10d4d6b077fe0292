"""The one place that says how a client of ours talks to Kafka: addresses, security, sizes and times.

Every aiokafka producer, consumer and admin client and every Faust app takes its options from here. The times are those
under which aiokafka 0.14 came through killed, hung and restarted brokers without losing or repeating a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError

from schemas.topics import MAX_RECORD_BYTES
from streams.settings import KafkaSettings
from wire.clock import monotonic_s

if TYPE_CHECKING:
    import faust

_T = TypeVar("_T")

# What a batch of one record adds to the record's own bytes; above the topic's limit it would poison the partition.
_BATCH_OVERHEAD_BYTES = 200
# A total outage is retried this often by each connection; the library's 100 ms writes hundreds of lines a second.
_RETRY_BACKOFF_MS = 500
_METADATA_MAX_AGE_MS = 300_000
# A hung broker (a dead one is noticed at once) is given up after this long. A consumer's must exceed its session.
_PRODUCER_TIMEOUT_MS = 10_000
_CONSUMER_TIMEOUT_MS = 12_000
_SESSION_TIMEOUT_MS = 10_000
_HEARTBEAT_MS = 3_000
# A fetch holds at most this much; one partition's share takes any single batch that a topic of ours admits.
_FETCH_MAX_BYTES = 32 << 20
_FETCH_MAX_WAIT_MS = 100
# For a client that lives for a moment: it meets "unknown topic" and "no coordinator yet" first, and half a second each would be most
# of what it takes.
QUICK_RETRIES = {"retry_backoff_ms": 20}
# What a client raises when brokers fail it; a RuntimeError is uvloop's, of a connection that is closing.
BROKER_FAILURES = (KafkaError, OSError, RuntimeError)

_PROBE_EVERY_S = 0.5
_PROBE_TIMEOUT_S = 3.0
_REMIND_EVERY_S = 10.0


class Log(Protocol):
    """The part of a structlog logger that is used here."""

    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...


class CredentialsUnusable(ValueError):
    """A security setting of Kafka names a file that cannot be used, or misses its companion; change the settings."""


class BrokersUnreachable(Exception):
    """No broker answered in time. `bootstrap` is who was asked, `reason` the last client error."""

    def __init__(self, kafka: KafkaSettings, reason: str) -> None:
        self.bootstrap, self.reason = kafka.bootstrap, reason
        super().__init__(f"Kafka does not answer at {kafka.bootstrap} ({reason}): {_what_to_check(kafka)}.")


def client_options(kafka: KafkaSettings, *, client_id: str) -> dict[str, Any]:
    """Return what every aiokafka client takes, an admin client all that it takes.

    Raises: CredentialsUnusable.
    """
    return {
        "bootstrap_servers": bootstrap_servers(kafka),
        "client_id": client_id,
        "request_timeout_ms": _PRODUCER_TIMEOUT_MS,
        "retry_backoff_ms": _RETRY_BACKOFF_MS,
        "metadata_max_age_ms": _METADATA_MAX_AGE_MS,
        **_security_options(kafka),
    }


def producer_options(
    kafka: KafkaSettings, *, client_id: str, max_record_bytes: int = MAX_RECORD_BYTES
) -> dict[str, Any]:
    """Return an idempotent producer's options. `max_record_bytes` is the smallest `max.message.bytes` it writes to.

    A larger record or batch is refused here, before it takes a sequence number: refused by the broker it would make
    every later record to that partition fail.

    Raises: CredentialsUnusable.
    """
    limit = max_record_bytes - _BATCH_OVERHEAD_BYTES
    return {
        **client_options(kafka, client_id=client_id),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 0,
        "max_request_size": limit,
        "max_batch_size": limit,
        "compression_type": None,
    }


def consumer_options(kafka: KafkaSettings, *, client_id: str, group: str | None = None) -> dict[str, Any]:
    """Return a plain consumer's options. `group` None: a reader without a group, which assigns and seeks itself.

    Nothing is committed by itself, and records of transactions that did not commit are not seen.

    Raises: CredentialsUnusable.
    """
    options = {
        **client_options(kafka, client_id=client_id),
        "request_timeout_ms": _CONSUMER_TIMEOUT_MS,
        "group_id": group,
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "auto_offset_reset": "earliest",
        "fetch_max_wait_ms": _FETCH_MAX_WAIT_MS,
        "fetch_max_bytes": _FETCH_MAX_BYTES,
        "max_partition_fetch_bytes": MAX_RECORD_BYTES,
    }
    if group is not None:
        options |= {
            "session_timeout_ms": _SESSION_TIMEOUT_MS,
            "heartbeat_interval_ms": _HEARTBEAT_MS,
            "group_instance_id": kafka.group_instance_id,
        }
    return options


def bootstrap_servers(kafka: KafkaSettings) -> list[str]:
    """Return the brokers to ask first, `host:port` each."""
    return [server for part in kafka.bootstrap.split(",") if (server := part.strip())]


def broker_urls(kafka: KafkaSettings) -> list[str]:
    """Return the brokers as Faust's setting `broker` wants them."""
    return [f"aiokafka://{server}" for server in bootstrap_servers(kafka)]


def faust_credentials(kafka: KafkaSettings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """Return Faust's setting `broker_credentials`: the same security as `client_options`.

    Raises: CredentialsUnusable.
    """
    import faust  # noqa: PLC0415 - half a second that a client without a Faust app need not spend

    options = _security_options(kafka)
    if kafka.security == "PLAINTEXT":
        return None
    if kafka.security == "SSL":
        return faust.SSLCredentials(context=options["ssl_context"])
    return faust.SASLCredentials(
        mechanism=options["sasl_mechanism"],
        username=options["sasl_plain_username"],
        password=options["sasl_plain_password"],
        ssl_context=options["ssl_context"],
    )


async def wait_for_brokers(
    kafka: KafkaSettings, *, log: Log, stop: asyncio.Event | None = None, timeout_s: float | None = None
) -> None:
    """Return as soon as a broker answers, or `stop` is set. `timeout_s` None: wait for ever.

    Says so in the log at the first failure and every 10 s from then on.

    Raises: BrokersUnreachable after `timeout_s`; CredentialsUnusable.
    """
    stop = stop or asyncio.Event()
    options = client_options(kafka, client_id="triage-probe")
    began_s = monotonic_s()
    said_s: float | None = None
    while not stop.is_set():
        left_s = _PROBE_TIMEOUT_S if timeout_s is None else began_s + timeout_s - monotonic_s()
        reason = await _probe(options, timeout_s=min(_PROBE_TIMEOUT_S, left_s))
        now_s = monotonic_s()
        if reason is None:
            if said_s is not None:
                log.info("Kafka answers", waited_s=round(now_s - began_s, 1))
            return
        if timeout_s is not None and now_s + _PROBE_EVERY_S >= began_s + timeout_s:
            raise BrokersUnreachable(kafka, reason)
        if said_s is None or now_s - said_s >= _REMIND_EVERY_S:
            log.warning(f"waiting for Kafka at {kafka.bootstrap}: {_what_to_check(kafka)}", reason=reason)
            said_s = now_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _PROBE_EVERY_S)


async def _probe(options: Mapping[str, Any], *, timeout_s: float) -> str | None:
    """Return why no broker answered, None when one did (and took the credentials)."""
    hosts = collect_hosts(options["bootstrap_servers"])
    security = {name: value for name, value in options.items() if name.startswith(("security_", "ssl_", "sasl_"))}
    reasons: list[str] = []
    for host, port, _ in hosts:
        try:
            async with asyncio.timeout(timeout_s / len(hosts)):
                connection = await create_conn(host, port, client_id=options["client_id"], **security)
        except TimeoutError:
            reasons.append(f"{host}:{port} is silent")
        except (KafkaError, OSError) as error:
            refused = isinstance(error, ConnectionRefusedError)
            reasons.append("connection refused" if refused else str(error) or type(error).__name__)
        else:
            connection.close()
            return None
    return "; ".join(dict.fromkeys(reasons))


def _what_to_check(kafka: KafkaSettings) -> str:
    settings = (
        "kafka.bootstrap is" if kafka.security == "PLAINTEXT" else "kafka.bootstrap, security and credentials are"
    )
    return f"check that the brokers run and that {settings} right"


def _security_options(kafka: KafkaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"security_protocol": kafka.security}
    if kafka.security != "PLAINTEXT":
        options["ssl_context"] = _ssl_context(kafka)
    if kafka.security == "SASL_SSL":
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": _required(kafka.username, "username"),
            "sasl_plain_password": _password(_required(kafka.password_file, "password_file")),
        }
    return options


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=kafka.ca_file)
        if kafka.cert_file is not None or kafka.key_file is not None:
            context.load_cert_chain(_required(kafka.cert_file, "cert_file"), kafka.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise CredentialsUnusable(f"kafka.ca_file, cert_file or key_file cannot be used: {error}.") from error
    return context


def _password(path: Path) -> str:
    try:
        return path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsUnusable(f"kafka.password_file {path} cannot be read: {type(error).__name__}.") from error


def _required(value: _T | None, name: str) -> _T:
    if value is None:
        raise CredentialsUnusable(f"kafka.{name} is missing, which the chosen kafka.security needs.")
    return value
