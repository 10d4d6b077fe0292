"""The request record: what a producer puts on a lane topic. Only `messages` is required."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import NotRequired, TypedDict  # noqa: UP035 - pydantic needs this one below Python 3.12

SCHEMA_VERSION = 1
DEFAULT_MAX_TOKENS = 256
DEFAULT_TENANT = "default"
DEFAULT_TTL_S = 300
AUTO_MODEL = "auto"

_Name = Annotated[str, Field(min_length=1, max_length=256)]
_EpochMs = Annotated[int, Field(ge=0, le=1 << 53)]

_OPEN = ConfigDict(extra="allow", strict=True)


class Message(TypedDict):
    """An OpenAI chat message; fields not named here travel to the backend as they came."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: NotRequired[str | list[dict[str, Any]] | None]


class Parameters(TypedDict, total=False):
    """OpenAI sampling fields; fields not named here travel to backends whose kind takes them."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    stop: str | list[str] | None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None
    n: Literal[1] | None
    response_format: dict[str, Any] | None
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None


# The sampling fields of OpenAI's chat API: every backend is taken to understand these.
OPENAI_PARAMETERS = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    }
)


class CachePolicy(BaseModel):
    """Whether an answer may come from, and go into, the cache. `bypass`: neither; `refresh`: only into it."""

    model_config = ConfigDict(frozen=True, strict=True)

    mode: Literal["use", "refresh", "bypass"] = "use"
    ttl_s: Annotated[int, Field(ge=1, le=3600)] = DEFAULT_TTL_S


class InferenceTask(BaseModel):
    """A request as its producer wrote it. Unknown top-level fields are ignored, a `priority` among them: the topic is the priority.

    Times are UTC epoch milliseconds of the producer's clock and only their difference is used.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    schema_version: int = SCHEMA_VERSION
    task_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    tenant: _Name | None = None
    agent_type: _Name | None = None
    model: _Name | None = None
    parameters: Parameters | None = None
    created_at_ms: _EpochMs | None = None
    deadline_at_ms: _EpochMs | None = None
    cache: CachePolicy | None = None
    batch_id: Annotated[str, Field(max_length=128)] | None = None
    budget: Literal["live", "batch"] | None = None
    stream: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
