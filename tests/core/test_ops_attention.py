# SPDX-License-Identifier: Apache-2.0
"""The public functions of the attention family: results on the CPU, keys, and every refusal."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from archkey.errors import ArgumentTypeError, ArgumentValueError, Unsupported
from archkey.ops.attention import OPERATORS, UnifiedAttentionProblem, unified_attention
from archkey.ops.page_table import ragged_kv_indices_to_page_table, req_to_token_to_page_table
from archkey.reference import attention as reference

BF16 = torch.bfloat16


class Recorder:
    """A session that keeps the problem and the arguments instead of launching."""

    def __init__(self, fp8: str = "e4m3fn", validate: bool = False) -> None:
        self.fp8, self.validate = fp8, validate
        self.problem: Any = None
        self.arguments: tuple[Any, ...] = ()

    def launcher(self, problem: Any) -> Any:
        self.problem = problem

        def run(*arguments: Any) -> None:
            self.arguments = arguments

        return run


def call_inputs(**changes: Any) -> dict[str, Any]:
    """Two sequences of 3 and 1 queries over 20 and 7 keys; H=4, Hk=2, D=32, page 16, bf16."""
    gen = torch.Generator().manual_seed(0)
    k, v = (torch.randn(5, 16, 2, 32, generator=gen).to(BF16) for _ in range(2))
    values: dict[str, Any] = {
        "q": torch.randn(4, 4, 32, generator=gen).to(BF16),
        "k": k,
        "v": v,
        "out": torch.full((4, 4, 32), torch.nan, dtype=BF16),
        "cu_seqlens_q": torch.tensor([0, 3, 4], dtype=torch.int32),
        "max_seqlen_q": 3,
        "seqused_k": torch.tensor([20, 7], dtype=torch.int32),
        "max_seqlen_k": 20,
        "softmax_scale": 0.2,
        "causal": True,
        "window_size": (-1, -1),
        "block_table": torch.tensor([[4, 1], [2, 2147480000]], dtype=torch.int32),
    }
    return values | changes


def fp8(x: torch.Tensor, name: str = "float8_e4m3fn") -> torch.Tensor:
    return x.to(getattr(torch, name))


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
        "alibi_slopes": (torch.zeros(4), {"alibi": True}),
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
    assert session.arguments[-3] == tuple(buffers.values())
    bad = {
        "softmax_segm_output": torch.empty(8, 4, 16, 16),
        "softmax_segm_max": torch.empty(8, 4, 8),
        "softmax_segm_expsum": None,
        "num_par_softmax_segments": 8,
        "seq_threshold_3D": 9,
    }
    for name, value in bad.items():
        with pytest.raises((ArgumentValueError, ArgumentTypeError), match="softmax_segm"):
            unified_attention.__wrapped__(
                session, **call_inputs(), **(buffers | sizes | {name: value})
            )


VALUE, TYPE = ArgumentValueError, ArgumentTypeError


def caches(*shape: int, dtype: torch.dtype = BF16) -> dict[str, torch.Tensor]:
    return {"k": torch.zeros(shape).to(dtype), "v": torch.zeros(shape).to(dtype)}


FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
FP8_Q = {"q": torch.zeros(4, 4, 32).to(FN)}
WIDE = {"q": torch.zeros(4, 4, 576, dtype=BF16), "out": torch.zeros(4, 4, 512, dtype=BF16)}
NEEDS_GRAD = {"q": torch.zeros(4, 4, 32, dtype=BF16, requires_grad=True)}

REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not causal": ({"causal": False}, VALUE, "causal must be True"),
    "H % Hk": (caches(5, 16, 3, 32), VALUE, "q's heads must be a multiple of k's 3, found 4"),
    "sinks shape": ({"sinks": torch.zeros(5)}, VALUE, "sinks must be of shape [4]"),
    "sinks dtype": ({"sinks": torch.zeros(4).int()}, TYPE, "sinks must be bfloat16"),
    "window right": ({"window_size": (4, 1)}, VALUE, "window_size[1] must be 0 or -1"),
    "window int": ({"window_size": 4}, VALUE, "window_size must be a pair"),
    "page 12": (caches(5, 12, 2, 32), VALUE, "page size must be a power of two, found 12"),
    "D 576": (WIDE | caches(5, 16, 1, 576), VALUE, "1 to 512, found 576. The latent cache of MLA"),
    "k width": (caches(5, 16, 2, 64), VALUE, "k must be 32 wide like q, found [5, 16, 2, 64]"),
    "q fp8 without descale": (
        FP8_Q | caches(5, 16, 2, 32, dtype=FN),
        VALUE,
        "q_descale must be given",
    ),
    "q fp8, k bf16": (FP8_Q | {"q_descale": 1.0}, TYPE, "k must be float8_e4m3fn"),
    "q bf16, k fp16": (caches(5, 16, 2, 32, dtype=torch.float16), TYPE, "k must be bfloat16"),
    "k and v differ": (
        {"v": fp8(torch.zeros(5, 16, 2, 32))},
        TYPE,
        "v must be bfloat16, found float8_e4m3fn",
    ),
    "fp8 of another arch": (
        caches(5, 16, 2, 32, dtype=FNUZ),
        TYPE,
        "k must be float8_e4m3fn on this device",
    ),
    "cu int64": (
        {"cu_seqlens_q": torch.tensor([0, 3, 4])},
        TYPE,
        "cu_seqlens_q must be int32, found int64",
    ),
    "cu length": (
        {"cu_seqlens_q": torch.zeros(2).int()},
        VALUE,
        "cu_seqlens_q must be of shape [3]",
    ),
    "seqused int64": ({"seqused_k": torch.tensor([20, 7])}, TYPE, "seqused_k must be int32"),
    "table int64": ({"block_table": torch.zeros(2, 2).long()}, TYPE, "block_table must be int32"),
    "table narrow": ({"max_seqlen_k": 33}, VALUE, "block_table must be of shape at least [2, 3]"),
    "table rows": ({"block_table": torch.zeros(1, 2).int()}, VALUE, "of shape at least [2, 2]"),
    "out width": (
        {"out": torch.zeros(4, 4, 16, dtype=BF16)},
        VALUE,
        "out must be of shape [4, 4, 32]",
    ),
    "out fp8 unscaled": ({"out": fp8(torch.zeros(4, 4, 32))}, VALUE, "output_scale must be given"),
    "q strided": (
        {"q": torch.zeros(4, 4, 64, dtype=BF16)[..., ::2]},
        VALUE,
        "q must be contiguous in its last dimension",
    ),
    "q_descale shape": (
        {"q_descale": torch.ones(2)},
        VALUE,
        "q_descale must be a tensor of one element or [2, 2], found [2]",
    ),
    "k_descale dtype": (
        {"k_descale": torch.ones(1, dtype=BF16)},
        TYPE,
        "k_descale must be float32",
    ),
    "bias too small": ({"qq_bias": torch.zeros(2, 2)}, VALUE, "qq_bias must be of shape"),
    "scale tensor": ({"softmax_scale": torch.tensor(1.0)}, TYPE, "softmax_scale must be a number"),
    "scale 0": ({"softmax_scale": 0.0}, VALUE, "softmax_scale must be positive"),
    "softcap negative": ({"softcap": -1.0}, VALUE, "softcap must be 0"),
    "lse shape": ({"lse": torch.zeros(4)}, VALUE, "lse must be of shape [4, 4]"),
    "lse dtype": ({"lse": torch.zeros(4, 4, dtype=BF16)}, TYPE, "lse must be float32"),
    "layout": ({"kv_layout": "NDH"}, VALUE, "kv_layout must be 'NHD' or 'HND'"),
    "shuffled 5-D": (
        {"k": torch.zeros(5, 2, 4, 16, 8, dtype=BF16)},
        VALUE,
        "k must be of shape [any, any, any, any]",
    ),
    "gradient": (NEEDS_GRAD, VALUE, "free of gradients"),
    "int8 cache": ({"kv_quant_mode": 2}, Unsupported, "kv_quant_mode must be off, found 2"),
    "image ranges": ({"mm_prefix_range": torch.zeros(1)}, Unsupported, "mm_prefix_range must be"),
    "shuffled": ({"shuffled_kv_cache": True}, Unsupported, "shuffled_kv_cache must be off"),
    "tree": ({"topk": 4}, Unsupported, "topk must be off, found 4"),
    "typo": ({"sink": torch.zeros(4)}, TYPE, "known keywords only, found sink"),
    "plan of another problem": (
        {"plan": SimpleNamespace(problem=None)},
        VALUE,
        "plan must be a plan for this call's problem",
    ),
}


@pytest.mark.parametrize(("changes", "error", "text"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_name_what_was_found(
    changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    session = Recorder()
    with pytest.raises(error, match=re.escape(text)):
        unified_attention.__wrapped__(session, **call_inputs(**changes))
    assert session.arguments == ()


def test_extras_that_are_off_pass() -> None:
    off = {
        "mm_prefix_range": None,
        "use_alibi_sqrt": False,
        "kv_quant_mode": 0,
        "k_scale_cache": None,
        "shuffled_kv_cache": False,
        "topk": 1,
    }
    want = unified_attention(**call_inputs())
    assert torch.equal(unified_attention(**call_inputs(), **off), want)


BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "cu falls": ({"cu_seqlens_q": [0, 4, 3]}, "cu_seqlens_q must be rising"),
    "cu past the tokens": ({"cu_seqlens_q": [0, 3, 5]}, "cu_seqlens_q must be rising"),
    "longer than max_seqlen_q": ({"cu_seqlens_q": [0, 4, 4]}, "max_seqlen_q must be 4 or more"),
    "longer than max_seqlen_k": ({"seqused_k": [21, 7]}, "seqused_k must be between 0 and"),
    "page outside": ({"block_table": [[4, 5], [0, 0]]}, "block_table must be pages of the cache"),
}


@pytest.mark.parametrize(("changes", "text"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_are_checked_only_when_asked(changes: dict[str, Any], text: str) -> None:
    changes = {k: torch.tensor(v, dtype=torch.int32) for k, v in changes.items()}
    unified_attention.__wrapped__(Recorder(), **call_inputs(**changes))
    with pytest.raises(ArgumentValueError, match=re.escape(text)):
        unified_attention.__wrapped__(Recorder(validate=True), **call_inputs(**changes))


def test_validation_accepts_freed_pages_outside_the_window() -> None:
    values = call_inputs(block_table=torch.tensor([[-1, 1], [2, 99]], dtype=torch.int32))
    session = Recorder(validate=True)
    unified_attention.__wrapped__(session, **(values | {"window_size": (1, 0)}))
    with pytest.raises(ArgumentValueError, match="block_table"):
        unified_attention.__wrapped__(session, **(values | {"window_size": (2, 0)}))


def table_inputs(**changes: Any) -> dict[str, Any]:
    """Two sequences of 5 and 2 tokens, page 4; full and window tables of 3 columns."""
    values: dict[str, Any] = {
        "kv_indices": torch.tensor([8, 9, 10, 11, 20, 4, 5], dtype=torch.int32),
        "kv_indptr": torch.tensor([0, 5, 7], dtype=torch.int32),
        "page_table": torch.full((3, 3), 7, dtype=torch.int32),
        "page_size": 4,
        "swa_page_table": torch.full((3, 3), 7, dtype=torch.int32),
        "full_to_swa": torch.arange(24) + 4,
    }
    return values | changes


def request_inputs(**changes: Any) -> dict[str, Any]:
    values = table_inputs()
    requests = torch.full((4, 8), -1, dtype=torch.int32)
    requests[3, :5], requests[1, :2] = values.pop("kv_indices")[:5], torch.tensor([4, 5]).int()
    del values["kv_indptr"]
    values |= {
        "req_to_token": requests,
        "req_pool_indices": torch.tensor([3, 1]),
        "seq_lens": torch.tensor([3, 0], dtype=torch.int32),
        "num_draft_tokens": 2,
    }
    return values | changes


@pytest.mark.parametrize("fill_tail", [True, False], ids=["fill", "keep"])
def test_page_tables_are_written_in_place(fill_tail: bool) -> None:
    rest = 0 if fill_tail else 7
    for function, values in (
        (ragged_kv_indices_to_page_table, table_inputs()),
        (req_to_token_to_page_table, request_inputs()),
    ):
        table, swa = function(**values, fill_tail=fill_tail)
        assert table is values["page_table"] and swa is values["swa_page_table"]
        assert table.tolist() == [[2, 5, rest], [1, rest, rest], [7, 7, 7]]
        assert swa.tolist() == [[3, 6, rest], [2, rest, rest], [7, 7, 7]]


def test_page_table_problems() -> None:
    session = Recorder()
    ragged_kv_indices_to_page_table.__wrapped__(session, **table_inputs())
    assert session.problem[:5] == ("int32", "int32", 4, True, True)
    one = table_inputs(swa_page_table=None, full_to_swa=None)
    ragged_kv_indices_to_page_table.__wrapped__(session, **one)
    assert not session.problem.swa
    req_to_token_to_page_table.__wrapped__(session, **request_inputs())
    assert session.problem[:6] == ("int32", "int64", "int32", 4, True, True)


TABLE_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "indices float": ({"kv_indices": torch.zeros(7)}, TYPE, "kv_indices must be int32 or int64"),
    "indices 2-D": ({"kv_indices": torch.zeros(7, 1).int()}, VALUE, "kv_indices must be of shape"),
    "table int64": ({"page_table": torch.zeros(3, 3).long()}, TYPE, "page_table must be int32"),
    "table short": ({"page_table": torch.zeros(1, 3).int()}, VALUE, "[>= 2, columns]"),
    "page 3": ({"page_size": 3}, VALUE, "page_size must be a power of two"),
    "half a window": ({"full_to_swa": None}, VALUE, "full_to_swa must be given"),
    "map int32": ({"full_to_swa": torch.arange(24).int()}, TYPE, "full_to_swa must be int64"),
    "other width": (
        {"swa_page_table": torch.zeros(3, 4).int()},
        VALUE,
        "swa_page_table must be of shape [3, 3]",
    ),
}


@pytest.mark.parametrize(("changes", "error", "text"), TABLE_REFUSALS.values(), ids=TABLE_REFUSALS)
def test_page_table_refusals(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        ragged_kv_indices_to_page_table(**table_inputs(**changes))
    if "kv_indices" not in changes:
        with pytest.raises(error, match=re.escape(text)):
            req_to_token_to_page_table(**request_inputs(**changes))


ragged, requested = ragged_kv_indices_to_page_table, req_to_token_to_page_table
TABLE_VALUES = {
    "indptr": (ragged, table_inputs(kv_indptr=torch.tensor([0, 5, 9])), "kv_indptr"),
    "ragged width": (ragged, table_inputs(page_size=1), "page_table"),
    "pool index": (requested, request_inputs(req_pool_indices=torch.tensor([3, 4])), "rows of"),
    "tokens": (requested, request_inputs(num_draft_tokens=6), "req_to_token"),
    "request width": (requested, request_inputs(page_size=1), "page_table"),
}


@pytest.mark.parametrize(("function", "values", "text"), TABLE_VALUES.values(), ids=TABLE_VALUES)
def test_page_table_values(function: Any, values: dict[str, Any], text: str) -> None:
    function.__wrapped__(Recorder(), **values)
    with pytest.raises(ArgumentValueError, match=text):
        function.__wrapped__(Recorder(validate=True), **values)
