# SPDX-License-Identifier: Apache-2.0
"""Shared memory of a workgroup: its bytes, and which of them may be read by whom.

Ordinary stores are seen by wgmma, tcgen05 and bulk copies only after `fence.proxy.async`, by the
warp that stored or by one that met it at a barrier since. Source: PTX ISA, Memory Consistency
Model: Proxies; Async proxy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.wave import Array

__all__ = ["BASE", "CHUNK", "RANK", "Shared"]

BASE = 1024
"""Address of the first byte; the largest pattern of a swizzle divides it."""

RANK = 24
"""Bit from which on an address holds the rank of its workgroup in a cluster."""

CHUNK = 16
"""Bytes of what swizzles move and matrices are made of."""

_PUBLIC = 255
_ONES = {1: 0x01, 2: 0x0101, 4: 0x01010101, 8: 0x0101010101010101}


class Shared:
    """`size` bytes from BASE on, of each of `count` workgroups; the next one's are `room` further.

    Where it is asked for `homes`, these are the places where the rooms begin.

    written  1 of each byte that has a value
    unseen   1 + the warp that stored a byte without a fence of proxies since; 255 once others were
             told, whose fence then counts as well
    """

    def __init__(self, size: int, rank: int = 0, count: int = 1) -> None:
        self.size, self.rank, self.count = size, rank, count
        # A power of two, which divides what a matrix descriptor can address.
        room = self.room = 1 << (BASE + size + 127).bit_length()
        self.bytes, self.written, self.unseen = np.zeros((3, count * room), np.uint8)
        self._views = {
            n: tuple(array.view(f"u{n}") for array in (self.bytes, self.written, self.unseen))
            for n in (1, 2, 4, 8)
        }
        self._chunks, self._chunks_written, self._chunks_unseen = (
            array.view(np.uint64).reshape(-1, 2)
            for array in (self.bytes, self.written, self.unseen)
        )
        self._stored = [room, 0]
        self._private: set[int] = set()  # warps with stores that no other warp was told of

    def local(self, at: Array) -> Array:
        """Addresses without the rank of this workgroup, which they must have."""
        if not self.rank:
            return at  # what is of others lies outside
        if (at >> at.dtype.type(RANK) != self.rank).any():
            raise Fault("an address in the shared memory of another workgroup of the cluster")
        return at & at.dtype.type((1 << RANK) - 1)

    def check(self, at: Array, span: int, align: int, homes: Any = None) -> tuple[int, int]:
        """Fault for accesses outside, or not at a multiple of `align`; the bounds."""
        if self.count > 1:
            at = at - homes if homes is not None else at % self.room
        low, high = int(at.min()), int(at.max()) + span
        if low < BASE or high > BASE + self.size:
            where = low if low < BASE else high - span
            raise Fault(
                f"{span} bytes at {where - BASE} of shared memory of {self.size} bytes: outside"
            )
        if align > 1 and (at & at.dtype.type(align - 1)).any():
            raise Fault(f"shared memory is accessed at no multiple of {align} bytes")
        return low, high

    def load(self, at: Array, size: int, count: int = 1, homes: Any = None) -> Array:
        """[count, lanes] of `size` bytes from each address on."""
        at = self.local(at)
        self.check(at, size * count, size * count, homes)
        values, written, _ = self._views[size]
        where = at.astype(np.int64) // size + _STEPS[:count]
        if written[where].min() != _ONES[size]:
            raise Fault(f"shared memory is read that nobody wrote{self._where(at, size * count)}")
        return values[where]

    def store(self, at: Array, values: Array, warps: Array, homes: Any = None) -> None:
        """[count, lanes]; warps: of each lane. Of two lanes at one address the later one stays."""
        size, count = values.dtype.itemsize, len(values)
        at = self.local(at)
        low, high = self.check(at, size * count, size * count, homes)
        data, written, unseen = self._views[size]
        where = at.astype(np.int64) // size + _STEPS[:count]
        data[where] = values
        written[where] = _ONES[size]
        unseen[where] = ((warps + 1) * _ONES[size]).astype(f"u{size}")
        self._private.update(set(warps.tolist()))
        self._stored = [min(self._stored[0], low), max(self._stored[1], high)]

    def publish(self, warps: Array) -> None:
        """These warps tell others that they have stored: at barriers and arrivals."""
        told = self._private.intersection(warps.tolist()) if self._private else None
        if not told:
            return
        self._private -= told
        names = np.arange(256, dtype=np.uint8)
        names[np.array([*told]) + 1] = _PUBLIC
        part = self.unseen.reshape(self.count, -1)[:, self._stored[0] : self._stored[1]]
        part[:] = names[part]

    def fence(self, warps: Array) -> None:
        """What these warps stored, or know of, becomes visible to the asynchronous proxy."""
        low, high = self._stored
        if low >= high:
            return
        keep = np.ones(256, np.uint8)
        keep[np.unique(warps) + 1] = 0
        keep[_PUBLIC] = 0
        part = self.unseen.reshape(self.count, -1)[:, low:high]
        part *= keep[part]
        self._private.difference_update(np.unique(warps).tolist())
        if not part.any():
            self._stored = [self.room, 0]

    def chunks(self, at: Array, used: int = CHUNK, home: int = 0) -> Array:
        """Chunks of 16 bytes for the asynchronous proxy: [.., 16] uint8 of addresses [..].

        used  bytes that count; the rest is padding
        """
        self.check(at, CHUNK, CHUNK, home)
        where = at // CHUNK
        if self._chunks_unseen[where].any():
            raise Fault(
                "shared memory is read by the asynchronous proxy after ordinary stores without "
                "fence.proxy.async"
            )
        written = self._chunks_written[where].view(np.uint8)[..., :used]
        if not written.all():
            raise Fault("shared memory is read by the asynchronous proxy that nobody wrote")
        return self._chunks[where].view(np.uint8)

    def put_bytes(self, at: Array, values: Array) -> None:
        """Single bytes that the asynchronous proxy, or cp.async, writes."""
        self.check(at, 1, 1)
        self.bytes[at] = values
        self.written[at] = 1
        self.unseen[at] = 0

    def put_chunks(self, at: Array, values: Array) -> None:
        """The inverse of `chunks`: values [.., 16] uint8."""
        self.check(at, CHUNK, CHUNK)
        where = at // CHUNK
        self._chunks[where] = np.ascontiguousarray(values).view(np.uint64)
        self._chunks_written[where] = _ONES[8]
        self._chunks_unseen[where] = 0

    def forget_chunks(self, at: Array) -> None:
        """These chunks have no value until what is on its way has come."""
        self.check(at, CHUNK, CHUNK)
        self._chunks_written[at // CHUNK] = 0

    def forget(self, at: int, size: int) -> None:
        """What lies there has no value any more."""
        self.written[at : at + size] = 0

    def _where(self, at: Array, span: int) -> str:
        for address in at.tolist():
            if not self.written[address : address + span].all():
                return f", first at byte {address % self.room - BASE}"
        return ""


_STEPS = np.arange(16)[:, None]
