"""The same work on Celery: a task that calls the model server. Runs in the peers' environment, with nothing of Triage.

Set as well as it can be for priorities: one message at a time per process, acknowledged late, queues asked in the order of urgency.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

import redis
from celery import Celery

BROKER = os.environ["BENCH_REDIS"]
LANES = ("critical", "high", "normal", "low")
DONE = "bench-done"

app = Celery("bench", broker=BROKER)
app.conf.update(
    broker_transport_options={
        "priority_steps": list(range(len(LANES))),
        "queue_order_strategy": "priority",
        "visibility_timeout": 3600,
    },
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
_url = urlsplit(os.environ["BENCH_URL"])
_connection: Any = None
_store: Any = None


def _serve(lane: str, due_s: float, prompt: str) -> None:
    """Call the model server over a kept connection, and say when the task was due, began and was answered."""
    global _connection, _store
    if _connection is None:
        _connection = http.client.HTTPConnection(str(_url.hostname), _url.port)
        _store = redis.Redis.from_url(BROKER)
    began_s = time.time()
    body = json.dumps({"model": "stub", "messages": [{"role": "user", "content": prompt}], "max_tokens": 16})
    _connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    json.loads(_connection.getresponse().read())
    _store.rpush(DONE, json.dumps([lane, due_s, began_s, time.time()]))


serve = app.task(name="bench.serve")(_serve)
