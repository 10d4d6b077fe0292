"""Asks a broker whether it serves, over a plain socket: no event loop, and nothing logged while it does not."""

from __future__ import annotations

import socket
import struct
from typing import Any, cast

from aiokafka.protocol.admin import CreateTopicsRequest_v3
from aiokafka.protocol.metadata import MetadataRequest_v5

_TIMEOUT_S = 5.0


def why_not_ready(port: int, brokers: set[int]) -> str | None:
    """Return what a broker still lacks, or None when it is ready.

    Ready: its metadata list every one of `brokers`, and the controller, asked through it, would create a topic with a
    replica on each of them. The topic is only validated, not created.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
            metadata = _ask(connection, MetadataRequest_v5([], False))  # [] = no topics
            listed = {broker[0] for broker in metadata.brokers}
            if not brokers <= listed:
                return f"broker on port {port} knows brokers {sorted(listed)} of {sorted(brokers)}"
            topic: tuple[Any, ...] = ("triage-is-it-ready", 1, len(brokers), [], [])
            reply = _ask(connection, CreateTopicsRequest_v3([topic], int(_TIMEOUT_S * 1000), True))
            _, code, detail = reply.topic_errors[0]
            return f"controller answers {detail or code}" if code else None
    except (OSError, EOFError) as error:
        return f"broker on port {port} does not answer: {error}"


def _ask(connection: socket.socket, request: Any) -> Any:
    body = request.build_request_header(correlation_id=1, client_id="triage-probe").encode() + request.encode()
    connection.sendall(struct.pack(">i", len(body)) + body)
    (size,) = struct.unpack(">i", _read(connection, 4))
    return request.RESPONSE_TYPE.decode(_read(connection, cast(int, size))[4:])  # without the correlation id


def _read(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise EOFError("the connection was closed")
        received += piece
    return received
