"""GPU samples from NVIDIA's driver, through NVML: opening it, and cards that come and go."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pynvml

from agents.gpu_sources.nvml_card import Asking, CardLost, Watch, failures, instance_readings, readings, reason
from schemas.gpu import GpuId, GPUMetrics, GpuSource, ReadingError
from streams.plausible import plausible

# A driver or a card that was absent is looked for again after this many reads; each look costs a search for the library.
READS_PER_RETRY = 10
_GONE = "the driver no longer lists it"


class NVMLReader:
    """A `GpuReader` of this host's NVIDIA cards and their instances (MIG); `nvml` is the module `pynvml` or one with its names.

    Without a driver `read` gives nothing, `unavailable_reason` says why, and every tenth read looks again. A driver counts its
    cards when it is opened, so it is opened anew at every tenth read while a card is missing. A card that was there and is not
    any more is lost until it is back.
    """

    def __init__(self, nvml: Any = pynvml, *, host: str | None = None) -> None:
        self._nvml = nvml
        self._host = host or socket.gethostname()
        self._errors = failures(nvml)
        self._ids: dict[int, GpuId] = {}  # by index: a lost card no longer tells its own name
        self._seen: dict[str, GpuId] = {}
        self._watches: dict[str, Watch] = {}
        self._is_open = False
        self._is_complete = True
        self._reads_until_retry = 0
        self.unavailable_reason: str | None = None

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return one sample per card and instance, [] when there is none."""
        if self._is_open and not self._is_complete:
            self._reads_until_retry -= 1
            if self._reads_until_retry < 0:
                self.close()
        if not self._open():
            return []
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._errors as error:
            self.close()
            self._unavailable(error)
            return []
        samples = [sample for index in range(count) for sample in self._samples(index, now_ms)]
        samples += [_lost(gpu, now_ms, _GONE) for gpu in self._missing(samples)]
        self._judge(samples)
        return [plausible(sample) for sample in samples]

    def close(self) -> None:
        """Let go of the driver; a later `read` opens it again."""
        if self._is_open:
            self._is_open = False
            self._reads_until_retry = 0
            for watch in self._watches.values():
                watch.end()
            try:
                self._nvml.nvmlShutdown()
            except self._errors as error:  # it is gone already
                self.unavailable_reason = reason(error)

    def _open(self) -> bool:
        if self._is_open:
            return True
        if self._reads_until_retry > 0:
            self._reads_until_retry -= 1
            return False
        try:
            self._nvml.nvmlInit()
        except self._errors as error:
            self._unavailable(error)
            return False
        self._is_open, self._is_complete = True, True
        return True

    def _unavailable(self, error: Exception) -> None:
        self._reads_until_retry = READS_PER_RETRY - 1
        self.unavailable_reason = f"NVML does not answer: {reason(error)}; is the NVIDIA driver loaded here?"

    def _judge(self, samples: list[GPUMetrics]) -> None:
        self.unavailable_reason = None if samples else "the NVIDIA driver is loaded and sees no GPU."
        is_complete = bool(samples) and not any(sample.lost for sample in samples)
        if self._is_complete and not is_complete:
            self._reads_until_retry = READS_PER_RETRY - 1
        self._is_complete = is_complete

    def _missing(self, samples: list[GPUMetrics]) -> list[GpuId]:
        there = {sample.gpu.uuid for sample in samples}
        return [gpu for uuid, gpu in self._seen.items() if uuid not in there]

    def _samples(self, index: int, now_ms: int) -> Iterator[GPUMetrics]:
        asking = Asking(self._nvml)
        try:
            handle = asking.get("gpu", lambda: self._nvml.nvmlDeviceGetHandleByIndex(index))
            if handle is None:
                faults = ["reset_required"] if asking.needs_reset else []
                yield GPUMetrics(self._known(index), GpuSource.NVML, now_ms, errors=asking.errors, faults=faults)
                return
            gpu = self._ids[index] = self._identify(asking, handle, self._known(index))
            card = readings(self._nvml, handle, gpu, self._watch(gpu.uuid, handle), asking, now_ms)
            yield card
            yield from self._instances(handle, card)
        except CardLost as lost:
            yield _lost(self._known(index), now_ms, str(lost))

    def _instances(self, card_handle: Any, card: GPUMetrics) -> Iterator[GPUMetrics]:
        for handle in _instance_handles(self._nvml, card_handle):
            asking = Asking(self._nvml)
            unnamed = GpuId("", card.gpu.index, card.gpu.name, self._host)
            gpu = self._identify(asking, handle, unnamed)
            if gpu.uuid:  # without one it has no key
                yield instance_readings(self._nvml, handle, gpu, card, asking)

    def _identify(self, asking: Asking, handle: Any, known: GpuId) -> GpuId:
        uuid = asking.get("gpu.uuid", lambda: self._nvml.nvmlDeviceGetUUID(handle))
        name = asking.get("gpu.name", lambda: self._nvml.nvmlDeviceGetName(handle))
        gpu = GpuId(uuid or known.uuid, known.index, name or known.name, self._host)
        if uuid:
            self._seen[uuid] = gpu
        return gpu

    def _known(self, index: int) -> GpuId:
        # The uuid is a record's key, so a card that never told its own gets one that no other card has.
        return self._ids.get(index) or GpuId(f"GPU-unknown-{self._host}-{index}", index, "unknown", self._host)

    def _watch(self, uuid: str, handle: Any) -> Watch:
        watch = self._watches.setdefault(uuid, Watch(self._nvml))
        watch.begin(handle)
        return watch


def _instance_handles(nvml: Any, card_handle: Any) -> Iterator[Any]:
    """Yield the handles of a card's instances; nothing where it is not split, or cannot be."""
    with suppress(*failures(nvml)):
        if nvml.nvmlDeviceGetMigMode(card_handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card_handle)):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card_handle, number)
            except nvml.NVMLError_NotFound:  # a place that is not in use
                continue
            yield handle


def _lost(gpu: GpuId, now_ms: int, why: str) -> GPUMetrics:
    return GPUMetrics(gpu, GpuSource.NVML, now_ms, lost=True, errors=[ReadingError("gpu", why)])
