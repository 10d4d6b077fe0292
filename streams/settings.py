"""Settings, one frozen model per concern. The file and the environment are read once, by `cli/configuration.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.topics import Lane, TopicNames

MIB = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class KafkaSettings(_Section):
    """How to reach Kafka, and what the topics look like there."""

    bootstrap: str = Field("127.0.0.1:9092", description="Brokers to ask first: host:port, comma-separated.")
    prefix: str = Field("triage", pattern=r"^[a-zA-Z0-9._-]{1,64}$", description="First part of every topic and group.")
    partitions: int = Field(
        12,
        ge=1,
        le=512,
        description="Of every task topic; bounds the useful number of workers. Never changed in place.",
    )
    replication: int = Field(
        3, ge=1, le=9, description="Copies of each record; 1 loses acknowledged requests with a disk."
    )
    gpu_topic: str | None = Field(
        None, description="Topic of GPU samples; default gpu.metrics, else <prefix>.gpu.metrics."
    )
    security: Literal["PLAINTEXT", "SSL", "SASL_SSL"] = Field("PLAINTEXT", description="Protocol to the brokers.")
    sasl_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = Field(
        "SCRAM-SHA-512", description="With SASL_SSL."
    )
    username: str | None = Field(None, description="With SASL_SSL.")
    password_file: Path | None = Field(None, description="File that holds the password, with SASL_SSL.")
    ca_file: Path | None = Field(None, description="Certificates of who may sign a broker's; default the system's.")
    cert_file: Path | None = Field(None, description="Own certificate (mutual TLS).")
    key_file: Path | None = Field(None, description="Key of the own certificate.")
    group_instance_id: str | None = Field(
        None,
        description="Stable name of this worker: quick restarts in a fixed-size deployment; leave unset when scaling.",
    )

    @property
    def names(self) -> TopicNames:
        return TopicNames(self.prefix, self.gpu_topic)


class GatewaySettings(_Section):
    """The HTTP surface."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8400, ge=0, le=65535, description="0 = any free one.")
    max_body_bytes: int = Field(MIB, ge=1024, description="Larger request bodies are refused.")
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    trusted_proxies: list[str] = Field(default_factory=list, description="Addresses whose forwarded headers count.")
    cors_origins: list[str] = Field(default_factory=list)
    data_dir: Path | None = Field(None, description="Where the view's file lies; it can be thrown away.")


