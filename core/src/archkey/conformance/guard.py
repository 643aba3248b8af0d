# SPDX-License-Identifier: Apache-2.0
"""A kernel's tensors, moved to where every neighbour is poisoned and watched.

Each storage among the arguments is laid out anew between two guards, with the same strides, the
same aliasing and the same alignment. Guards, and gaps between the rows of a strided view, hold
NaN or indices far outside; what a kernel reads there shows in its result. What it writes there,
or into an input, is found afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Guarded", "poison"]

GUARD = 1 << 16
"""Bytes before and after: more than a row of any case, so that row -1 and row n are poisoned."""

WATCHED = 1 << 30
"""Larger storages are spread over untouched memory, see `Maker.far`: only guards are watched."""

_ALIGNMENT = 256  # bytes; pointers keep their residue, which kernels are chosen by


@dataclass
class _Room:
    """One storage, laid out anew."""

    names: list[str]
    buffer: torch.Tensor  # uint8: guard, content, guard
    start: int  # of the content
    end: int
    written: torch.Tensor | None = None  # per byte: belongs to an output; None if not watched
    before: torch.Tensor | None = None


class Guarded:
    """The arguments of one launch between guards; `tensors` stand in for the originals.

    names    of the arguments, for the message
    outputs  how many of the last arguments are written; the others must not change
    """

    def __init__(self, names: Sequence[str], arguments: Sequence[Any], outputs: int) -> None:
        self.arguments: list[Any] = list(arguments)
        self._rooms: list[_Room] = []
        first_output = len(arguments) - outputs
        groups: dict[int, list[int]] = {}
        for i, value in enumerate(arguments):
            if isinstance(value, torch.Tensor) and value.numel():
                groups.setdefault(value.untyped_storage().data_ptr(), []).append(i)
        for members in groups.values():
            self._rooms.append(self._move(names, members, first_output))

    def _move(self, names: Sequence[str], members: list[int], first_output: int) -> _Room:
        tensors = {i: self.arguments[i] for i in members}
        low = min(t.data_ptr() for t in tensors.values())
        high = max(t.data_ptr() + _span(t) for t in tensors.values())
        kind = next(iter(tensors.values()))
        buffer = torch.empty(
            high - low + 2 * GUARD + _ALIGNMENT, dtype=torch.uint8, device=kind.device
        )
        start = GUARD + (low - buffer.data_ptr() - GUARD) % _ALIGNMENT
        room = _Room([names[i] for i in members], buffer, start, start + high - low)
        watched = high - low <= WATCHED
        if watched:
            _fill(buffer, kind.dtype, start)
        else:
            _fill(buffer[:start], kind.dtype, start)
            _fill(buffer[room.end :], kind.dtype, 0)
        for i, original in tensors.items():
            moved = _view(buffer, original, start + original.data_ptr() - low)
            if 0 not in original.stride():
                moved.copy_(original)
            else:  # expanded: each element once
                _once(moved).copy_(_once(original))
            self.arguments[i] = moved
        if watched:
            room.written = torch.zeros(len(buffer), dtype=torch.bool, device=kind.device)
            for i in members:
                if i >= first_output:
                    _mark(room.written, self.arguments[i], buffer)
        return room

    def watch(self) -> None:
        """From here on, what changes outside of the outputs is a fault."""
        for room in self._rooms:
            whole = room.buffer if room.written is not None else _edges(room)
            room.before = whole.clone()

    def trespass(self) -> str:
        """What was written that is no output, by the argument next to it; "" if nothing was."""
        for room in self._rooms:
            if room.before is None:
                continue
            whole = room.buffer if room.written is not None else _edges(room)
            changed = whole != room.before
            if room.written is not None:
                changed &= ~room.written
            if bool(changed.any()):
                if room.written is None:  # the guards alone, one after the other
                    place = "before or after"
                else:
                    at = int(changed.nonzero()[0])
                    place = "before" if at < room.start else "after" if at >= room.end else "inside"
                count = int(changed.sum())
                return f"wrote {count} bytes {place} {', '.join(room.names)}, which is no output"
        return ""


def poison(tensor: torch.Tensor) -> None:
    """Fill with what must not reach a result: NaN, or an index far outside."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
        tensor.fill_(float("nan"))
    elif tensor.dtype.is_floating_point:
        # Not every flavour's conversion from a float NaN is NaN: the code is stated.
        tensor.view(torch.uint8).fill_(0x80 if "fnuz" in str(tensor.dtype) else 0x7F)
    elif tensor.dtype in (torch.int32, torch.int64):
        tensor.fill_(2147480000)
    else:
        tensor.view(torch.uint8).fill_(0xFF)


def _fill(room: torch.Tensor, dtype: torch.dtype, offset: int) -> None:
    """Poison bytes as elements of `dtype` that lie like the one at byte `offset`."""
    size = dtype.itemsize
    skip = offset % size
    room[:skip] = 0xFF
    whole = room[skip : skip + (len(room) - skip) // size * size]
    room[skip + len(whole) :] = 0xFF
    if dtype in (torch.int32, torch.int64) or dtype.is_floating_point:
        one = torch.empty(1, dtype=dtype, device=room.device)
        poison(one)
        # Bytes of one element, repeated: a view of other alignment than torch demands is no view.
        whole.view(-1, size).copy_(one.view(torch.uint8))
    else:
        whole.fill_(0xFF)


def _span(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _view(buffer: torch.Tensor, like: torch.Tensor, offset: int) -> torch.Tensor:
    """`like`'s shape, strides and dtype on the bytes from `offset`."""
    typed = buffer[offset : offset + _span(like)].view(like.dtype)
    return typed.as_strided(like.shape, like.stride())


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """Without the repetitions of an expanded dimension."""
    index = tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())
    return tensor[index]


def _mark(written: torch.Tensor, tensor: torch.Tensor, buffer: torch.Tensor) -> None:
    """Set the bytes of `tensor`'s elements."""
    size = tensor.element_size()
    shape = (*tensor.shape, size)
    strides = (*(s * size for s in tensor.stride()), 1)
    written.as_strided(shape, strides, tensor.data_ptr() - buffer.data_ptr()).fill_(True)


def _edges(room: _Room) -> torch.Tensor:
    return torch.cat([room.buffer[: room.start], room.buffer[room.end :]])
