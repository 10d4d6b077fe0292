"""The HTTP application around a gateway."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from gateway import bodies, problems
from gateway.core import Gateway
from gateway.hot import Hot
from gateway.routes import async_tasks, batches, cleanup, events, health
from schemas import __version__

_FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")


def new_app(gateway: Gateway) -> FastAPI:
    """Return the ASGI application; it answers at once, with 503 until `gateway`, which runs beside it, has caught up."""
    app = FastAPI(
        title="Triage",
        version=__version__,
        description="A priority- and GPU-aware inference queue on Kafka.",
        docs_url=None,
        generate_unique_id_function=lambda route: route.name,
        redoc_url=None,
    )
    app.add_middleware(Hot)
    if origins := gateway.settings.gateway.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.state.gateway = gateway
    for family in (async_tasks, batches, cleanup, events, health):
        app.include_router(family.router)
    problems.install(app)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Complete the OpenAPI description: what no route's signature names, and errors as they come out, which FastAPI does not know."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = plain()
            schemas = found["components"]["schemas"]
            for name, schema in bodies.extra_schemas().items():
                schemas.setdefault(name, schema)
            for name in _FASTAPI_ERRORS:
                schemas.pop(name, None)
            for methods in found["paths"].values():
                for route in methods.values():
                    route["responses"] = _answers(route["responses"])
        return plain()

    app.openapi = described  # type: ignore[method-assign]


def _answers(responses: dict[str, Any]) -> dict[str, Any]:
    """Return a route's answers: problems with their media type, without the error that FastAPI adds for itself."""
    found = {}
    for code, answer in sorted(responses.items()):
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        if name not in _FASTAPI_ERRORS:
            is_problem = name == bodies.ProblemBody.__name__
            found[code] = {**answer, "content": {problems.MEDIA_TYPE: {"schema": schema}}} if is_problem else answer
    return found