class MetricsSettings(_Section):
    """Where Prometheus reads."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int | None = Field(
        None, ge=0, le=65535, description="Default 8401 (worker), 8402 (publisher); 0 = any free one."
    )
    public: bool = Field(False, description="Serve the gateway's /metrics off loopback without a token.")


class AuthSettings(_Section):
    """Who may call the gateway."""

    modes: list[Literal["jwt", "keys", "none"]] = ["none"]
    issuer: str | None = None
    audience: str | None = None
    jwks_file: Path | None = None
    jwks_url: str | None = None
    algorithms: list[str] = Field(default_factory=lambda: ["ES256"])
    tenant_claim: str = "tenant"
    key_max_age_days: int = Field(30, ge=1)


class GpuSettings(_Section):
    """Where GPU readings come from."""

    source: str = Field(
        "nvml", pattern=r"^(nvml|dcgm|none|simulated:\d{1,3})$", description="nvml, dcgm, simulated:K or none."
    )
    period_s: float = Field(1.0, gt=0, le=60, description="Seconds between readings.")
    stale_after_s: float = Field(5.0, gt=0, description="An older reading means unknown: not idle and not full.")
    scenario: Path | None = Field(None, description="With simulated:K: a TOML file of what the cards do.")
    overrides: Path | None = Field(
        None, description="With simulated:K: a JSON file that may change while it runs, of readings to show instead."
    )
    dcgm_url: str | None = Field(
        None, description="With dcgm: http://HOST:9400/metrics of a dcgm-exporter that collects every second (-c 1000)."
    )


class PressureSettings(_Section):
    """When used/total GPU memory is LOW, NORMAL, HIGH, CRITICAL."""

    thresholds: tuple[float, float, float] = Field(
        (0.50, 0.70, 0.85),
        description="Where NORMAL, HIGH and CRITICAL begin; too low idles cards, too high meets out-of-memory.",
    )
    hysteresis: float = Field(
        0.03, ge=0, lt=0.2, description="A level is left downwards only this far below its threshold."
    )
    dwell_s: float = Field(5.0, ge=0, description="A level is kept at least this long before going down.")

    @model_validator(mode="after")
    def _ascending(self) -> PressureSettings:
        normal, high, critical = self.thresholds
        if not 0 < normal < high < critical <= 1:
            raise ValueError("thresholds must ascend between 0 and 1")
        return self


class CacheSettings(_Section):
    """The answer cache."""

    ttl_s: int = Field(300, ge=1, le=3600, description="How long an answer is good when the request does not say.")
    max_entries: int = Field(20_000, ge=0, description="In the table and in each worker; 0 turns the cache off.")
    max_bytes: int = Field(64 * MIB, ge=0, description="In the table and in each worker.")


class RetrySettings(_Section):
    """What happens after a failure that may pass."""

    enabled: bool = True
    in_place_tries: int = Field(2, ge=0, le=10, description="Further tries within the worker before a retry topic.")
    budget_ratio: float = Field(0.1, ge=0, le=1, description="Retries in place are at most this share of traffic.")
    tiers: list[Literal["5s", "60s", "600s"]] = ["5s", "60s", "600s"]

    @model_validator(mode="after")
    def _prefix(self) -> RetrySettings:
        if self.tiers != ["5s", "60s", "600s"][: len(self.tiers)]:
            raise ValueError('tiers must be the beginning of ["5s", "60s", "600s"]')
        return self


class SchedulingSettings(_Section):
    """How lanes share the backends."""

    policy: Literal["weights", "strict"] = Field(
        "weights", description="strict serves a lower lane only when the higher are empty."
    )
    size_aware: bool | None = None
    batch_share: float = Field(0.5, gt=0, le=1, description="What budget=batch may use while live work waits.")


class LaneSettings(_Section):
    """One lane's share, window and bounds."""

    weight: int = Field(1, ge=1, le=1000, description="Share of the tokens served, against the other lanes' weights.")
    reserved_slots: int = Field(0, ge=0, description="Slots of each backend kept free for this lane; never lent.")
    window_ms: float = Field(
        50, ge=0, le=60_000, description="How long the oldest member of a batch waits for company."
    )
    max_batch_requests: int = Field(16, ge=1, le=1024)
    max_batch_tokens: int = Field(16_384, ge=1)
    max_wait_s: float = Field(600, gt=0)
    max_waiting_requests: int = Field(
        512,
        ge=1,
        description="Requests a worker holds that are not with a backend; beyond it the backlog stays in Kafka. Too low idles backends.",
    )
    max_waiting_bytes: int = Field(
        16 * MIB,
        ge=1,
        description="Their size as they came. A worker holds up to three times that of a lane, with what is fetched.",
    )
    max_waiting_tokens: int = Field(4 * MIB, ge=1, description="Their expected tokens.")

    @model_validator(mode="after")
    def _batches_fit(self) -> LaneSettings:
        if self.max_waiting_requests < self.max_batch_requests:
            raise ValueError(
                "max_waiting_requests must be at least max_batch_requests, or no batch is ever full: raise the one or lower the other"
            )
        return self


def _lane_defaults() -> dict[Lane, LaneSettings]:
    rows = {
        Lane.CRITICAL: (8, 1, 5.0, 30.0, 2048, 32),
        Lane.HIGH: (4, 0, 20.0, 120.0, 1024, 16),
        Lane.NORMAL: (2, 0, 50.0, 600.0, 512, 16),
        Lane.LOW: (1, 0, 200.0, 3600.0, 256, 8),
    }
    return {
        lane: LaneSettings(
            weight=weight,
            reserved_slots=reserved,
            window_ms=window,
            max_wait_s=wait,
            max_waiting_requests=requests,
            max_waiting_bytes=mib * MIB,
        )
        for lane, (weight, reserved, window, wait, requests, mib) in rows.items()
    }


