# SPDX-License-Identifier: Apache-2.0
"""The Triton body of the norms: its numbers under the interpreter, its code for each target.

Numbers run with TRITON_INTERPRET=1; machine code is made in a child process without it, with no
GPU. The interpreter truncates to bfloat16 where hardware rounds, hence one whole unit in the last
place there; float16 and float32 are rounded properly.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton when it is first imported

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.interpreter import InterpretedFunction

from archkey.kernels.rmsnorm_body import rmsnorm_body, rmsnorm_programs
from archkey.reference import rmsnorm as reference

interpreted = pytest.mark.skipif(
    not isinstance(rmsnorm_body, InterpretedFunction),
    reason="triton was imported before TRITON_INTERPRET=1 was set",
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-19}
WIDTHS = (128, 200, 111, 512, 1536, 2048, 7168)


def _random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _strides(tensor: torch.Tensor | None) -> tuple[int, int]:
    """(token, head) strides of `[T, N]` or `[T, h, N]`."""
    if tensor is None:
        return 0, 0
    return tensor.stride(0), tensor.stride(1) if tensor.dim() == 3 else 0


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    k: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    k_out: torch.Tensor | None = None,
    eps: float = 1e-6,
    k_eps: float = 0.5,
    weight_bias: float = 0.0,
    cast: bool = False,
    tile_rows: int = 2,
    block: int | None = None,
) -> None:
    width, k_width = x.shape[-1], 1 if k is None else k.shape[-1]
    rows, k_rows = x.numel() // width, 0 if k is None else k.numel() // k_width
    heads, k_heads = (1 if t is None or t.dim() == 2 else t.shape[1] for t in (x, k))
    strides = [s for t in (x, residual, out, residual_out) for s in _strides(t)]
    rmsnorm_body[(rmsnorm_programs(rows, tile_rows, k_rows, 4),)](
        *(x, residual, weight, out, residual_out, k, k_weight, k_out),
        *(rows, *strides, k_rows, *_strides(k), *_strides(k_out)),
        *(eps, k_eps, weight_bias),
        *(width, heads, block or _power(width), tile_rows),
        *(k_width, k_heads, _power(k_width), 4),
        *(cast, False),
    )


def _nan_like(x: torch.Tensor) -> torch.Tensor:
    return torch.full(x.shape, math.nan, dtype=x.dtype)


def _close(got: torch.Tensor, want: torch.Tensor, ulps: float = 1.0) -> None:
    """Within `ulps` units in the last place of the unrounded result."""
    ulp = ULP[got.dtype] * ulps
    torch.testing.assert_close(got.float(), want, rtol=ulp, atol=1e-7)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 33])
@pytest.mark.parametrize("width", WIDTHS)
def test_rmsnorm_equals_the_reference(width: int, tokens: int, dtype: str) -> None:
    x = _random(tokens, width, dtype=DTYPES[dtype], seed=0)
    w = _random(width, dtype=DTYPES[dtype], seed=1)
    out = _nan_like(x)
    _run(x, w, out, weight_bias=1.0, tile_rows=max(1, 4096 // _power(width)))
    _close(out, reference.rmsnorm(x, w, 1e-6, 1.0)[0])


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_fused_add_in_place_equals_the_reference(width: int, dtype: str) -> None:
    x, residual = (_random(3, width, dtype=DTYPES[dtype], seed=s) for s in (0, 1))
    w = _random(width, dtype=torch.float32, seed=2)
    y, total = reference.fused_add_rmsnorm(x, residual, w, 1e-6)
    _run(x, w, x, residual=residual, residual_out=residual)
    _close(x, y)
    _close(residual, total)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 33])
@pytest.mark.parametrize(("q_width", "k_width", "pitch"), [(1536, 512, 2112), (200, 111, 313)])
def test_fused_qk_reads_both_halves_of_a_row(
    q_width: int, k_width: int, pitch: int, tokens: int, dtype: str
) -> None:
    row = _random(tokens, pitch, dtype=DTYPES[dtype], seed=0)
    w = _random(q_width + k_width, dtype=DTYPES[dtype], seed=1)
    q, k = row[:, :q_width], row[:, q_width : q_width + k_width]
    q_w, k_w = w[:q_width], w[q_width:]
    q_out, k_out = _nan_like(q), _nan_like(k)
    _run(q, q_w, q_out, k=k, k_weight=k_w, k_out=k_out, k_eps=0.5)
    want_q, want_k = reference.fused_qk_rmsnorm(q, q_w, 1e-6, k, k_w, 0.5)
    assert want_q is not None
    _close(q_out, want_q)
    _close(k_out, want_k)


@interpreted
def test_heads_of_a_wider_row_are_read_and_written_in_place() -> None:
    row = _random(5, 9 * 128, dtype=torch.float16, seed=0)
    before = row.clone()
    q, k = row[:, : 6 * 128].unflatten(1, (6, 128)), row[:, 768:1024].unflatten(1, (2, 128))
    q_w, k_w = (_random(128, dtype=torch.float16, seed=s) for s in (1, 2))
    want_q, want_k = reference.fused_qk_rmsnorm(q, q_w, 1e-6, k, k_w, 0.5)
    assert want_q is not None
    _run(q, q_w, q, k=k, k_weight=k_w, k_out=k)
    _close(q, want_q)
    _close(k, want_k)
    assert torch.equal(row[:, 1024:], before[:, 1024:])


@interpreted
@pytest.mark.parametrize("width", [300, 512])
def test_rows_wider_than_a_block_are_read_twice(width: int) -> None:
    x, residual = (_random(3, width, dtype=torch.float16, seed=s) for s in (0, 1))
    w = _random(width, dtype=torch.float16, seed=2)
    y, total = reference.fused_add_rmsnorm(x, residual, w, 1e-6)
    _run(x, w, x, residual=residual, residual_out=residual, block=128)
    _close(x, y)
    _close(residual, total)


@interpreted
def test_cast_before_weight_rounds_twice() -> None:
    x, w = _random(4, 512, dtype=torch.float16, seed=0), _random(512, dtype=torch.float16, seed=1)
    once, twice = _nan_like(x), _nan_like(x)
    _run(x, w, once)
    _run(x, w, twice, cast=True)
    (want,) = reference.rmsnorm(x, w, 1e-6, cast_before_weight=True)
    # The last bit of rsqrt may move a value over the first rounding; that is one in thousands.
    assert (twice == want.half()).float().mean() > 0.998
    assert (once == want.half()).float().mean() < 0.9


@interpreted
def test_dtypes_of_residual_weight_and_out_are_free() -> None:
    x = _random(3, 200, dtype=torch.bfloat16, seed=0)
    residual, w = _random(3, 200, dtype=torch.float32, seed=1), torch.ones(200)
    out, residual_out = torch.empty(3, 200, dtype=torch.float16), torch.empty(3, 200)
    _run(x, w, out, residual=residual, residual_out=residual_out)
    y, total = reference.fused_add_rmsnorm(x, residual, w, 1e-6)
    _close(out, y)
    assert torch.equal(residual_out, total)


@interpreted
def test_offsets_pass_2_31_elements() -> None:
    # Address space only: the pages between the three rows are never touched.
    x = torch.empty(2**31 + 128, dtype=torch.float16).as_strided((3, 128), (2**30, 1))
    x.copy_(_random(3, 128, dtype=torch.float16, seed=0))
    w, out = torch.ones(128), torch.empty(3, 128)
    _run(x, w, out)
    _close(out, reference.rmsnorm(x, w, 1e-6)[0])


@interpreted
def test_a_zero_row_is_zero_and_nan_stays_in_its_row() -> None:
    x = torch.zeros(4, 111)
    x[2, 110] = math.nan
    out = _nan_like(x)
    _run(x, torch.ones(111), out)
    assert out[2].isnan().all()
    assert (out[[0, 1, 3]] == 0).all()


def test_programs_cover_both_norms() -> None:
    assert rmsnorm_programs(0, 4) == 0
    assert rmsnorm_programs(5, 4) == 2
    assert rmsnorm_programs(5, 4, 9, 8) == 4


# --- machine code ---------------------------------------------------------------------------------

TARGETS = {
    "cuda_sm90": ("cuda", 90, 32),
    "cuda_sm100": ("cuda", 100, 32),
    "rocm_gfx942": ("hip", "gfx942", 64),
    "rocm_gfx950": ("hip", "gfx950", 64),
}

# name: (N, K_N, residual, aligned, BLOCK, TILE_ROWS, K_TILE_ROWS, num_warps of 32 lanes)
VARIANTS = {
    "norm 7168": (7168, 0, False, True, 8192, 1, 1, 8),
    "add 7168": (7168, 0, True, True, 8192, 1, 1, 8),
    "qk 1536 512": (1536, 512, False, True, 2048, 2, 8, 4),
    "add 18432 twice": (18432, 0, True, True, 8192, 1, 1, 8),
    "odd 111": (111, 0, True, False, 128, 8, 1, 4),
}

_COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from archkey.kernels.rmsnorm_body import rmsnorm_body as kernel

target, variants, pdl = json.loads(sys.argv[1])
target, codes = GPUTarget(*target), {}
for name, (n, k_n, residual, aligned, block, tile, k_tile, warps) in variants.items():
    absent = ([] if residual else ["residual", "residual_out"])
    absent += [] if k_n else ["k", "k_weight", "k_out"]
    fixed = dict.fromkeys(absent)
    fixed |= dict(N=n, HEADS=1, BLOCK=block, TILE_ROWS=tile, K_N=k_n, K_HEADS=1, K_BLOCK=512)
    fixed |= dict(K_TILE_ROWS=k_tile, CAST_BEFORE_WEIGHT=False, USE_PDL=pdl)
    types, attrs = {}, {}
    for i, arg in enumerate(kernel.arg_names):
        if arg in fixed:
            types[arg] = "constexpr"
        elif arg.endswith("rows"):
            types[arg] = "i32"
        elif arg.endswith(("eps", "bias")):
            types[arg] = "fp32"
        else:
            types[arg] = "i64" if arg.endswith("stride") else "*bf16"
            if aligned:
                attrs[(i,)] = [["tt.divisibility", 16]]
    warps = warps * 32 // target.warp_size
    code = triton.compile(ASTSource(kernel, types, fixed, attrs), target, {"num_warps": warps}).asm
    codes[name] = code["ptx" if target.backend == "cuda" else "amdgcn"]
print(json.dumps(codes))
"""


