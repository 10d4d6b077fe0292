"""`triage gateway` before it reaches Kafka."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "cli", "gateway"]
        env = {**os.environ, "TRIAGE_GATEWAY__PORT": port}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert 1 == ended.returncode
    assert f"triage: Port {port} of 127.0.0.1 cannot be used" in ended.stderr
    assert 1 == len(ended.stderr.splitlines())
