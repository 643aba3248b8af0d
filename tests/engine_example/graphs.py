# SPDX-License-Identifier: Apache-2.0
"""One function over static buffers, captured for each padded batch size and replayed.

Whether the device replays is a capability, not a question of whose it is: `cuda_graph` is true of
CUDA and HIP alike, and torch calls both `torch.cuda`. Without it the same class calls the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

WARM_UPS = 2
"""Runs before a capture: libraries set up their workspaces in the first ones, and may not later."""


class Replay:
    """`body(size)` works on the first `size` rows of static buffers.

    What it returns is valid until the next run. captured: the graphs, by size.
    """

    def __init__(
        self, body: Callable[[int], tuple[torch.Tensor, ...]], sizes: Sequence[int]
    ) -> None:
        self.body, self.sizes = body, sorted(sizes)
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]] = {}

    def capture(self, device: torch.device) -> None:
        """Record every size. The buffers must hold what can be run: a batch of padding will do."""
        pool = None
        with torch.cuda.device(device):
            for size in reversed(self.sizes):  # the smaller ones fit in the memory of the largest
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(WARM_UPS):
                        self.body(size)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    outputs = self.body(size)
                self.captured[size] = graph, outputs
                pool = pool or graph.pool()

    def padded(self, rows: int) -> int:
        """The smallest size that holds `rows`."""
        return next(size for size in self.sizes if size >= rows)

    def run(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Run the smallest size that holds `rows`."""
        size = self.padded(rows)
        if size not in self.captured:
            return self.body(size)
        graph, outputs = self.captured[size]
        graph.replay()
        return outputs


def padded_sizes(most: int) -> list[int]:
    """1, 2, 4, ... up to and with `most`: padding at most doubles a batch."""
    return [*(1 << i for i in range((most - 1).bit_length())), most]
