# SPDX-License-Identifier: Apache-2.0
"""Tensor memory of a workgroup: 128 lanes of 512 columns of 32 bits, and who has allocated them.

An address is lane * 65536 + column. A warp reaches the 32 lanes of its place in its warp group.
Source: PTX ISA, TensorCore 5th Generation: Tensor Memory; tcgen05.alloc, ld, st, wait.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.wave import Array

__all__ = ["COLUMNS", "TensorMemory"]

ROWS, COLUMNS = 128, 512


class TensorMemory:
    """cells [lane, column]; written: which have a value; stored: 1 + the warp whose tcgen05.st was

    not waited for.
    """

    def __init__(self, workgroup: Any) -> None:
        self.workgroup = workgroup
        self.allocated: dict[int, int] = {}
        self.relinquished = False
        self.in_flight = 0

    @property
    def cells(self) -> Array:
        """All cells, which a workgroup gets with its first allocation."""
        return self._cells

    def allocate(self, columns: int) -> int:
        """tcgen05.alloc: the address of the first column."""
        if self.relinquished:
            raise Fault("tcgen05.alloc after tcgen05.relinquish_alloc_permit")
        if columns < 32 or columns > COLUMNS or columns & (columns - 1):
            raise Fault(f"tcgen05.alloc of {columns} columns: a power of two from 32 to 512")
        if not self.allocated:
            self._cells = np.zeros((ROWS, COLUMNS), np.uint32)
            self.written = np.zeros((ROWS, COLUMNS), np.bool_)
            self.stored = np.zeros((ROWS, COLUMNS), np.uint8)
        taken = np.zeros(COLUMNS, np.bool_)
        for start, count in self.allocated.items():
            taken[start : start + count] = True
        for start in range(0, COLUMNS - columns + 1, columns):
            if not taken[start : start + columns].any():
                self.allocated[start] = columns
                self.written[:, start : start + columns] = False
                return start
        raise Fault(f"tcgen05.alloc of {columns} columns waits for ever: {self._said()}")

    def free(self, address: int, columns: int) -> None:
        """tcgen05.dealloc."""
        if self.allocated.get(address) != columns:
            raise Fault(f"tcgen05.dealloc of {columns} columns at {address:#x}: {self._said()}")
        if self.in_flight:
            raise Fault(f"tcgen05.dealloc while {self.in_flight} operations are not complete")
        del self.allocated[address]

    def check(self, column: int, count: int) -> None:
        """Fault unless the columns belong to one allocation."""
        for start, columns in self.allocated.items():
            if start <= column and column + count <= start + columns:
                return
        raise Fault(f"tensor memory, columns {column} to {column + count - 1}: {self._said()}")

    def read(self, lanes: Array, columns: Array) -> Array:
        """Cells [..] of the lanes and columns. Fault for those that have no value."""
        self.check(int(columns.min()), int(columns.max() - columns.min()) + 1)
        if not self.written[lanes, columns].all():
            raise Fault("tensor memory is read that nobody wrote")
        return self._cells[lanes, columns]

    def peek(self, lanes: Array, columns: Array) -> Array:
        """The same for tcgen05.ld: NaN where nobody wrote.

        Compilers load ahead of a predicate under which the values are dropped again.
        """
        self.check(int(columns.min()), int(columns.max() - columns.min()) + 1)
        cells = self._cells[lanes, columns]
        return np.where(self.written[lanes, columns], cells, np.uint32(0x7FFBADBA))

    def write(self, lanes: Array, columns: Array, values: Array) -> None:
        """The inverse of `read`."""
        self.check(int(columns.min()), int(columns.max() - columns.min()) + 1)
        self._cells[lanes, columns] = values
        self.written[lanes, columns] = True

    def settled(self, lanes: Array, columns: Array) -> None:
        """Fault for cells whose tcgen05.st was not waited for."""
        if self.stored[lanes, columns].any():
            raise Fault("tensor memory is read after tcgen05.st without tcgen05.wait::st")

    def wait_stores(self, warps: Array) -> None:
        """tcgen05.wait::st of these warps."""
        if self.allocated:
            keep = np.ones(256, np.uint8)
            keep[np.unique(warps) + 1] = 0
            self.stored *= keep[self.stored]

    def check_done(self) -> None:
        """Fault at the end of a workgroup that keeps columns."""
        if self.allocated:
            raise Fault(f"a workgroup ends and keeps tensor memory: {self._said()}")

    def _said(self) -> str:
        parts = [f"{count} columns at {start:#x}" for start, count in self.allocated.items()]
        return f"allocated are {', '.join(parts) or 'none'}"
