"""What differs between model servers that all speak OpenAI's chat API, as data."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

KindName = Literal["openai", "llamacpp", "vllm"]
BatchCall = Literal["none", "chat", "completions"]


@dataclass(frozen=True, slots=True)
class MetricNames:
    """The server's own metrics by what they tell; None where it has none. `kv_ratio` is 0 to 1."""

    queued: str
    running: str
    kv_ratio: str | None


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of model server.

    `takes_unknown`: parameters outside OpenAI's list are passed on, not dropped.
    `withheld`: parameters that the server knows and a caller may not set.
    `keeps_connections`: a connection serves many calls; otherwise each call has its own.
    `health_may_miss`: without its health route the model list tells whether the server is up.
    `context_fields`: where an entry of /v1/models tells a request's tokens; the first one found counts.
    `slots_path`: where the server says how many requests it runs at once, in `slots_field`; None when it does not say.
    `slots_list_path`: the same as a list with one entry per slot.
    `batch_call`: how it takes a batch unless the settings say otherwise.
    `counts_batches`: the usage of a list of prompts is that of all of them.
    """

    name: KindName
    takes_unknown: bool
    withheld: frozenset[str]
    keeps_connections: bool
    health_path: str
    health_may_miss: bool
    context_fields: tuple[tuple[str, ...], ...]
    slots_path: str | None
    slots_field: str
    slots_list_path: str | None
    batch_call: BatchCall
    counts_batches: bool
    metrics: MetricNames | None


# What this adapter sets itself, or what would change the form of the answer.
_OURS = frozenset({"model", "messages", "prompt", "stream", "stream_options"})

# Source: the servers' own routes, vLLM 0.32 and llama.cpp of 2026-10, both measured.
KINDS = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                name="openai",
                takes_unknown=False,
                withheld=_OURS,
                keeps_connections=True,
                health_path="/health",
                health_may_miss=True,
                context_fields=(("max_model_len",), ("meta", "n_ctx"), ("context_length",)),
                slots_path=None,
                slots_field="",
                slots_list_path=None,
                batch_call="none",
                counts_batches=True,
                metrics=None,
            ),
            Kind(
                name="llamacpp",
                takes_unknown=True,
                # A slot of the caller's choice would let one tenant's timing tell another's prompt, and skip the queue.
                withheld=_OURS | {"id_slot"},
                # An open connection holds one of the server's HTTP threads (slots + 4 by default) even when it is idle,
                # and a burst of more waits for them: 24 calls at once took 5 to 9 s in 4 of 14 tries, and 0.05 s in
                # each of 14 without keeping.
                keeps_connections=False,
                health_path="/health",
                health_may_miss=False,
                # Per slot: the server divides its context between them.
                context_fields=(("meta", "n_ctx"),),
                slots_path="/props",
                slots_field="total_slots",
                slots_list_path="/slots",
                batch_call="none",
                # Of three prompts in a list it counts one.
                counts_batches=False,
                metrics=MetricNames("llamacpp:requests_deferred", "llamacpp:requests_processing", None),
            ),
            Kind(
                name="vllm",
                takes_unknown=True,
                # Lanes decide who is first; an id of the caller's choice could abort another tenant's request.
                withheld=_OURS | {"priority", "request_id"},
                keeps_connections=True,
                health_path="/health",
                health_may_miss=False,
                context_fields=(("max_model_len",),),
                slots_path=None,
                slots_field="",
                slots_list_path=None,
                batch_call="chat",
                counts_batches=True,
                metrics=MetricNames(
                    "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"
                ),
            ),
        )
    }
)
