"""Writes what is committed of the gateway's description: `python -m gateway.describe openapi|errors`.

`make described` renews both files; a test compares them with the code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from gateway.app import new_app
from gateway.core import Gateway
from gateway.problems import Kind, Problem, openai_form
from streams.settings import Settings


def openapi() -> str:
    """Return the OpenAPI description as `docs/openapi.json` has it."""
    app = new_app(Gateway(Settings(), cache_home=Path()))
    return orjson.dumps(app.openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode() + "\n"


def errors() -> str:
    """Return `docs/errors.md`: every problem, what it means and what to do."""
    return "\n".join([_HEAD, *(row for kind in Kind for row in _section(kind))])


def _section(kind: Kind) -> list[str]:
    code = openai_form(Problem(kind))["error"]
    return [
        f"## {kind.name_in_type}",
        "",
        f"**{kind.status}** `{kind.type}` · OpenAI: `{code['type']}`, code `{code['code']}`",
        "",
        f"{kind.title}. {kind.remedy}",
        "",
    ]


_HEAD = """# Errors over HTTP

Every error is a problem (RFC 9457, `application/problem+json`) with `type`, `title`, `status`, `detail`, `errors[]` and `trace_id`; routes
that speak OpenAI's language answer in its form instead, with the same status. Nothing of what was sent is repeated. A 503 says when to
come back (`Retry-After`).
The gateway counts each refusal in `triage_rejected_total{reason}`, by the name below. What a *task* ends with is another thing: see the
result's `error`.
"""


if __name__ == "__main__":
    print({"openapi": openapi, "errors": errors}[sys.argv[1]](), end="")
