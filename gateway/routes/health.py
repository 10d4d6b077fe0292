"""Health, probes, metrics, version, and the page at `/`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway import bodies
from gateway.core import Gateway
from gateway.fleet import GpuView
from gateway.page import PAGE, docs
from gateway.ports import Unavailable
from gateway.routes.replies import described, gateway_of, json_response
from schemas import __version__

router = APIRouter(tags=["operation"])


@router.get(
    "/v1/async/health",
    responses={
        200: described(bodies.Health, "healthy or degraded."),
        503: described(bodies.Health, "unhealthy."),
    },
)
async def health(request: Request) -> Response:
    """Say how the gateway and what it stands on are."""
    body = health_of(gateway_of(request))
    return json_response(body, 503 if body["status"] == "unhealthy" else 200)


def health_of(gateway: Gateway) -> dict[str, Any]:
    """Return the health body: unhealthy when task routes cannot answer, degraded when less than all of it serves tasks."""
    logs, fleet = gateway.logs, gateway.fleet
    kafka = "waiting" if logs is None else "unreachable" if not logs.is_reachable else "reachable"
    unable = []
    if kafka != "reachable":
        unable.append("Kafka does not answer")
    elif not gateway.ready.is_set():
        unable.append("the gateway reads the logs and has not caught up yet")
    workers = fleet.workers(logs.now_ms) if logs is not None else 0
    backends = fleet.backends(logs.now_ms) if logs is not None else []
    gpus = fleet.gpus(logs.now_ms) if logs is not None else []
    lacking = [
        *([] if workers else ["no worker was heard of in the last 5 s"]),
        *(f"backend {each.name} is down: {each.reason or 'no reason given'}" for each in backends if not each.up),
        *(reason for each in gpus if (reason := _gpu_reason(each))),
    ]
    return {
        "status": "unhealthy" if unable else "degraded" if lacking else "healthy",
        "reasons": [*unable, *lacking],
        "kafka": kafka,
        "workers": workers,
        "backends": backends,
        "gpus": gpus,
    }


def _gpu_reason(gpu: GpuView) -> str | None:
    if gpu.lost:
        return f"GPU {gpu.uuid} of {gpu.host} is lost"
    if gpu.stale:
        return f"GPU {gpu.uuid} of {gpu.host} was last sampled {gpu.age_s:.0f} s ago"
    return None


@router.head("/healthz/live", include_in_schema=False)
@router.get("/healthz/live", include_in_schema=False)
async def live() -> Response:
    return json_response({"status": "alive"})


@router.head("/healthz/ready", include_in_schema=False)
@router.get("/healthz/ready", include_in_schema=False)
async def ready(request: Request) -> Response:
    gateway = gateway_of(request)
    if gateway.logs is None or gateway.stop.is_set():
        raise Unavailable("the gateway is stopping" if gateway.stop.is_set() else "the gateway waits for Kafka")
    gateway.logs.require()
    return json_response({"status": "ready"})


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    return Response(generate_latest(gateway_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.head("/version", include_in_schema=False)
@router.get("/version")
async def version() -> Response:
    """Say which version this is."""
    return json_response({"version": __version__})


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page() -> Response:
    return HTMLResponse(PAGE)


@router.get("/docs", include_in_schema=False)
async def described_routes(request: Request) -> Response:
    return HTMLResponse(docs(request.app.openapi()))
