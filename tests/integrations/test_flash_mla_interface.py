# SPDX-License-Identifier: Apache-2.0
"""FlashMLA's interface on archkey: its names, orders, defaults and layouts, and its own bounds.

Inputs are of the kinds that FlashMLA's tests make, with NaN in all keys of nobody; references here
are written anew, sequence by sequence and row by row. The bounds are those of its tests.
"""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from archkey.errors import ArchkeyError, ArgumentError
from archkey.formats import sparse_kv
from archkey.integrations import flash_mla

D, DV = 576, 512
REQUIRED = inspect.Parameter.empty

VARLEN = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "deterministic": False,
    "is_varlen": True,
}
BOUNDS = ("cu_seqlens_qo", "cu_seqlens_kv", "max_seqlen_qo", "max_seqlen_kv")
SIGNATURES: dict[str, dict[str, Any]] = {
    "flash_mla_with_kvcache": {
        **dict.fromkeys(
            (
                *("q", "k_cache", "block_table", "cache_seqlens", "head_dim_v"),
                "tile_scheduler_metadata",
            ),
            REQUIRED,
        ),
        **{"num_splits": None, "softmax_scale": None, "causal": False, "is_fp8_kvcache": False},
        **dict.fromkeys(
            (
                *("indices", "attn_sink", "extra_k_cache", "extra_indices_in_kvcache"),
                *("topk_length", "extra_topk_length"),
            )
        ),
    },
    "flash_mla_sparse_fwd": {
        **dict.fromkeys(("q", "kv", "indices", "sm_scale"), REQUIRED),
        **{"d_v": 512, "attn_sink": None, "topk_length": None},
    },
    "flash_attn_varlen_func": {**dict.fromkeys(("q", "k", "v", *BOUNDS), REQUIRED), **VARLEN},
    "flash_attn_varlen_kvpacked_func": {
        **dict.fromkeys(("q", "kv", *BOUNDS, "head_dim_qk"), REQUIRED),
        **VARLEN,
    },
    "flash_attn_varlen_qkvpacked_func": {
        **dict.fromkeys(("qkv", "cu_seqlens", "max_seqlen", "head_dim_qk"), REQUIRED),
        **VARLEN,
    },
}
"""flash_mla_interface.py of deepseek-ai/FlashMLA 9241ae3."""


@pytest.mark.parametrize("name", SIGNATURES)
def test_names_order_and_defaults(name: str) -> None:
    parameters = inspect.signature(getattr(flash_mla, name)).parameters
    assert [(p.name, p.default) for p in parameters.values()] == list(SIGNATURES[name].items())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def allclose(got: Tensor, want: Tensor, absolute: float, relative: float, cosine: float) -> None:
    """Near by either bound everywhere, infinities in the same places, and of one direction."""
    assert got.shape == want.shape
    finite = want.isfinite()
    assert torch.equal(got.float()[~finite], want.float()[~finite])
    one, other = got[finite].double(), want[finite].double()
    off = (one - other).abs()
    assert bool(((off < absolute) | (off / (other.abs() + 1e-6) < relative)).all())
    if other.square().sum() >= 1e-12:
        both = (one.square() + other.square()).sum()
        assert abs(1 - 2 * float((one * other).sum() / both)) <= cosine


