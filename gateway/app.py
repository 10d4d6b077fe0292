"""The HTTP application around a gateway."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from gateway import bodies, problems
from gateway.core import Gateway
from gateway.routes import async_tasks, health
from schemas import __version__


def new_app(gateway: Gateway) -> FastAPI:
    """Return the ASGI application; it answers at once, with 503 until `gateway`, which runs beside it, has caught up."""
    app = FastAPI(
        title="Triage",
        version=__version__,
        description="A priority- and GPU-aware inference queue on Kafka.",
        redoc_url=None,
    )
    app.state.gateway = gateway
    app.include_router(async_tasks.router)
    app.include_router(health.router)
    problems.install(app)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Add to the OpenAPI description what no route's signature names."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        found = plain()
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in bodies.extra_schemas().items():
            schemas.setdefault(name, schema)
        return found

    app.openapi = described  # type: ignore[method-assign]
