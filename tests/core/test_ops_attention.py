# SPDX-License-Identifier: Apache-2.0
"""unified_attention on the CPU: results, and the problem and arguments that kernels get."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core._attention import BF16, TYPE, VALUE, Recorder, call_inputs, fp8

from archkey.ops import _attention_checks as check
from archkey.ops.attention import OPERATORS, UnifiedAttentionProblem, unified_attention
from archkey.reference import attention as reference


def expected(values: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("q", "k", "v", "cu_seqlens_q", "seqused_k", "block_table")
    return reference.unified_attention(
        **{n: values[n] for n in names}, softmax_scale=0.2, **options
    )


def test_writes_out_and_returns_it() -> None:
    values = call_inputs()
    lse = torch.full((4, 4), torch.nan).T
    got = unified_attention(**values, lse=lse)
    out, want_lse = expected(values)
    assert got is values["out"]
    assert torch.equal(got, out.to(BF16)) and torch.equal(lse, want_lse)


def test_positions_are_those_of_vllm_and_aiter() -> None:
    values = call_inputs()
    unified_attention(*values.values(), 5.0, None, 0.5, 2.0)
    out, _ = expected(values, softcap=5.0, k_descale=0.5, v_descale=2.0)
    assert torch.equal(values["out"], out.to(BF16))


def test_every_option_reaches_the_kernel() -> None:
    gen = torch.Generator().manual_seed(1)
    values = call_inputs(window_size=(4, 0))
    options = {
        "alibi_slopes": torch.rand(4, generator=gen),
        "qq_bias": torch.randn(3, 3, generator=gen),
        "sinks": torch.randn(4, generator=gen).to(BF16),
        "output_scale": torch.tensor(0.5),
        "k_descale": torch.rand(2, 2, generator=gen),
    }
    unified_attention(**values, **options, softcap=3.0)
    out, _ = expected(values, **options, softcap=3.0, window_left=4)
    assert torch.equal(values["out"], out.to(BF16))


def test_hnd_cache_is_read_through_a_view() -> None:
    values = call_inputs()
    want = unified_attention(**values).clone()
    values["k"], values["v"] = (values[n].transpose(1, 2).contiguous() for n in ("k", "v"))
    assert torch.equal(unified_attention(**values, kv_layout="HND"), want)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e4m3fnuz"])
def test_fp8_in_and_out(name: str) -> None:
    values = call_inputs()
    for key in ("q", "k", "v"):
        values[key] = fp8(values[key], name)
    values["out"] = fp8(torch.zeros(4, 4, 32), name)
    scales = {"q_descale": 0.75, "k_descale": torch.tensor([0.5]), "v_descale": 0.25}
    unified_attention(**values, **scales, output_scale=1e-4)
    limit = torch.finfo(values["out"].dtype).max
    out, _ = expected(values, **scales)
    want = (out / 1e-4).clamp(-limit, limit).to(values["out"].dtype)
    assert torch.equal(values["out"].float(), want.float())
    assert (values["out"].float().abs() == limit).any()


def test_empty_batches() -> None:
    values = call_inputs(q=torch.empty(0, 4, 32, dtype=BF16), out=torch.empty(0, 4, 32, dtype=BF16))
    values["cu_seqlens_q"] = torch.zeros(3, dtype=torch.int32)
    assert unified_attention(**values).shape == (0, 4, 32)
    padded = call_inputs(
        cu_seqlens_q=torch.zeros(1, dtype=torch.int32),
        seqused_k=torch.zeros(0, dtype=torch.int32),
    )
    assert (unified_attention(**padded) == 0).all()


def test_decode_alone_and_in_a_mixed_batch_agree() -> None:
    mixed = call_inputs()
    unified_attention(**mixed)
    alone = call_inputs(max_seqlen_q=1)
    for name, part in (("q", slice(3, 4)), ("out", slice(3, 4)), ("seqused_k", slice(1, 2))):
        alone[name] = alone[name][part]
    alone["cu_seqlens_q"] = torch.tensor([0, 1], dtype=torch.int32)
    alone["block_table"] = alone["block_table"][1:]
    torch.testing.assert_close(unified_attention(**alone)[0], mixed["out"][3])


def test_problem_holds_what_is_known_before_the_numbers() -> None:
    session = Recorder()
    unified_attention.__wrapped__(session, **call_inputs())
    plain = UnifiedAttentionProblem(*("bfloat16",) * 3, 4, 2, 32, 32, queries="verify")
    assert session.problem == plain
    inputs = next(o.inputs for o in OPERATORS if o.name == "unified_attention")
    named = dict(zip((*inputs, "out", "lse"), session.arguments, strict=True))
    assert named["window_left"] == -1 and named["out_limit"] == float("inf")
    assert named["segments"] is None and named["lse"] is None

    changes: dict[str, tuple[Any, Any]] = {
        "window_size": ((7, 0), {"window": True}),
        "softcap": (1.0, {"softcap": True}),
        "sinks": (torch.zeros(4), {"sinks": "float32"}),
        "alibi_slopes": (torch.zeros(4), {"alibi": "float32"}),
        "qq_bias": (torch.zeros(3, 3), {"qq_bias": "float32"}),
        "k_descale": (torch.ones(2, 2), {"k_descale": "per_head"}),
        "v_descale": (torch.ones(()), {"v_descale": "tensor"}),
        "output_scale": (2.0, {"output_scale": "number"}),
        "lse": (torch.empty(4, 4), {"return_lse": True}),
        "max_seqlen_q": (1, {"queries": "decode"}),
        "q": (torch.zeros(4, 4, 33, dtype=BF16)[..., 1:], {"aligned": False}),
    }
    for name, (value, fields) in changes.items():
        unified_attention.__wrapped__(session, **call_inputs(**{name: value}))
        assert session.problem == plain._replace(**fields), name
    for longest, queries in ((2, "verify"), (16, "verify"), (17, "prefill")):
        unified_attention.__wrapped__(session, **call_inputs(max_seqlen_q=longest))
        assert session.problem.queries == queries
        alike = plain._replace(queries="any", batch_invariant=True)
        call = call_inputs(max_seqlen_q=longest, batch_invariant=True)
        unified_attention.__wrapped__(session, **call)
        assert session.problem == alike
    assert hash(session.problem) != hash(plain)


def test_token_counts_are_not_in_the_problem() -> None:
    session = Recorder()
    unified_attention.__wrapped__(session, **call_inputs())
    first = session.problem
    more = call_inputs(max_seqlen_k=32)
    more["cu_seqlens_q"] = torch.tensor([0, 2, 3, 4], dtype=torch.int32)
    more["seqused_k"] = torch.tensor([20, 7, 1], dtype=torch.int32)
    more["block_table"] = torch.zeros(3, 9, dtype=torch.int32)
    unified_attention.__wrapped__(session, **more)
    assert session.problem == first


def test_vllm_workspace_is_passed_on() -> None:
    session = Recorder()
    buffers = {
        "softmax_segm_output": torch.empty(8, 4, 16, 64),
        "softmax_segm_max": torch.empty(8, 4, 16),
        "softmax_segm_expsum": torch.empty(8, 4, 16),
    }
    sizes = {"seq_threshold_3D": 8, "num_par_softmax_segments": 16}
    unified_attention.__wrapped__(session, **call_inputs(), **buffers, **sizes)
    assert session.problem.segments == 16
    assert session.arguments[-4] == tuple(buffers.values())
    bad = {
        "softmax_segm_output": torch.empty(8, 4, 16, 16),
        "softmax_segm_max": torch.empty(8, 4, 8),
        "softmax_segm_expsum": None,
        "num_par_softmax_segments": 8,
        "seq_threshold_3D": 9,
    }
    for name, value in bad.items():
        with pytest.raises((VALUE, TYPE), match="softmax_segm"):
            unified_attention.__wrapped__(
                session, **call_inputs(), **(buffers | sizes | {name: value})
            )


def test_workspace_is_for_batches_that_fit_it() -> None:
    """vLLM gives its buffers to every call, those of a prefill too, and with threshold 0 empty."""
    session = Recorder()
    for rows, threshold, segments in ((8, 8, 16), (8, 4, 16), (8, 3, 0), (3, None, 0), (0, 0, 0)):
        buffers = {
            "softmax_segm_output": torch.empty(rows, 4, 16, 32),
            "softmax_segm_max": torch.empty(rows, 4, 16),
            "softmax_segm_expsum": torch.empty(rows, 4, 16),
        }
        unified_attention.__wrapped__(
            session, **call_inputs(), **buffers, seq_threshold_3D=threshold
        )
        assert session.problem.segments == segments
        assert (session.arguments[-4] is None) == (segments == 0)


@pytest.mark.parametrize("page_size", [1, 12, 48], ids=lambda n: f"page{n}")
def test_any_page_size(page_size: int) -> None:
    """aiter tests pages of 48; vLLM gives a hybrid model pages of 528 (vllm#37467)."""
    gen = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(20, 2, 32, generator=gen).to(BF16) for _ in range(2))
    pages = -(-20 // page_size)
    order = torch.randperm(pages, generator=gen)
    cache = torch.full((2, pages, page_size, 2, 32), torch.nan, dtype=BF16)
    cache[:, order] = torch.nn.functional.pad(
        torch.stack([keys, values]), (0, 0, 0, 0, 0, pages * page_size - 20), value=torch.nan
    ).view(cache.shape)
    one = call_inputs(k=cache[0], v=cache[1], block_table=order[None].int())
    one["seqused_k"], one["cu_seqlens_q"] = torch.tensor([20]).int(), torch.tensor([0, 4]).int()
    one["max_seqlen_q"] = 4
    got = unified_attention(**one)
    flat = one | {"k": keys[None], "v": values[None], "block_table": torch.zeros(1, 1).int()}
    assert torch.equal(got, unified_attention(**(flat | {"out": torch.empty_like(got)})))


def test_pages_too_far_apart_are_refused() -> None:
    """Kernels multiply a page by a distance of 32 bits."""
    far = torch.empty_strided((2, 16, 2, 32), (2**31, 64, 32, 1), dtype=BF16, device="meta")
    with pytest.raises(VALUE, match="2147483647 elements apart"):
        check.operands(Recorder(), far[0, :4].reshape(4, 2, 32), far, far, "NHD", None)
