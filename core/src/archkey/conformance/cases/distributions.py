# SPDX-License-Identifier: Apache-2.0
"""Numbers as real models have them, for level accuracy: queries, keys and values of attention.

Normal numbers of one size hide what a model shows. Activations have heavy tails and a few channels
ten times as large as the others (LLM.int8(), arXiv:2208.07339); the first key takes most of the
attention and has next to no value (StreamingLLM, arXiv:2309.17453); scores of long contexts tie.
Queries are made to fit: where keys are loud they are quiet, so that scores stay of a size that a
trained model has, and what an error does to the output is known beforehand.

| kind | keys | scores |
|---|---|---|
| outlier channels | heavy tails; every 97th channel is 12 times as large | spread by 1.5 |
| near ties | values have a mean, as large as they spread | 12, spread by 0.05 |
| sink | the first has a twentieth of the others' values | of the first 2 to 10 more, by head |
| windows of keys | each window of 256 has a direction of its own | row i wants window i: 8 more |
| sizes of tiles | each 64 columns of a key another size, by up to 3000; or zero | spread by 0.7 |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from archkey.conformance.case import Maker

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "WINDOW",
    "Drawn",
    "about_windows",
    "activations",
    "draw",
    "focus",
]

KINDS = ("outlier channels", "near ties", "sink", "windows of keys", "sizes of tiles")

ACTIVATIONS = ("outlier channels", "sizes of tiles", "sizes of rows")

WINDOW = 256
"""Keys, and query rows, that errors are counted over together."""

_SPREAD = {"outlier channels": 1.5, "near ties": 0.05, "sizes of tiles": 0.7}
"""Of scores; 1 for the others."""

_MARKED = 64  # of a key's last columns: they carry what raises its score (MLA: the rope key)
_LOUD = 24.0  # size of a mark, next to a key's other numbers
_LEVEL = 12.0
_WANTED = 8.0


class Drawn(NamedTuple):
    """Queries `[n, H, d]`, keys `[m, Hk, d]`, values `[m, Hk, dv]`, all float32."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


def activations(make: Maker, kind: str, n: int, width: int) -> torch.Tensor:
    """Rows `[n, width]` in float32 for what works on each row by itself.

    kind  of ACTIVATIONS: "outlier channels" as above; "sizes of tiles"; "sizes of rows": from e^-9
          to e^9, every 50th row is zero
    """
    rows = _tailed(make, n, width)
    if kind == "sizes of tiles":
        return rows * _sizes(make, n, 1, width)[:, 0]
    if kind == "sizes of rows":
        size = torch.exp(18 * make.rand(n, 1) - 9)
        size[::50] = 0
        rows *= size
    return rows * _channels(make, width)


def focus(row: int, keys: int) -> range:
    """The keys that query row `row` wants, of so many that are in its reach."""
    first = row % -(-keys // WINDOW) * WINDOW
    return range(first, min(first + WINDOW, keys))


def about_windows(kind: str, keys: Sequence[int]) -> Callable[[int], str] | None:
    """What a query row of `kind` wants, in words: "keys 256..511"; None if no keys of its own.

    keys  that are in reach of each row
    """

    def about(row: int) -> str:
        wanted = focus(row, keys[row])
        return f"keys {wanted.start}..{wanted.stop - 1}"

    return about if kind == "windows of keys" else None


def draw(
    make: Maker,
    kind: str,
    shape: tuple[int, int, int],
    keys: tuple[int, int],
    scale: float,
    width_v: int = 0,
    row: int = 0,
    seen: int = 0,
) -> Drawn:
    """Queries, keys and values of one sequence.

    shape    (n, H, d): query rows, their heads, width of queries and keys
    keys     (m, Hk): keys and their heads
    scale    softmax_scale: scores are `scale * q . k`
    width_v  of values; 0: a value is its key, as in a latent cache, and the marks are in its last
             64 columns, those of the rope key
    row      number of the first query row in its call, which says what it wants
    seen     keys, the first ones, that all of the rows see; 0: all keys
    """
    (n, heads, d), (m, kv_heads) = shape, keys
    marks = min(_MARKED, d // 4)
    channels = _channels(make, d)
    channels[-marks:] = 1  # an outlier among them would be what a mark says
    k = _tailed(make, m, kv_heads, d)
    if kind == "sizes of tiles":
        k *= _sizes(make, m, kv_heads, d)
    # Of all keys alike, so a quiet channel of a query makes up for a loud one of the keys.
    own = _SPREAD.get(kind, 1.0) / (scale * (d - marks) ** 0.5 * float(k.square().mean()) ** 0.5)
    q = make.randn(n, heads, d, dtype=torch.float32) * own / channels
    v = _tailed(make, m, kv_heads, width_v) if width_v else k
    if kind == "near ties":
        v += make.randn(1, kv_heads, v.shape[-1], dtype=torch.float32)
    elif kind == "sink":
        v[0] *= 0.05
    k = k * channels
    _mark(make, kind, q, k, marks, scale, range(row, row + n), seen or m)
    return Drawn(q, k, v * _channels(make, width_v) if width_v else k)


def _mark(
    make: Maker,
    kind: str,
    q: torch.Tensor,
    k: torch.Tensor,
    marks: int,
    scale: float,
    rows: range,
    seen: int,
) -> None:
    """Raise the scores that `kind` raises: by a direction that those keys and queries share."""
    heads = q.shape[1]
    if kind == "near ties":
        k[..., -marks:] = _LOUD / marks**0.5
        q[..., -marks:] = _LEVEL / (scale * _LOUD * marks**0.5)
    elif kind == "sink":
        mark = _direction(make, 1, marks)
        k[0, :, -marks:] = _LOUD * mark
        wanted = 2 + 8 * make.rand(1, heads, 1)
        q[..., -marks:] += wanted / (scale * _LOUD) * mark
    elif kind == "windows of keys":
        each = _direction(make, -(-k.shape[0] // WINDOW), marks)
        k[..., -marks:] += _LOUD * each.repeat_interleave(WINDOW, 0)[: k.shape[0], None]
        windows = [focus(row, seen).start // WINDOW for row in rows]
        q[..., -marks:] += _WANTED / (scale * _LOUD) * each[windows, None]


def _direction(make: Maker, n: int, width: int) -> torch.Tensor:
    """Unit vectors `[n, width]`."""
    return torch.nn.functional.normalize(make.randn(n, width, dtype=torch.float32), dim=-1)


def _tailed(make: Maker, *shape: int) -> torch.Tensor:
    """Normal numbers times log-normal ones: one in a thousand is past 6 times their size."""
    size = torch.exp(0.7 * make.randn(*shape, dtype=torch.float32) - 0.49)
    return make.randn(*shape, dtype=torch.float32) * size


def _channels(make: Maker, width: int) -> torch.Tensor:
    """The size of each channel: log-normal, and every 97th 12 times as large."""
    size = torch.exp(0.4 * make.randn(width, dtype=torch.float32))
    size[5::97] *= 12
    return size


def _sizes(make: Maker, m: int, kv_heads: int, d: int) -> torch.Tensor:
    """Of each key's groups of 64 columns: e^-6 to e^2; the first is 0 in every third key."""
    groups = -(-d // 64)
    size = torch.exp(8 * make.rand(m, kv_heads, groups) - 6)
    size[::3, :, 0] = 0
    return size.repeat_interleave(64, -1)[..., :d]