def _compiled(target: tuple[Any, ...], cache: Any, pdl: bool = False) -> dict[str, str]:
    """Assembly of each variant."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(cache)
    request = json.dumps([target, VARIANTS, pdl])
    child = subprocess.run(
        [sys.executable, "-c", _COMPILE, request],
        check=False,  # asserted below, with the child's message
        env=env,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    codes: dict[str, str] = json.loads(child.stdout)
    return codes


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_to_16_byte_accesses_without_spills(target: str, tmp_path: Any) -> None:
    codes = _compiled(TARGETS[target], tmp_path)
    wide, narrow, spills = {
        "cuda": ((".global.v4.b32",), (".global.b16",), (".local",)),
        "rocm": (("_load_dwordx4 v", "_store_dwordx4 v"), ("load_ushort",), ("scratch_",)),
    }[target.split("_")[0]]
    for name, code in codes.items():
        odd = name.startswith("odd")
        assert all((text in code) != odd for text in wide), name
        assert any(text in code for text in narrow) == odd, name
        assert not any(text in code for text in spills), name
        assert "griddepcontrol" not in code, name


def test_pdl_waits_before_the_first_read(tmp_path: Any) -> None:
    for name, code in _compiled(TARGETS["cuda_sm90"], tmp_path, pdl=True).items():
        assert 0 < code.find("griddepcontrol.wait") < code.find("ld.global"), name
        assert "griddepcontrol.launch_dependents" in code, name
