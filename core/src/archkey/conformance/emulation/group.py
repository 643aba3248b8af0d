# SPDX-License-Identifier: Apache-2.0
"""What the waves of one workgroup share: LDS and the device's memory, and what they moved."""

from __future__ import annotations

from archkey.conformance.emulation.counters import Counters
from archkey.conformance.emulation.memory import Array, Memory, Room
from archkey.conformance.emulation.shadow import Lds

__all__ = ["Group"]


class Group:
    """One workgroup.

    waves      how many it has
    running    number of the wave that runs now
    arguments  the kernarg segment, which is no load that counts
    unwritten  Memory.label of the first read of LDS that nobody wrote
    fill       32 bits of registers and scratch that nobody wrote: a quiet NaN as float32, and as
               either half of it; lds_fill: a byte of such LDS
    """

    def __init__(
        self,
        memory: Memory,
        lds_bytes: int,
        waves: int = 1,
        counters: Counters | None = None,
        arguments: Room | None = None,
        fill: int = 0x7FFBADBA,
        lds_fill: int = 0xFF,
    ) -> None:
        self.memory, self.arguments = memory, arguments
        self.lds = Lds(lds_bytes, waves > 1, lds_fill)
        self.unwritten: int | None = None
        self.running = 0
        self.fill = fill
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

    def count_lds(self, loaded: int, stored: int) -> None:
        """Bytes that are about to be read and written."""
        self.counters.lds_loaded = (self.counters.lds_loaded or 0) + loaded
        self.counters.lds_stored = (self.counters.lds_stored or 0) + stored

    def read_lds(self, at: Array, size: int, count: int) -> Array:
        """`count` elements of `size` bytes from each byte address of LDS: [count, lanes]."""
        self.count_lds(size * count * len(at), 0)
        found = self.lds.read(self.running, at, size, count)
        self.noted()
        return found

    def noted(self) -> None:
        """After a read of LDS: remember the first one of what nobody wrote."""
        if self.lds.unwritten and self.unwritten is None:
            self.unwritten = self.memory.label()

    def write_lds(self, at: Array, values: Array) -> None:
        """Write `values` [count, lanes] from each byte address on."""
        self.count_lds(0, values.nbytes)
        self.lds.write(self.running, at, values)
