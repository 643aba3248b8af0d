# SPDX-License-Identifier: Apache-2.0
"""The Triton body of mxfp4_linear: its numbers under the interpreter, and who multiplies where.

Numbers run with TRITON_INTERPRET=1, which has no product of bfloat16 and none with block scales:
operands are widened there, so that what is tested is addresses, masks, decoding and the parts of x.
Machine code is made in a child process without it, with no GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from archkey.formats import dequantize_mxfp4
from archkey.kernels import mxfp4_linear_body as bodies
from archkey.kernels.linear_tunings import LinearTile, Mxfp4LinearTuning
from archkey.kernels.mxfp4_linear import part_of
from archkey.kernels.mxfp4_linear_body import mxfp4_linear_body, mxfp4_linear_sum_body
from archkey.ops.mxfp4_linear import Mxfp4LinearProblem
from archkey.reference.linear import mxfp4_linear

interpreted = pytest.mark.skipif(
    not isinstance(mxfp4_linear_body, InterpretedFunction),
    reason="triton was imported before TRITON_INTERPRET=1 was set",
)

FEW, MANY = (16, 16, 64), (32, 64, 32)  # rows, columns of out, columns of x


def _bytes(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)


def _call(tokens: int, k: int, n: int, dtype: torch.dtype | None) -> dict[str, Any]:
    """x of a dtype, or packed."""
    blocks = -(-k // 32)
    call: dict[str, Any] = {
        "x": torch.randn(tokens, k, generator=torch.Generator().manual_seed(tokens)),
        "weight": _bytes(n, k // 2),
        "weight_scale": _bytes(n, blocks, low=120, high=130),
    }
    if dtype is None:
        call["x"], call["x_scale"] = _bytes(tokens, k // 2, seed=1), _bytes(tokens, blocks, low=120)
        call["x_scale"] %= 128
    else:
        call["x"] = call["x"].to(dtype)
    return call


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    group: int = 8,
    part: int = 0,
    wgmma: bool = False,
    many: tuple[int, int, int] = MANY,
) -> torch.Tensor:
    """In parts of so many columns, or whole."""
    rows, n, k = x.shape[0], weight.shape[0], 2 * weight.shape[1]
    t, columns, step = FEW if rows <= 16 else many
    out = torch.full((rows, n), torch.nan)
    parts = -(-k // part) if part else 1
    sums = torch.full((parts, rows, n), torch.nan) if part else out
    mxfp4_linear_body[(-(-rows // t) * -(-n // columns), parts)](
        *(x, x_scale, weight, weight_scale, None if part else bias, sums, rows, x.stride(0), 0),
        *(0 if x_scale is None else x_scale.stride(0), 0),
        *(weight.stride(0), weight_scale.stride(0), n, 0),
        *(k, n, 1, "none" if x_scale is None else "row", 1),
        *(False, True, wgmma, False, part or k, t, columns, step, 2, group, False),
    )
    if part:
        mxfp4_linear_sum_body[(rows, -(-n // 32))](
            *(sums, bias, out, rows, n, 0, n, 1, parts, 32, False)
        )
    return out


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, None])
@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
@pytest.mark.parametrize(("k", "n"), [(128, 64), (98, 70), (2, 1)])
def test_it_equals_the_reference(k: int, n: int, tokens: int, dtype: torch.dtype | None) -> None:
    call = _call(tokens, k, n, dtype) | {"bias": torch.arange(n).float()}
    (want,) = mxfp4_linear(**call, compute_dtype=torch.float64)
    torch.testing.assert_close(_run(**call).double(), want, rtol=1e-5, atol=1e-4)


@interpreted
@pytest.mark.parametrize("group", [1, 3, 100])
def test_every_order_of_tiles_covers_out(group: int) -> None:
    call = _call(100, 32, 130, torch.bfloat16)
    (want,) = mxfp4_linear(**call)
    torch.testing.assert_close(_run(**call, group=group), want, rtol=1e-5, atol=1e-4)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("k", [256, 194])  # with parts of 64: as many in all, and 2 in the last
def test_parts_of_k_add_up(k: int, tokens: int, dtype: torch.dtype | None) -> None:
    call = _call(tokens, k, 70, dtype) | {"bias": torch.arange(70).float()}
    (want,) = mxfp4_linear(**call, compute_dtype=torch.float64)
    torch.testing.assert_close(_run(**call, part=64).double(), want, rtol=1e-5, atol=1e-4)


@interpreted
@pytest.mark.parametrize("tokens", [3, 40])  # weights are on the left, and x
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_orders_of_operands_for_wgmma_agree(tokens: int, dtype: torch.dtype) -> None:
    call = _call(tokens, 194, 70, dtype)
    (want,) = mxfp4_linear(**call, compute_dtype=torch.float64)
    found = _run(**call, wgmma=True, many=(64, 64, 32))
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-4)


def test_k_is_split_where_out_has_few_tiles() -> None:
    """Into whole steps, not too few, and as even as they come."""
    tile = LinearTile(rows=16, t=16, n=64, k=256, stages=4, num_warps=4, fill=4)

    def part(k: int, n: int, fill: int = 4) -> int:
        problem = Mxfp4LinearProblem("bfloat16", "bfloat16", k, n)
        return part_of(problem, tile._replace(fill=fill), 132)

    assert part(16384, 7168) == 4096  # 112 tiles: four parts fill 528 places
    assert part(16384, 7168, fill=0) == 16384
    assert part(1536, 24576) == 1536
    assert part(16384, 64) == 1024  # four steps
    assert part(2880, 64) == 1024  # 12 steps, the last not full
    assert part(2, 64) == 256  # more than there is: whole


@pytest.mark.parametrize("rows", [[], [16], [0, 0], [64, 16, 0], [16, 16, 0]])
def test_tiles_are_for_more_and_more_rows(rows: list[int]) -> None:
    tiles = tuple(LinearTile(up_to, 16, 64, 64, 2, 4, 0) for up_to in rows)
    with pytest.raises(ValueError, match="more and more rows, then for any"):
        Mxfp4LinearTuning(tiles)


@triton.jit
def _decode_all(packed, scale, out, C: tl.constexpr, HALF: tl.constexpr):
    """A byte with each scale; out as bits, since the interpreter cannot widen subnormal ones."""
    row, column = tl.arange(0, 256)[:, None], tl.arange(0, C)[None, :]
    codes = tl.load(packed + row * C + column)
    block = tl.arange(0, C // 16)[None, :]
    values = bodies._decode(codes, tl.load(scale + row * (C // 16) + block), HALF)
    twice = tl.arange(0, 2 * C)[None, :]
    tl.store(out + row * 2 * C + twice, values.to(tl.int16, bitcast=True))


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered in multiply")  # numpy's, as on a device
def test_every_code_with_every_scale_is_exact() -> None:
    """All 16 codes in both nibbles, all 256 scales: subnormal results, NaN, and infinities where
    float32 has no such number.
    """
    codes = torch.arange(256, dtype=torch.uint8).expand(256, 256).contiguous()
    scale = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 16).contiguous()
    out = torch.empty(256, 512, dtype=torch.int16)
    _decode_all[(1,)](codes, scale, out, 256, False)
    found, want = out.view(torch.bfloat16).double(), dequantize_mxfp4(codes, scale).double()
    torch.testing.assert_close(found, want, rtol=0, atol=0, equal_nan=True)
    assert want[0].abs()[want[0] != 0].min() == 2.0**-128
    assert want[255].isnan().all()


# ---- machine code

_COMPILE = """
import json
import archkey
from archkey.conformance.machine_code import expectations, judge_code, read