def attended(
    q: Tensor, keys: Tensor, scale: float, seen: Tensor | None = None, sink: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """out and lse of queries `[H, n, d]` over keys `[H or 1, L, d]`, FlashMLA's +inf for no key."""
    scores = (q.double() @ keys.double().mT) * scale
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    lse = scores.logsumexp(-1)
    out = torch.softmax(scores, -1).nan_to_num() @ keys[..., :DV].double()
    if sink is not None:
        out = out * torch.sigmoid(lse - sink.double()[:, None])[..., None]
    lonely = lse == -math.inf
    return out.masked_fill(lonely[..., None], 0), lse.masked_fill(lonely, math.inf)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads, kv_heads, q_len", [(16, 1, 1), (9, 3, 2), (16, 8, 4)])
def test_dense_decode(
    heads: int, kv_heads: int, q_len: int, causal: bool, dtype: torch.dtype
) -> None:
    lengths = torch.tensor([140, 0, 64, q_len], dtype=torch.int32)
    pages, page = 3, 64
    q = (torch.randn(4, q_len, heads, D) / 10).clamp(-1, 1).to(dtype)
    cache = (torch.randn(4 * pages, page, kv_heads, D) / 10).to(dtype)
    table = torch.randperm(4 * pages).int().view(4, pages)
    want = torch.zeros(4, q_len, heads, DV), torch.zeros(4, heads, q_len)
    for b, n in enumerate(lengths.tolist()):
        keys = cache[table[b].long()].flatten(0, 1)[:n].transpose(0, 1)  # [Hk, n, d]
        column, row = torch.arange(n), torch.arange(q_len)[:, None]
        seen = column <= row + n - q_len if causal and q_len > 1 else column >= 0
        keys = keys.repeat_interleave(heads // kv_heads, 0)
        out, lse = attended(q[b].transpose(0, 1), keys, D**-0.5, seen)
        want[0][b], want[1][b] = out.transpose(0, 1), lse
        used = -(-n // page)
        cache.view(-1, page, kv_heads, D)[table[b, used:].long()] = math.nan
        if n % page:
            cache[table[b, used - 1].long(), n % page :] = math.nan
        table[b, used:] = 2147480000
    schedule, splits = flash_mla.get_mla_metadata(lengths, q_len * heads, 1)  # as it once was
    for _ in range(2):
        out, lse = flash_mla.flash_mla_with_kvcache(
            q, cache, table, lengths, DV, schedule, splits, causal=causal
        )
        assert out.dtype == dtype and lse.dtype == torch.float32
        allclose(out, want[0].to(dtype), 8e-4, 2.01 / 128, 5e-6)
        allclose(lse, want[1], 1e-6, 8.01 / 65536, 5e-6)


FORMATS = {"fp8_v32": 576, "fp8_model1": 512}


def cache_of(name: str, blocks: int, page: int, used: Tensor) -> tuple[Tensor, Tensor]:
    """A packed cache `[blocks, page, 1, row]` with `used` slots filled, and all its keys."""
    layout = sparse_kv.packed(name)
    cache = sparse_kv.empty_cache(layout, blocks, page)
    cache.fill_(0xFF)  # NaN
    rows = torch.randn(len(used), layout.head_dim) / 10
    nope, rope = rows[:, : layout.nope_dim], rows[:, layout.nope_dim :]
    sparse_kv.store(cache, used, nope, rope, layout, "pow2")
    keys = torch.full((blocks * page, layout.head_dim), math.nan)
    keys[used] = sparse_kv.load(cache, used, layout, dtype=torch.float32)
    return cache.unsqueeze(2), keys


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8, torch.uint8])
@pytest.mark.parametrize("name, extra", [("fp8_v32", False), ("fp8_model1", True)])
@pytest.mark.parametrize("empty", [False, True])
def test_sparse_decode(name: str, extra: bool, empty: bool, stored: torch.dtype) -> None:
    batch, q_len, heads = 3, 2, 64
    width = FORMATS[name]
    q = torch.randn(batch, q_len, heads, width).clamp(-1, 1).bfloat16()
    sink = torch.randn(heads)
    sink[:8], sink[8:16] = math.inf, -math.inf
    pools, parts = [], []
    for page, k in ((61, 64), (2, 192))[: 1 + extra]:
        blocks = 300 // page
        used = torch.randperm(blocks * page)[:150]
        cache, keys = cache_of(name, blocks, page, used)
        lists = used[torch.randint(0, 150, (batch, q_len, k))].int()
        lists[:, :, ::5] = -1
        lists[0] = -1 if empty or not extra else lists[0]
        length = torch.randint(0, k + 1, (batch,), dtype=torch.int32)
        named = (lists >= 0) & (torch.arange(k) < length[:, None, None])
        lists[torch.arange(k).expand_as(lists) >= length[:, None, None]] = 2**31 - 1
        if empty:
            named[:] = False
            lists[:] = -1
        pools.append((cache.view(stored), lists, length))
        parts.append((keys[lists.long().where(named, 0)].nan_to_num(), named))
    keys, named = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    want = torch.zeros(batch, q_len, heads, DV), torch.zeros(batch, heads, q_len)
    scale = width**-0.55
    for b in range(batch):
        for i in range(q_len):
            row = attended(q[b, i, :, None], keys[b, i][None], scale, named[b, i], sink)
            want[0][b, i], want[1][b, :, i] = row[0][:, 0], row[1][:, 0]
    schedule, _ = flash_mla.get_mla_metadata()
    (cache, lists, length), *second = pools
    two = second[0] if second else (None, None, None)
    out, lse = flash_mla.flash_mla_with_kvcache(
        q, cache, None, None, DV, schedule, None, scale, False, True,
        lists, sink, two[0], two[1], length, two[2],
    )  # fmt: skip
    allclose(out, want[0].bfloat16(), 1e-3, 2.01 / 128, 5e-6)
    allclose(lse, want[1], 1e-6, 8.01 / 65536, 5e-6)
    assert bool(lse.isinf().any()) is bool((~named.any(-1)).any())


@pytest.mark.parametrize("width", [576, 512])
@pytest.mark.parametrize("features", [False, True])
def test_sparse_prefill(width: int, features: bool) -> None:
    tokens, heads, keys, k = 7, 64, 95, 128
    wide = torch.randn(keys + 1, 1, width + 128).bfloat16() / 10
    kv = wide[:keys, :, :width]
    q = torch.randn(tokens, heads, width).bfloat16() / 10
    odd = torch.tensor([-(2**31), -123456, -1, keys, 114514, 2**31 - 1], dtype=torch.int32)
    lists = torch.randint(0, keys, (tokens, 1, k), dtype=torch.int32)
    lists[:, :, 90:] = odd[torch.randint(0, len(odd), (tokens, 1, k - 90))]
    lists[2] = 2**31 - 1
    sink = length = None
    if features:
        sink = torch.randn(heads)
        sink[:9], sink[9:20] = math.inf, -math.inf
        length = torch.tensor([0, 1, 5, 64, 100, 127, 128], dtype=torch.int32)
    named = (lists[:, 0] >= 0) & (lists[:, 0] < keys)
    if length is not None:
        named &= torch.arange(k) < length[:, None]
    out, most, lse = flash_mla.flash_mla_sparse_fwd(
        q, kv, lists, 0.5, attn_sink=sink, topk_length=length
    )
    rows = kv[lists[:, 0].long().where(named, 0), 0]
    for t in range(tokens):
        want, sums = attended(q[t, :, None], rows[t][None], 0.5, named[t], sink)
        allclose(out[t].float(), want[:, 0].float(), 8e-4, 3.01 / 128, 7e-6)
        allclose(lse[t], sums[:, 0].float(), 1e-6, 2.01 / 65536, 7e-6)
        scores = (q[t].double() @ rows[t].double().mT * 0.5).masked_fill(~named[t], -math.inf)
        allclose(most[t], scores.amax(-1).float(), 1e-6, 2.01 / 65536, 7e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_prefill(causal: bool) -> None:
    q_lens, k_lens, heads, kv_heads = (5, 0, 3), (9, 4, 0), 4, 2
    starts = [torch.tensor([0, *n]).cumsum(0).int() for n in (q_lens, k_lens)]
    q = torch.randn(sum(q_lens), heads, 192).bfloat16() / 10
    kv = torch.randn(sum(k_lens), kv_heads, 192 + 128).bfloat16() / 10
    out, lse = flash_mla.flash_attn_varlen_func(
        q, kv[..., :192], kv[..., 192:], *starts, 5, 9, 0.0, None, causal
    )
    assert out.shape == (8, heads, 128) and lse.shape == (8, heads) and lse.stride() == (1, 8)
    assert bool((out[5:] == 0).all()) and bool((lse[5:] == -math.inf).all())  # no keys
    rows = kv[:9].repeat_interleave(2, 1).double().transpose(0, 1)
    scores = q[:5].double().transpose(0, 1) @ rows[..., :192].mT * 192**-0.5
    if causal:
        late = torch.arange(9) > torch.arange(5)[:, None] + 4
        scores = scores.masked_fill(late, -math.inf)
    want = (scores.softmax(-1) @ rows[..., 192:]).transpose(0, 1)
    allclose(out[:5], want.bfloat16(), 1e-3, 8.01 / 128, 7e-6)
    allclose(lse[:5], scores.logsumexp(-1).T.float(), 1e-6, 8.01 / 65536, 7e-6)
    packed = flash_mla.flash_attn_varlen_kvpacked_func(q, kv, *starts, 5, 9, 192, causal=causal)
    assert torch.equal(packed[0], out) and torch.equal(packed[1], lse)
    alone, bounds = torch.cat([q[:4, :2], kv[:4]], -1), torch.tensor([0, 4], dtype=torch.int32)
    joint = flash_mla.flash_attn_varlen_qkvpacked_func(alone, bounds, 4, 192, causal=causal)
    apart = flash_mla.flash_attn_varlen_func(
        q[:4, :2], kv[:4, :, :192], kv[:4, :, 192:], bounds, bounds, 4, 4, causal=causal
    )
    assert torch.equal(joint[0], apart[0])


def sparse_call(**changes: Any) -> Callable[[], Any]:
    call = {
        "q": torch.zeros(1, 1, 64, 576, dtype=torch.bfloat16),
        "k_cache": torch.zeros(1, 64, 1, 656, dtype=torch.uint8),
        "block_table": None,
        "cache_seqlens": None,
        "head_dim_v": 512,
        "tile_scheduler_metadata": flash_mla.get_mla_metadata()[0],
        "is_fp8_kvcache": True,
        "indices": torch.zeros(1, 1, 64, dtype=torch.int32),
    }
    return lambda: flash_mla.flash_mla_with_kvcache(**{**call, **changes})


NOPE = torch.zeros(1, 64, 1, 528, dtype=torch.uint8)
BF16 = torch.zeros(1, 64, 1, 576, dtype=torch.bfloat16)
REFUSED = (
    ({"causal": True}, "causal must be None or False with indices"),
    ({"indices": None}, "is_fp8_kvcache must be None or False without indices"),
    ({"is_fp8_kvcache": False}, "is_fp8_kvcache must be true for a packed cache, found False"),
    ({"k_cache": BF16}, "is_fp8_kvcache must be false for torch.bfloat16, found True"),
    ({"k_cache": NOPE}, "rows of 656 (fp8_v32) or 584 (fp8_model1) bytes, found 528"),
    ({"num_splits": 2}, "num_splits must be None, found 2"),
    ({"tile_scheduler_metadata": None}, "must be what get_mla_metadata() gives, found NoneType"),
    (
        {"indices": None, "is_fp8_kvcache": False, "k_cache": BF16},
        "block_table and cache_seqlens must be given",
    ),
    (
        {"indices": None, "is_fp8_kvcache": False, "k_cache": BF16, "attn_sink": torch.ones(64)},
        "attn_sink must be None or False without indices, found a tensor",
    ),
)


@pytest.mark.parametrize("changes, why", REFUSED, ids=[why for _, why in REFUSED])
def test_refuses(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        sparse_call(**changes)()
    assert why in str(refused.value)


def test_a_schedule_is_of_one_shape() -> None:
    schedule, _ = flash_mla.get_mla_metadata()
    sparse_call(tile_scheduler_metadata=schedule)()
    assert schedule.have_initialized
    longer = torch.zeros(1, 1, 128, dtype=torch.int32)
    with pytest.raises(ArgumentError, match=r"topk must be 64 .* found 128; get_mla_metadata"):
        sparse_call(tile_scheduler_metadata=schedule, indices=longer)()


def test_a_bfloat16_cache_is_served_too() -> None:
    out, lse = sparse_call(k_cache=BF16, is_fp8_kvcache=False)()
    assert bool((out == 0).all()) and torch.allclose(lse, torch.full_like(lse, math.log(64)))


@pytest.fixture
def without_flash_mla() -> Iterator[None]:
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "flash_mla"}
    for name in before:
        del sys.modules[name]
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "flash_mla"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.usefixtures("without_flash_mla")
def test_stands_in_the_place_of_the_package() -> None:
    flash_mla.install()
    flash_mla.install()  # twice is once
    import flash_mla as package
    from flash_mla.flash_mla_interface import flash_mla_sparse_fwd

    assert package is flash_mla and flash_mla_sparse_fwd is flash_mla.flash_mla_sparse_fwd
    sys.modules["flash_mla"] = sys
    with pytest.raises(ArchkeyError, match="imported already"):
        flash_mla.install()


def test_runs_a_script_with_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 3\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside, flash_mla\n"
        "print(__name__, sys.argv[1:], beside.VALUE, flash_mla.get_mla_metadata()[1])\n"
    )
    command = [sys.executable, "-m", "archkey.integrations.flash_mla", str(script), "--dtype", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "__main__ ['--dtype', 'x'] 3 None"


@pytest.mark.slow
@pytest.mark.skipif("FLASH_MLA_CLONE" not in os.environ, reason="FLASH_MLA_CLONE: no clone of it")
def test_flash_mlas_own_tests() -> None:
    suite = Path(__file__).with_name("flash_mla_suite.py")
    command = [sys.executable, str(suite), os.environ["FLASH_MLA_CLONE"], "--seconds", "30"]
    subprocess.run(command, check=True)
