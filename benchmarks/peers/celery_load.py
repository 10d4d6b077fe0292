"""Load for `celery_app`: a backlog, then critical tasks at a steady rate. Runs in the peers' environment.

`celery_load.py fill '{"low": 1000}'` writes a backlog; `celery_load.py pace RATE SECONDS` sends critical tasks, waits for
their answers, and prints `{"critical": [[due_s, began_s, ended_s], ...], "served": {lane: count}}`; `served` counts what was answered
within the seconds.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from typing import Any

import redis
from celery_app import BROKER, DONE, LANES, app, serve

_PROMPT = "question: " + "lorem ipsum dolor sit amet " * 12
_AT_ONCE = 2000
_PATIENCE_S = 120.0


def fill(backlog: dict[str, int]) -> None:
    """Write as many messages as asked for, each as Celery itself writes one, in pipelines: it takes 200 s to send 200,000 one by one."""
    store: Any = redis.Redis.from_url(BROKER)
    for lane, count in backlog.items():
        known = str(uuid.uuid4())
        serve.apply_async((lane, 0.0, _PROMPT), priority=LANES.index(lane), task_id=known)
        queue = next(key for key in store.scan_iter("celery*") if store.type(key) == b"list" and store.llen(key) == 1)
        message = store.lpop(queue)
        assert message.count(known.encode())
        for start in range(0, count, _AT_ONCE):
            pipeline = store.pipeline(transaction=False)
            copies = [
                message.replace(known.encode(), str(uuid.uuid4()).encode()) for _ in range(min(_AT_ONCE, count - start))
            ]
            pipeline.lpush(queue, *copies)
            pipeline.execute()


def pace(rate: float, seconds: float) -> None:
    store: Any = redis.Redis.from_url(BROKER)
    with app.producer_pool.acquire() as producer:
        began_s = time.time()
        sent = int(rate * seconds)
        for number in range(sent):
            due_s = began_s + number / rate
            time.sleep(max(due_s - time.time(), 0))
            serve.apply_async(("critical", due_s, _PROMPT), priority=0, producer=producer)
    time.sleep(max(began_s + seconds - time.time(), 0))
    give_up_s = time.time() + _PATIENCE_S
    rows: list[Any] = []
    while time.time() < give_up_s:
        rows = [json.loads(row) for row in store.lrange(DONE, 0, -1)]
        if sum(row[1] >= began_s for row in rows) >= sent:
            break
        time.sleep(0.2)
    critical = [row[1:] for row in rows if row[1] >= began_s]
    served = {lane: sum(row[0] == lane and began_s <= row[3] < began_s + seconds for row in rows) for lane in LANES}
    print(json.dumps({"critical": critical, "served": served}))


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(json.loads(sys.argv[2]))
    else:
        pace(float(sys.argv[2]), float(sys.argv[3]))
