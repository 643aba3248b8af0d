# SPDX-License-Identifier: Apache-2.0
"""How long calls take on a device.

On an accelerator each call is captured in a graph of its own and replayed between two events;
before each replay a sweep reads more than the last-level cache holds, and the inputs rotate. So
host work is not in the time, and the caches are as cold as in an engine that has just run another
layer. (A sweep that writes would leave lines which the timed call has to write back: 4 us of
somebody else's work on an H200.) What cannot be captured is launched between events, and says so
in `Timing.method`.

Matrix products without a pause heat a card until it halves its clock, and the next entrant would
pay for the one before. So the card rests between long calls, and the clock it ran at is kept. A
card that was idle answers slowly at first: an H200 took 129 us for a norm of 112, for some
milliseconds. So it is kept busy before the first sample, and short calls follow without a pause.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from archkey.bench.results import Timing

__all__ = ["Clock"]

Call = Callable[[], object]

_SLOW_MS = 250.0  # from here on a call is not captured: launching is no part of its time any more
_WARM_MS = 0.5  # up to here, the time among others of its kind is measured too
_HOT_MS = 0.2  # from here on the card rests between calls
_REST = 2.0  # as long as a call, times this: what runs hot for long slows down whoever comes next
_IN_A_ROW = 20  # calls of the graph for the warm time
_AWAKE = 0.1  # seconds of sweeps before the first sample
_BATCH = 8  # samples that are launched before the first of them is waited for


class Clock:
    """Times calls on `device`.

    samples  calls that are timed, at most
    seconds  of device time that they may take; three are timed whatever they take
    """

    def __init__(self, device: torch.device, samples: int = 40, seconds: float = 0.4) -> None:
        self.device = device
        self.samples, self.seconds = samples, seconds
        self._sweep: torch.Tensor | None = None
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            # AMD's last-level cache of 256 MiB is not what torch states as L2.
            size = max(3 * cache, 192 << 20) if torch.version.hip is None else 768 << 20
            self._sweep = torch.zeros(size // 4, device=device)

    def time(self, calls: Sequence[Call]) -> Timing:
        """The time of one call; `calls` are the same call on different inputs.

        Raises what a call raises.
        """
        with torch.inference_mode():
            if self._sweep is None:
                return self._by_host(calls)
            with torch.cuda.device(self.device):
                return self._on_device(calls)

    def _by_host(self, calls: Sequence[Call]) -> Timing:
        calls[0]()
        start = time.perf_counter()
        calls[-1]()
        count = self._count(time.perf_counter() - start)
        times = []
        for i in range(count):
            start = time.perf_counter()
            calls[i % len(calls)]()
            times.append((time.perf_counter() - start) * 1e6)
        return _timing(times, "host")

    def _on_device(self, calls: Sequence[Call]) -> Timing:
        for call in calls:  # the first one compiles, and tunes itself
            call()
        once_ms = self._between_events(calls[-1:])[0] / 1e3
        graphs = [] if once_ms > _SLOW_MS else _captured(calls)
        replays: Sequence[Call] = [graph.replay for graph in graphs] or calls
        times: list[float] = []
        rates = []
        count, batch = self._count(once_ms / 1e3), _BATCH if once_ms <= _HOT_MS else 1
        self._wake()
        for first in range(0, count, batch):
            order = range(first, min(first + batch, count))
            times += self._between_events([replays[i % len(replays)] for i in order])
            if first % _BATCH == 0:
                rates.append(self._clock_mhz())
            if once_ms > _HOT_MS:
                time.sleep(_REST * times[-1] / 1e6)
        warm = self._warm(calls) if graphs and once_ms < _WARM_MS else None
        timing = _timing(times, "graph" if graphs else "events", warm)
        known = [rate for rate in rates if rate]
        return replace(timing, clock_mhz=min(known) if known else None)

    def _clock_mhz(self) -> int | None:
        """The multiprocessors' clock; None if the driver's library is not there to say it."""
        try:
            return int(torch.cuda.clock_rate(self.device))
        except (ModuleNotFoundError, RuntimeError, AttributeError):
            return None

    def _wake(self) -> None:
        """Keep the device busy for a while, on memory alone: nothing that heats it."""
        sweep: Any = self._sweep
        end = time.perf_counter() + _AWAKE
        while time.perf_counter() < end:
            for _ in range(_IN_A_ROW):
                sweep.sum()
            torch.cuda.synchronize(self.device)

    def _between_events(self, calls: Sequence[Call]) -> list[float]:
        """Microseconds of each call on the device after a sweep of its cache."""
        sweep: Any = self._sweep
        events = []
        for call in calls:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            sweep.sum()
            start.record()
            call()
            end.record()
            events.append((start, end))
        events[-1][1].synchronize()
        return [float(start.elapsed_time(end)) * 1e3 for start, end in events]

    def _warm(self, calls: Sequence[Call]) -> float | None:
        """Microseconds of a call in a graph of many, with nothing between them."""
        rounds = -(-_IN_A_ROW // len(calls))
        graphs = _captured([lambda: [call() for _ in range(rounds) for call in calls]])
        if not graphs:
            return None
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times: list[float] = []
        for _ in range(7):
            start.record()
            graphs[0].replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / (rounds * len(calls)))
        return statistics.median(times[1:])

    def _count(self, seconds: float) -> int:
        """Samples that fit into the time; three at least."""
        return max(3, min(self.samples, int(self.seconds / max(seconds, 1e-9))))


def _captured(calls: Sequence[Call]) -> list[torch.cuda.CUDAGraph]:
    """A graph for each call; none at all if one cannot be captured."""
    graphs = []
    torch.cuda.synchronize()
    try:
        for call in calls:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            graph.replay()
            graphs.append(graph)
        torch.cuda.synchronize()
    except RuntimeError:  # it waits for the device, or allocates by itself
        torch.cuda.synchronize()
        return []
    return graphs


def _timing(times: Sequence[float], method: str, warm: float | None = None) -> Timing:
    """Median and spread of times [us]."""
    ordered = sorted(times)

    def at(share: float) -> float:
        return ordered[round(share * (len(ordered) - 1))]

    return Timing(statistics.median(ordered), at(0.1), at(0.9), len(ordered), method, warm)
