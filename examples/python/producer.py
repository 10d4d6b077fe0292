"""Send requests to a lane topic and print where each one lies: task_id, partition, offset.

Partitioner: aiokafka's default, murmur2 of the key as in Java, so a request keyed by its task_id lies on the task's home partition.
Run: pip install aiokafka; python producer.py [BOOTSTRAP [LANE_TOPIC [TEXT...]]]
"""

import asyncio
import json
import sys
import uuid

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

BOOTSTRAP, TOPIC, TEXTS = "127.0.0.1:9092", "triage.requests.normal", ["Name three fruits."]


async def main(bootstrap: str = BOOTSTRAP, topic: str = TOPIC, *given: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:

        async def send(text: str) -> None:
            # Your own id makes sending again harmless: the same id under the same key is the same task, with one outcome.
            task_id = uuid.uuid4().hex
            request = {"task_id": task_id, "messages": [{"role": "user", "content": text}]}
            sent = await producer.send_and_wait(topic, json.dumps(request).encode(), key=task_id.encode())
            print(task_id, sent.partition, sent.offset, sep="\t")

        await asyncio.gather(*(send(text) for text in given or TEXTS))


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except KafkaConnectionError as error:
        sys.exit(str(error))