session = archkey.open({target!r})
kernels = {{kernel.name: kernel for kernel in session.kernels("mxfp4_linear")}}
found = {{}}
for name, label in {wanted!r}:
    problem = session.operators["mxfp4_linear"].examples[label]._replace(pdl=session.pdl)
    codes = [read(made) for made in session.plan(problem, kernel=kernels[name].id).compiled]
    complaints = judge_code(codes, expectations(kernels[name], problem, session))
    found[name + ", " + label] = [sorted(codes[0].instructions), complaints]
print(json.dumps(found))
"""
W4A16, W4A4 = "GPT-OSS-120B gate and up, W4A16", "GPT-OSS-120B down, W4A4"
DECODED, SCALED = (("triton", W4A16), ("triton", W4A4)), (("triton_scaled", W4A4),)
PRODUCTS = {
    "cuda_sm90": (DECODED, "wgmma"),
    "cuda_sm100": (DECODED[:1], "tcgen05"),
    "cuda_sm100 scaled": (SCALED, "block_scaled"),  # kind::mxf4
    "rocm_gfx942": (DECODED, "mfma"),
    "rocm_gfx950": (DECODED[:1], "mfma"),
    "rocm_gfx950 scaled": (SCALED, "scaled_mfma"),
}
"""Kernels with an example, and the instruction that multiplies."""


@pytest.mark.parametrize("which", PRODUCTS)
def test_the_matrix_unit_multiplies(which: str, run_python: Callable[..., str]) -> None:
    wanted, product = PRODUCTS[which]
    code = _COMPILE.format(target=which.split()[0], wanted=wanted)
    found = json.loads(run_python(code, TRITON_INTERPRET="0"))
    assert len(found) == len(wanted)
    for name, (instructions, complaints) in found.items():
        assert complaints == [], name
        assert product in instructions, (name, instructions)
        assert ("block_scaled" in instructions) == (wanted is SCALED)


_WAITS = """
import json, re
import archkey

session = archkey.open("cuda_sm90")
examples = session.operators["mxfp4_linear"].examples
problems = [examples[{0!r}], examples[{0!r}]._replace(dtype="float16"), examples[{1!r}]]
texts = [made.kernel.asm["ptx"] for p in problems for made in session.plan(p).compiled]
waits = [re.findall(r"wgmma\\.wait_group\\.sync\\.aligned +(\\d+)", text) for text in texts]
print(json.dumps([found for found, text in zip(waits, texts) if "wgmma.mma_async" in text]))
"""


def test_no_product_runs_into_the_next_step(run_python: Callable[..., str]) -> None:
    """triton#9433: it would read registers that the next step decodes into."""
    found = json.loads(run_python(_WAITS.format(W4A16, W4A4), TRITON_INTERPRET="0"))
    assert len(found) >= 6
    for waits in found:
        assert waits and set(waits) == {"0"}, found
