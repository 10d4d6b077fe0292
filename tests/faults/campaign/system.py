"""The processes of a campaign: workers and gateways on three brokers, started again when they end by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.processes import free_ports
from streams.settings import KafkaSettings
from tests.gateway.process import spawn
from tests.support.stack import Stack

# A worker's drain may take 25 s; then it leaves its groups.
END_S = 45.0
_READY_S = 120.0
_LOOK_S = 0.2
BACKEND_TIMEOUT_S = 5.0


@dataclass
class Replicated(Stack):
    """A stack on three brokers that replicate; failures go through one short retry topic, so that a run drains soon."""

    session_s: float = 6.0

    @property
    def kafka(self) -> KafkaSettings:
        return KafkaSettings(bootstrap=self.bootstrap, prefix=self.prefix, partitions=self.partitions, replication=3)

    def settings(self) -> str:
        text = super().settings().replace("replication = 1", "replication = 3")
        text = text.replace("allow_insecure_dev = true\n", "")
        return text + '\n[retry]\ntiers = ["5s"]\n[gpus]\nsource = "none"\n'


class Member:
    """One process. `start` returns when it is ready; one that ends without having been told to is started again and counted.

    `overdue_count`: how often it did not end in time after a signal; `late_count`: how often it was not ready in time.
    """

    def __init__(self, name: str, spawn: Callable[[], subprocess.Popen[str]], say: Callable[[str], None]) -> None:
        self.name, self._spawn, self._say = name, spawn, say
        self.process: subprocess.Popen[str] | None = None
        self.is_wanted = False
        self.ended_alone: list[int] = []
        self.overdue_count = self.late_count = 0
        self._starting = asyncio.Lock()
        self._noted: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        """Raises: TimeoutError when it does not get ready."""
        self.is_wanted = True
        async with asyncio.timeout(_READY_S):
            while self.is_wanted and not await self._started():  # noqa: ASYNC110 - a pause before the next try
                await asyncio.sleep(_LOOK_S)

    async def back(self) -> bool:
        """Start it once more and return whether it got ready; one that does not is counted, and left to itself."""
        try:
            await self.start()
        except TimeoutError:
            self._say(f"{self.name} was not ready within {_READY_S:g} s")
            self.late_count += 1
            return False
        return True

    async def look(self) -> None:
        """Start it again if it ended by itself."""
        if self.is_wanted and not self._starting.locked() and self.process is not None and self._code() is not None:
            self._note_end()
            await self.back()

    async def _started(self) -> bool:
        async with self._starting:
            if self.process is not None and self._code() is None:
                return True
            self.process = self._spawn()
            assert self.process.stdout is not None
            line = await asyncio.to_thread(self.process.stdout.readline)
            if line:
                assert json.loads(line)["event"] == "ready"
                return True
            self.process.wait()
            if self.is_wanted:
                self._note_end()
            return False

    async def end(self, how: signal.Signals) -> int:
        """Send a signal and return the exit status; one that does not end in 45 s is killed."""
        self.is_wanted = False
        assert self.process is not None
        self.process.send_signal(how)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                while self._code() is None:  # noqa: ASYNC110 - a process tells nobody that it ended
                    await asyncio.sleep(0.02)
        if self._code() is None:
            self._say(f"{self.name} did not end within {END_S:g} s of {how.name}")
            self.overdue_count += 1
            self.process.kill()
        return self.process.wait()

    def pause(self) -> str:
        """Freeze it and return the state that the kernel tells."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _code(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def _note_end(self) -> None:
        """Count an end once, whoever notices it: who starts a process sees it end too."""
        if self._noted is self.process:
            return
        self._noted = self.process
        code = self._code()
        self.ended_alone.append(code if code is not None else 0)
        self._say(f"{self.name} ended by itself with {code}; it is started again")


class System:
    """The workers and gateways. `urls` are the gateways', which keep their ports."""

    def __init__(self, stack: Replicated, *, workers: int, gateways: int, say: Callable[[str], None]) -> None:
        self.stack, self._say = stack, say
        self._spawned: list[subprocess.Popen[str]] = []
        self._numbers = 0
        self.all: list[Member] = []
        self.workers = [self.new_worker() for _ in range(workers)]
        ports = free_ports(gateways)
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.gateways = [self._new_gateway(number, port) for number, port in enumerate(ports, 1)]

    def new_worker(self) -> Member:
        self._numbers += 1
        return self._member(f"worker-{self._numbers}", self.stack.spawn_worker)

    def _new_gateway(self, number: int, port: int) -> Member:
        folder = self.stack.folder / f"gateway-{number}"

        def start() -> subprocess.Popen[str]:
            process = spawn(self.stack, folder, port=port)
            self._spawned.append(process)
            return process

        return self._member(f"gateway-{number}", start)

    def _member(self, name: str, start: Callable[[], subprocess.Popen[str]]) -> Member:
        member = Member(name, start, self._say)
        self.all.append(member)
        return member

    async def start(self) -> None:
        await asyncio.gather(*(member.start() for member in self.all))

    async def watch(self) -> None:
        """Start again what ends by itself, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for member in self.all:
                group.create_task(self._watched(member))
            seen = len(self.all)
            while True:
                await asyncio.sleep(_LOOK_S)
                for member in self.all[seen:]:
                    group.create_task(self._watched(member))
                seen = len(self.all)

    async def _watched(self, member: Member) -> None:
        while True:
            await member.look()
            await asyncio.sleep(_LOOK_S)

    def close(self) -> None:
        """Kill the gateways that are left; the stack kills its workers."""
        for process in self._spawned:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
