# SPDX-License-Identifier: Apache-2.0
"""What the waves of one workgroup share: LDS and the device's memory, and what they moved."""

from __future__ import annotations

import numpy as np

from archkey.conformance.emulation.counters import Counters
from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.memory import Array, Memory, Room

__all__ = ["Group"]


class Group:
    """One workgroup.

    scratch_bytes  private memory of a lane
    arguments      the kernarg segment, which is no load that counts
    """

    def __init__(
        self,
        memory: Memory,
        lds_bytes: int,
        scratch_bytes: int,
        counters: Counters | None = None,
        arguments: Room | None = None,
    ) -> None:
        self.memory, self.arguments = memory, arguments
        self.lds = Room("LDS", np.full(lds_bytes, 0xFF, np.uint8), 0, 0)
        self.scratch_bytes = scratch_bytes
        self.counters = counters or Counters()

    def load(self, addresses: Array, size: int, count: int = 1) -> Array:
        """Of global memory: `count` elements of `size` bytes from each address: [count, lanes]."""
        self.counters.loaded += size * count * len(addresses)
        return self.memory.load(addresses, size, count)

    def copy(self, addresses: Array, size: int, count: int = 1) -> Array:
        """The same for a copy into LDS."""
        self.counters.copied += size * count * len(addresses)
        return self.memory.load(addresses, size, count)

    def store(self, addresses: Array, values: Array) -> None:
        """Write `values` [count, lanes] into global memory."""
        self.counters.stored += values.nbytes
        self.memory.store(addresses, values)

    def scalar(self, address: int, words: int) -> list[int]:
        """`words` 32-bit words from `address` on, for a scalar load."""
        own = self.arguments
        if own is None or not own.start <= address < own.end:
            self.counters.loaded += 4 * words
        return self.memory.scalar(address, words)

    def read_lds(self, at: Array, size: int, count: int) -> Array:
        """`count` elements of `size` bytes from each byte address of LDS: [count, lanes]."""
        self._check(at, size * count)
        self.counters.lds_loaded = (self.counters.lds_loaded or 0) + size * count * len(at)
        return self.lds.get(at, size, count)

    def write_lds(self, at: Array, values: Array) -> None:
        """Write `values` [count, lanes] from each byte address on."""
        self._check(at, values.dtype.itemsize * len(values))
        self.counters.lds_stored = (self.counters.lds_stored or 0) + values.nbytes
        self.lds.put(at, values)

    def _check(self, at: Array, span: int) -> None:
        """Fault past the end of the LDS."""
        last = int(at.max()) + span
        if last > self.lds.end:
            raise Fault(f"access to byte {last - 1} of an LDS of {self.lds.end} bytes")