class LanesSettings(_Section):
    """The four lanes; what is not set keeps the lane's own default."""

    critical: LaneSettings = Field(default_factory=lambda: _lane_defaults()[Lane.CRITICAL])
    high: LaneSettings = Field(default_factory=lambda: _lane_defaults()[Lane.HIGH])
    normal: LaneSettings = Field(default_factory=lambda: _lane_defaults()[Lane.NORMAL])
    low: LaneSettings = Field(default_factory=lambda: _lane_defaults()[Lane.LOW])

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        defaults = _lane_defaults()
        return {
            name: {**defaults[Lane(name)].model_dump(), **value}
            if name in list(Lane) and isinstance(value, dict)
            else value
            for name, value in given.items()
        }

    def __getitem__(self, lane: Lane) -> LaneSettings:
        found: LaneSettings = getattr(self, lane.value)
        return found


class WebhookSettings(_Section):
    """Signed calls when a task ends."""

    secret_file: Path | None = None
    allow_hosts: list[str] = Field(default_factory=list)


class LoggingSettings(_Section):
    """Log lines on stderr."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class BackendSettings(_Section):
    """One model server."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    kind: Literal["openai", "llamacpp", "vllm"] = "openai"
    url: Annotated[str, Field(pattern=r"^https?://", description="Server root; a trailing /v1 is cut.")]
    models: list[str] = Field(default_factory=list, description="Empty: what /v1/models answers.")
    any_model: bool = Field(False, description="Takes requests for any model name and answers with its own model.")
    gpus: list[str] = Field(default_factory=list, description='"uuid" or "host:index".')
    pool_bytes: int | None = Field(None, ge=0)
    max_concurrency: int | None = Field(None, ge=1, le=4096, description="Absent: the server's slots, else 8.")
    api_key_file: Path | None = None
    timeout_s: float = Field(120, gt=0, description="For one answer.")
    batch_call: Literal["none", "chat", "completions"] | None = Field(
        None,
        description="How a batch is sent: none = one call per task; chat = one call to vLLM's /v1/chat/completions/batch; "
        "completions = requests of one user message as one list of raw prompts to /v1/completions. Absent: chat for kind vllm, else none.",
    )
    prompt_template: str = Field(
        "{prompt}",
        description="With batch_call completions: what is sent for a user message; a template that is not the model's gives poor answers.",
    )

    @field_validator("prompt_template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if template.count("{prompt}") != 1:
            raise ValueError("prompt_template must hold {prompt} once, where the user's message goes")
        return template

    @property
    def root(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")


class ModelSettings(_Section):
    """What is known of a model before it was ever called."""

    name: str
    aliases: list[str] = Field(default_factory=list)
    size: Literal["tiny", "small", "medium", "large"] = "small"
    memory_bytes: int | None = Field(None, ge=0)
    context_tokens: int | None = Field(None, ge=1)
    agent_types: list[str] = Field(default_factory=list)
    idle_ttl_s: float = Field(900, gt=0)


class TenantSettings(_Section):
    """One tenant's share and limits."""

    name: str
    weight: int = Field(1, ge=1, le=1000)
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    priorities: list[Lane] = Field(default_factory=lambda: list(Lane), min_length=1)


class Settings(_Section):
    """Everything. Order of precedence: flag, environment, file, default."""

    allow_insecure_dev: bool = Field(
        False, description="The one switch that permits unsafe settings; logged and shown by doctor."
    )
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    gpus: GpuSettings = Field(default_factory=GpuSettings)
    pressure: PressureSettings = Field(default_factory=PressureSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    retry: RetrySettings = Field(default_factory=RetrySettings)
    scheduling: SchedulingSettings = Field(default_factory=SchedulingSettings)
    lanes: LanesSettings = Field(default_factory=LanesSettings)
    webhooks: WebhookSettings = Field(default_factory=WebhookSettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)
    backends: list[BackendSettings] = Field(default_factory=list)
    models: list[ModelSettings] = Field(default_factory=list)
    tenants: list[TenantSettings] = Field(default_factory=list)

    @model_validator(mode="after")
    def _unique_names(self) -> Settings:
        for kind, rows in (("backends", self.backends), ("models", self.models), ("tenants", self.tenants)):
            names = [row.name for row in rows]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind}: the name {twice[0]!r} stands twice")
        return self
