# SPDX-License-Identifier: Apache-2.0
"""The public functions of the KDA family: results on the CPU, keys, and every refusal."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from archkey.errors import ArgumentTypeError, ArgumentValueError, Unsupported
from archkey.ops.kda import OPERATORS, chunk_kda, fused_recurrent_kda, kda_packed_decode
from archkey.ops.kda_gate import chunk_layout, kda_gate, kda_gate_chunk_cumsum
from archkey.reference import kda as reference

BF16 = torch.bfloat16
VALUE, TYPE = ArgumentValueError, ArgumentTypeError
BOTH = pytest.mark.parametrize("function", [chunk_kda, fused_recurrent_kda], ids=["chunk", "recur"])


class Recorder:
    """A session that keeps the problem and the arguments instead of launching."""

    fp8 = "e4m3fn"

    def __init__(self, validate: bool = False) -> None:
        self.validate = validate
        self.problem: Any = None
        self.arguments: tuple[Any, ...] = ()

    def launcher(self, problem: Any) -> Any:
        self.problem = problem

        def run(*arguments: Any) -> None:
            self.arguments = arguments

        return run

    def named(self) -> dict[str, Any]:
        """Arguments of the launch by the operator's names; outputs win over inputs."""
        operator = next(o for o in OPERATORS if o.name == self.problem.operator)
        return dict(zip((*operator.inputs, *operator.outputs), self.arguments, strict=True))


def tokens(*shape: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """q, k, v, g, beta for `[B, T]`, by default `[1, 70]`; H=2, HV=4, K=16, V=8, bf16."""
    batch, length = shape or (1, 70)
    gen = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {
        "q": torch.randn(batch, length, 2, 16, generator=gen).to(BF16),
        "k": torch.randn(batch, length, 2, 16, generator=gen).to(BF16) / 4,
        "v": torch.randn(batch, length, 4, 8, generator=gen).to(BF16),
        "g": -torch.rand(batch, length, 4, 16, generator=gen),
        "beta": torch.rand(batch, length, 4, generator=gen),
    }
    return values | changes


def states(number: int, dtype: torch.dtype = torch.float32, v_first: bool = False) -> torch.Tensor:
    shape = (number, 4, 8, 16) if v_first else (number, 4, 16, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype)


CU = torch.tensor([0, 30, 30, 66])


@BOTH
def test_outputs_are_made_or_written_in_place(function: Any) -> None:
    x = tokens(2, 20)
    want, last = reference.fused_recurrent_kda(**x, initial_state=states(2))
    o, final = function(**x, initial_state=states(2), output_final_state=True)
    assert o.dtype == BF16 and final.dtype == torch.float32
    torch.testing.assert_close(o, want.to(BF16))
    torch.testing.assert_close(final, last)
    assert function(**x)[1] is None

    out, buffer = torch.full_like(x["v"], torch.nan), states(2).to(BF16)
    o2, final2 = function(**x, initial_state=buffer, out=out, final_state=buffer)
    assert o2 is out and final2 is buffer
    want, last = reference.fused_recurrent_kda(**x, initial_state=states(2).to(BF16))
    torch.testing.assert_close(out, want.to(BF16))
    torch.testing.assert_close(buffer, last.to(BF16))


@BOTH
def test_out_may_be_v(function: Any) -> None:
    x = tokens()
    want, _ = function(**x)
    o, _ = function(**x, out=x["v"])
    assert o is x["v"] and torch.equal(o, want)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("indices", [torch.int32, torch.int64], ids=str)
def test_pool_is_updated_in_place(function: Any, dtype: torch.dtype, indices: torch.dtype) -> None:
    x = tokens()
    pool = states(6, dtype, v_first=True)
    before = pool.clone()
    slots = torch.tensor([[4], [2], [-1]], dtype=indices)
    o, final = function(
        **x, initial_state=pool, initial_state_indices=slots, cu_seqlens=CU, state_v_first=True
    )
    assert final is pool
    want, last = reference.fused_recurrent_kda(
        **x,
        initial_state=before,
        state_indices=slots,
        cu_seqlens=CU,
        state_v_first=True,
        inplace_final_state=True,
    )
    torch.testing.assert_close(o, want.to(BF16))
    torch.testing.assert_close(pool, last.to(dtype))
    assert torch.equal(pool[[0, 1, 2, 3, 5]], before[[0, 1, 2, 3, 5]])
    assert not torch.equal(pool[4], before[4])
    assert (o[:, 30:] == 0).all()


def test_recurrent_slots_are_only_read_unless_in_place() -> None:
    x, pool = tokens(), states(5)
    slots = torch.tensor([3, 0, 1])
    common = {"initial_state": pool, "ssm_state_indices": slots, "cu_seqlens": CU}
    o, none = fused_recurrent_kda(**x, **common)
    assert none is None and torch.equal(pool, states(5))
    o2, final = fused_recurrent_kda(**x, **common, output_final_state=True)
    assert torch.equal(o, o2) and final.shape == (3, 4, 16, 8) and torch.equal(pool, states(5))
    assert torch.equal(final[1], pool[0])  # an empty sequence keeps its state
    _, same = fused_recurrent_kda(**x, **common, inplace_final_state=True)
    assert same is pool
    torch.testing.assert_close(pool[[3, 0, 1]], final)


def test_recurrent_in_place_without_slots() -> None:
    x, given = tokens(2, 3), states(2)
    _, final = fused_recurrent_kda(**x, initial_state=given, inplace_final_state=True)
    want = fused_recurrent_kda(**x, initial_state=states(2), output_final_state=True)[1]
    assert final is given and torch.equal(given, want)


def test_speculative_slots() -> None:
    x, pool = tokens(2, 3), states(8)
    slots = torch.tensor([[0, 1, 2], [5, 6, 7]], dtype=torch.int32)
    accepted = torch.tensor([2, 1], dtype=torch.int32)
    o, final = fused_recurrent_kda(
        **x,
        initial_state=pool,
        ssm_state_indices=slots,
        num_accepted_tokens=accepted,
        inplace_final_state=True,
    )
    assert final is pool
    for n, first in ((0, 1), (1, 5)):
        state = states(8)[first : first + 1]
        for t in range(3):
            part = {name: y[n : n + 1, t : t + 1] for name, y in x.items()}
            want, state = fused_recurrent_kda(**part, initial_state=state, output_final_state=True)
            torch.testing.assert_close(pool[slots[n, t]], state[0])
            torch.testing.assert_close(o[n, t], want[0, 0])


@pytest.mark.parametrize("on_host", [False, True], ids=["device_lengths", "host_lengths"])
def test_states_of_chunks_and_snapshots(on_host: bool) -> None:
    x = tokens(1, 200)
    cu = torch.tensor([0, 100, 100, 190], dtype=torch.int32)
    track = torch.full((3, 4, 16, 8), 7.0)
    o, final, h = chunk_kda(
        **x,
        cu_seqlens=cu,
        cu_seqlens_cpu=cu if on_host else None,
        chunk_size=32,
        output_final_state=True,
        track_state=track,
        track_chunk_idx=torch.tensor([3, 0, 9], dtype=torch.int32),
        return_intermediate_states=True,
    )
    assert h.dtype == BF16 and h.shape == (1, 7, 4, 16, 8)
    part = {name: y[:, :96] for name, y in x.items()}
    _, want = chunk_kda(**part, output_final_state=True)
    torch.testing.assert_close(track[0], want[0])
    torch.testing.assert_close(h[0, 3], want[0].to(BF16))
    assert (track[1:] == 7).all() and (h[0, [0, 4]] == 0).all()
    assert (o[:, 190:] == 0).all() and final.shape == (3, 4, 16, 8)


def test_activations_in_the_kernel() -> None:
    x = tokens(g=torch.randn(1, 70, 4, 16), beta=torch.randn(1, 70, 4))
    a_log, bias = torch.randn(1, 1, 4, 1), torch.randn(64)
    options = {
        "A_log": a_log,
        "dt_bias": bias,
        "lower_bound": -5.0,
        "use_gate_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
        "use_qk_l2norm_in_kernel": True,
        "allow_neg_eigval": True,
    }
    want, _ = reference.fused_recurrent_kda(**x, **options, scale=0.5)
    for function in (chunk_kda, fused_recurrent_kda):
        o, _ = function(**x, **options, scale=0.5, safe_gate=True)
        torch.testing.assert_close(o, want.to(BF16), rtol=2e-2, atol=1e-3)
    outside = dict(x, g=kda_gate(x["g"], a_log, bias, -5.0), beta=2 * x["beta"].sigmoid())
    o, _ = chunk_kda(**outside, use_qk_l2norm_in_kernel=True, scale=0.5)
    torch.testing.assert_close(o, want.to(BF16), rtol=2e-2, atol=1e-3)


@BOTH
def test_empty_batches(function: Any) -> None:
    o, final = function(**tokens(0, 5), output_final_state=True)
    assert o.shape == (0, 5, 4, 8) and final.shape == (0, 4, 16, 8)
    given = states(2)
    cu = torch.zeros(3, dtype=torch.int32)
    o, final = function(**tokens(1, 0), initial_state=given, output_final_state=True, cu_seqlens=cu)
    assert o.shape == (1, 0, 4, 8) and torch.equal(final, given)
    o, _ = function(**tokens(1, 3), cu_seqlens=torch.zeros(1, dtype=torch.int32))
    assert (o == 0).all()


def test_packed_decode() -> None:
    gen = torch.Generator().manual_seed(3)
    mixed = torch.randn(3, 2 * 2 * 16 + 4 * 8, generator=gen).to(BF16)
    a = torch.randn(3, 64, generator=gen).to(BF16)
    b = torch.randn(3, 4, generator=gen).to(BF16)
    pool, slots = states(5, v_first=True), torch.tensor([4, -1, 0], dtype=torch.int32)
    options = {"A_log": torch.randn(4, generator=gen), "dt_bias": None, "scale": None}
    out = torch.full((3, 1, 4, 8), torch.nan, dtype=BF16)
    want, last = reference.kda_packed_decode(
        mixed, a, b, initial_state=pool, ssm_state_indices=slots, **options
    )
    got = kda_packed_decode(
        mixed, a, b, initial_state=pool, ssm_state_indices=slots, out=out, **options
    )
    assert got is out and torch.equal(out, want.to(BF16)) and torch.equal(pool, last)
    assert (out[1] == 0).all()


def test_gates() -> None:
    g, a_log, bias = torch.randn(1, 100, 4, 16), torch.randn(4), torch.randn(4, 16)
    (want,) = reference.kda_gate(g, a_log, bias)
    assert torch.equal(kda_gate(g, a_log, bias), want)
    out = torch.empty_like(g, dtype=BF16)
    assert kda_gate(g[0], a_log, bias, output_dtype=BF16, out=out[0]).dtype == BF16
    assert torch.equal(out, want.to(BF16))
    sums = kda_gate_chunk_cumsum(g, a_log, 32, dt_bias=bias, unit="log2")
    torch.testing.assert_close(sums[0, 32:40], (want[0, 32:40] / 0.6931471805599453).cumsum(0))
    packed = kda_gate_chunk_cumsum(g, a_log, 32, dt_bias=bias, cu_seqlens=CU)
    torch.testing.assert_close(packed[0, 30:40], want[0, 30:40].cumsum(0))
    assert (packed[0, 66:] == 0).all()


def test_chunk_layout_keeps_the_sequences_numbers() -> None:
    cu = torch.tensor([0, 0, 100, 100, 200, 300, 300])
    pairs, offsets = chunk_layout(cu, 300, 64)
    assert pairs.tolist() == [[n, c] for n in (1, 3, 4) for c in range(2)]  # sglang#24271
    assert offsets.tolist() == [0, 0, 2, 2, 4, 6, 6]
    assert pairs.dtype == offsets.dtype == torch.int32
    padded, same = chunk_layout(cu, 300, 64, rows=9)
    assert padded[:6].equal(pairs) and (padded[6:] == -1).all() and same.equal(offsets)


@pytest.mark.parametrize("lengths", [[1] * 9, [64, 64], [65, 0, 1], [0], [3]], ids=str)
def test_chunk_layout_without_the_host_is_padded(lengths: list[int]) -> None:
    """On a device the number of chunks is unknown; a meta tensor stands for one here."""
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    exact, offsets = chunk_layout(cu, sum(lengths), 64)
    pairs, _ = chunk_layout(cu.to("meta"), sum(lengths), 64)
    assert pairs.shape[0] >= exact.shape[0] == int(offsets[-1])
    assert pairs.shape[0] == max(-(-sum(lengths) // 64) + len(lengths) - 1, 0)


@BOTH
def test_problem_holds_what_is_known_before_the_numbers(function: Any) -> None:
    session = Recorder()

    def problem(**options: Any) -> Any:
        x = tokens(**{n: options.pop(n) for n in ("g", "beta", "q", "v") if n in options})
        function.__wrapped__(session, **x, **options)
        return session.problem

    plain = problem()
    assert plain[:7] == ("bfloat16", "float32", "float32", 2, 4, 16, 8)
    assert (plain.gate, plain.beta, plain.state_dtype, plain.final_dtype) == (
        *("given", "given", "none", "none"),
    )
    raw = {"use_gate_in_kernel": True, "A_log": torch.zeros(4)}
    pool = {"initial_state": states(9, BF16), "initial_state_indices": torch.tensor([1])}
    soft = {"gate": "softplus", "A_log": "float32"}
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"g": torch.zeros(1, 70, 4, 16).to(BF16)}, {"g_dtype": "bfloat16"}),
        ({"use_qk_l2norm_in_kernel": True}, {"l2norm": True}),
        (raw, soft),
        (raw | {"dt_bias": torch.zeros(64)}, soft | {"dt_bias": "float32"}),
        (raw | {"lower_bound": -5}, {"gate": "sigmoid", "A_log": "float32", "bounded": True}),
        (raw | {"lower_bound": -9.0}, {"gate": "sigmoid", "A_log": "float32"}),
        ({"safe_gate": True, "lower_bound": -5}, {"bounded": True}),
        ({"use_beta_sigmoid_in_kernel": True}, {"beta": "sigmoid"}),
        ({"use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True}, {"beta": "2sigmoid"}),
        ({"cu_seqlens": CU}, {"cu_seqlens": "int64"}),
        ({"state_v_first": True}, {"state_v_first": True}),
        ({"transpose_state_layout": True}, {"state_v_first": True}),
        ({"output_final_state": True}, {"final_dtype": "float32"}),
        ({"initial_state": states(1)}, {"state_dtype": "float32"}),
        (pool, {"state_dtype": "bfloat16", "final_dtype": "bfloat16", "state_indices": "int64"}
            | ({"in_place": True} if function is fused_recurrent_kda else {})),
        ({"out": torch.empty(1, 70, 4, 8)}, {"out_dtype": "float32"}),
        ({"q": torch.zeros(1, 70, 2, 17, dtype=BF16)[..., 1:]}, {"aligned": False}),
        ({"initial_state": states(1)[..., :7].repeat(1, 1, 1, 2)[..., :8]}, {
            "state_dtype": "float32", "aligned": False}),
    ]  # fmt: skip
    for options, fields in changes:
        assert problem(**options) == plain._replace(**fields), options
    function.__wrapped__(session, **tokens(1, 71))
    assert session.problem == plain and hash(session.problem) == hash(plain)


def test_chunk_problem_and_launch() -> None:
    session = Recorder()
    chunk_kda.__wrapped__(session, **tokens(1, 64 * 64))
    assert session.problem.small_grid  # 64 chunks of 4 heads
    chunk_kda.__wrapped__(session, **tokens(1, 64 * 64 + 1), chunk_size=64)
    assert not session.problem.small_grid
    named = session.named()
    assert named["chunk_indices"] is None and named["scale"] == 0.25 and named["h"] is None
    chunk_kda.__wrapped__(session, **tokens(), cu_seqlens=CU, chunk_size=32)
    named = session.named()
    assert named["chunk_indices"].tolist() == [[0, 0], [2, 0], [2, 1]]
    assert named["chunk_offsets"].tolist() == [0, 1, 1, 3]
    assert session.problem.chunk_size == 32


def test_slots_reach_the_kernel_as_a_table() -> None:
    session = Recorder()
    table = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    for given, shape, many in ((table[:, 0].contiguous(), (3, 1), False), (table, (3, 4), True),
                               (table[:, :1], (3, 1), False)):  # fmt: skip
        fused_recurrent_kda.__wrapped__(
            session, **tokens(), initial_state=states(12), ssm_state_indices=given, cu_seqlens=CU
        )
        got = session.named()["state_indices"]
        assert got.shape == shape and got[:, 0].tolist() == given.flatten()[:: shape[1]].tolist()
        assert session.problem.per_token is many


SLOT = torch.tensor([0])
RAW = {"use_gate_in_kernel": True}
REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "k shape": ({"k": torch.zeros(1, 70, 2, 8, dtype=BF16)}, VALUE, "k must be of shape [1, 70, 2"),
    "k dtype": ({"k": torch.zeros(1, 70, 2, 16)}, TYPE, "k must be bfloat16, found float32"),
    "HV % H": (
        {"q": torch.zeros(1, 70, 3, 16, dtype=BF16), "k": torch.zeros(1, 70, 3, 16, dtype=BF16)},
        VALUE,
        "v's heads must be a multiple of q's 3, found 4",
    ),
    "K 257": (
        {"q": torch.zeros(1, 70, 2, 257, dtype=BF16), "k": torch.zeros(1, 70, 2, 257, dtype=BF16)},
        VALUE,
        "head dims must be 1 to 256",
    ),
    "g shape": ({"g": torch.zeros(1, 70, 2, 16)}, VALUE, "g must be of shape [1, 70, 4, 16]"),
    "beta shape": ({"beta": torch.zeros(1, 70, 2)}, VALUE, "beta must be of shape [1, 70, 4]"),
    "v strided": (
        {"v": torch.zeros(1, 70, 4, 16, dtype=BF16)[..., ::2]},
        VALUE,
        "v must be contiguous in its last",
    ),
    "batch 2 packed": (tokens(2, 70) | {"cu_seqlens": CU}, VALUE, "q must be of batch 1"),
    "state count": ({"initial_state": states(2)}, VALUE, "initial_state must be of shape [1, 4"),
    "state layout": ({"initial_state": states(1, v_first=True)}, VALUE, "[1, 4, 16, 8]"),
    "state fp16": (
        {"initial_state": states(1).half()},
        TYPE,
        "initial_state must be float32 or bf",
    ),
    "final shape": (
        {"final_state": states(3)},
        VALUE,
        "final_state must be of shape [1, 4, 16, 8]",
    ),
    "safe without bound": (
        {"safe_gate": True},
        VALUE,
        "lower_bound must be in [-5.0, 0) with safe",
    ),
    "safe below -5": (
        {"safe_gate": True, "lower_bound": -5.1},
        VALUE,
        "lower_bound must be in [-5.0, 0) with safe_gate, found -5.1",
    ),
    "bound 0": ({"lower_bound": 0.0}, VALUE, "lower_bound must be below 0"),
    "gate of nothing": (RAW, VALUE, "A_log must be given with use_gate_in_kernel, or lower_bound"),
    "A_log size": (RAW | {"A_log": torch.zeros(2)}, VALUE, "A_log must be contiguous with 4"),
    "dt_bias size": (
        RAW | {"A_log": torch.zeros(4), "dt_bias": torch.zeros(4)},
        VALUE,
        "dt_bias must be contiguous with 64",
    ),
    "A_log unused": ({"A_log": torch.zeros(4)}, VALUE, "A_log must be None without use_gate"),
    "negative eigenvalues": ({"allow_neg_eigval": True}, VALUE, "allow_neg_eigval must be False"),
    "two layouts": (
        {"state_v_first": True, "transpose_state_layout": False},
        VALUE,
        "transpose_state_layout must be absent with state_v_first",
    ),
    "slots without states": (
        {"initial_state_indices": SLOT},
        VALUE,
        "initial_state_indices must be None without initial_state",
    ),
    "slots 2-D": (
        {"initial_state": states(2), "initial_state_indices": torch.zeros(1, 2).int()},
        VALUE,
        "initial_state_indices must be of shape [1] or [1, 1]",
    ),
    "slots float": (
        {"initial_state": states(2), "initial_state_indices": torch.zeros(1)},
        TYPE,
        "initial_state_indices must be int32 or int64",
    ),
    "pool and buffer": (
        {"initial_state": states(2), "initial_state_indices": SLOT, "final_state": states(1)},
        VALUE,
        "final_state must be None, or initial_state itself",
    ),
    "out shape": ({"out": torch.zeros(1, 70, 2, 8)}, VALUE, "out must be of shape [1, 70, 4, 8]"),
    "scale tensor": ({"scale": torch.tensor(1.0)}, TYPE, "scale must be None or a number"),
    "cu 2-D": ({"cu_seqlens": CU[None]}, VALUE, "cu_seqlens must be of shape"),
    "gradient": ({"g": torch.zeros(1, 70, 4, 16, requires_grad=True)}, VALUE, "free of gradients"),
    "context parallel": ({"cp_context": object()}, Unsupported, "cp_context must be off"),
    "typo": ({"use_l2norm": True}, TYPE, "known keywords only, found use_l2norm"),
}
CHUNK_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "chunk 128": ({"chunk_size": 128}, VALUE, "chunk_size must be 32 or 64, found 128"),
    "half a layout": (
        {"cu_seqlens": CU, "chunk_indices": torch.zeros(2, 2).int()},
        VALUE,
        "chunk_offsets must be given",
    ),
    "layout of nothing": (
        {"chunk_indices": torch.zeros(2, 2).int(), "chunk_offsets": torch.zeros(4).int()},
        VALUE,
        "chunk_indices must be None without cu_seqlens",
    ),
    "layout shape": (
        {
            "cu_seqlens": CU,
            "chunk_indices": torch.zeros(2).int(),
            "chunk_offsets": torch.zeros(4).int(),
        },
        VALUE,
        "chunk_indices must be of shape [any, 2]",
    ),
    "half a snapshot": ({"track_state": states(1)}, VALUE, "track_chunk_idx must be given"),
    "snapshot bf16": (
        {"track_state": states(1, BF16), "track_chunk_idx": SLOT.int()},
        TYPE,
        "track_state must be float32",
    ),
}
RECURRENT_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "two kinds of slots": (
        {"initial_state": states(2), "initial_state_indices": SLOT, "ssm_state_indices": SLOT},
        VALUE,
        "ssm_state_indices must be None with initial_state_indices",
    ),
    "in place of nothing": (
        {"inplace_final_state": True},
        VALUE,
        "inplace_final_state must be False without initial_state",
    ),
    "accepted without slots": (
        {"num_accepted_tokens": SLOT},
        VALUE,
        "num_accepted_tokens must be None without ssm_state_indices",
    ),
    "accepted shape": (
        {
            "initial_state": states(2),
            "ssm_state_indices": SLOT,
            "num_accepted_tokens": torch.zeros(2).int(),
        },
        VALUE,
        "num_accepted_tokens must be of shape [1]",
    ),
    "states of chunks": ({"return_intermediate_states": True}, Unsupported, "use chunk_kda"),
}


def refused(function: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    session = Recorder()
    with pytest.raises(error, match=re.escape(text)):
        function.__wrapped__(session, **(tokens() | changes))
    assert session.arguments == ()


@BOTH
@pytest.mark.parametrize(("changes", "error", "text"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(function: Any, changes: Any, error: type[Exception], text: str) -> None:
    refused(function, changes, error, text)


@pytest.mark.parametrize(("changes", "error", "text"), CHUNK_REFUSALS.values(), ids=CHUNK_REFUSALS)
def test_chunk_refusals(changes: Any, error: type[Exception], text: str) -> None:
    refused(chunk_kda, changes, error, text)


@pytest.mark.parametrize(
    ("changes", "error", "text"), RECURRENT_REFUSALS.values(), ids=RECURRENT_REFUSALS
)
def test_recurrent_refusals(changes: Any, error: type[Exception], text: str) -> None:
    refused(fused_recurrent_kda, changes, error, text)


def test_names_of_chunk_kda_pass_where_they_change_nothing() -> None:
    x = tokens()
    want = fused_recurrent_kda(**x)[0]
    off = {"chunk_size": 64, "chunk_indices": None, "track_state": None, "cp_context": None}
    assert torch.equal(fused_recurrent_kda(**x, **off, use_graph=True)[0], want)


POOL = {"initial_state": states(4), "cu_seqlens": CU}
BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "cu falls": ({"cu_seqlens": torch.tensor([0, 40, 30])}, "cu_seqlens must be rising"),
    "cu past the end": ({"cu_seqlens": torch.tensor([0, 71])}, "cu_seqlens must be rising"),
    "host lengths differ": (
        {"cu_seqlens": CU, "cu_seqlens_cpu": torch.tensor([0, 30, 31, 66])},
        "cu_seqlens_cpu must be equal",
    ),
    "slot outside": (
        POOL | {"initial_state_indices": torch.tensor([0, 4, 1])},
        "slots of the pool",
    ),
    "slot twice": (POOL | {"initial_state_indices": torch.tensor([2, 0, 2])}, "without duplicates"),
    "growing": ({"g": torch.full((1, 70, 4, 16), 0.1)}, "g must be <= 0"),
    "below the bound": (
        {"g": torch.full((1, 70, 4, 16), -2.0), "safe_gate": True, "lower_bound": -1.0},
        "g must be >= lower_bound",
    ),
}


@BOTH
@pytest.mark.parametrize(("changes", "text"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_are_checked_only_when_asked(function: Any, changes: Any, text: str) -> None:
    function.__wrapped__(Recorder(), **(tokens() | changes))
    with pytest.raises(ArgumentValueError, match=re.escape(text)):
        function.__wrapped__(Recorder(validate=True), **(tokens() | changes))


def test_validation_accepts_padding_slots() -> None:
    slots = torch.tensor([-1, 2, -1])
    x = tokens() | POOL | {"initial_state_indices": slots}
    chunk_kda.__wrapped__(Recorder(validate=True), **x)
    many = torch.tensor([[0, 1], [2, -1], [3, -1]])
    with pytest.raises(ArgumentValueError, match="of 36 columns"):
        fused_recurrent_kda.__wrapped__(
            Recorder(validate=True), **tokens(), **POOL, ssm_state_indices=many
        )


PACKED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "width": ({"mixed_qkv": torch.zeros(3, 97)}, VALUE, "mixed_qkv must be 2 H 16 + 4 8 wide"),
    "a": ({"a": torch.zeros(3, 32)}, VALUE, "a must be of shape [3, 64]"),
    "b": ({"b": torch.zeros(3, 8)}, VALUE, "b must be of shape [3, 4]"),
    "no slots": ({"ssm_state_indices": None}, VALUE, "ssm_state_indices must be a tensor of slots"),
    "out": ({"out": torch.zeros(3, 4, 8)}, VALUE, "out must be of shape [3, 1, 4, 8]"),
    "pool fp16": ({"initial_state": states(5, v_first=True).half()}, TYPE, "initial_state must be"),
    "no gate": ({"A_log": None}, VALUE, "A_log must be given"),
}


@pytest.mark.parametrize(("changes", "error", "text"), PACKED.values(), ids=PACKED)
def test_packed_decode_refusals(changes: Any, error: type[Exception], text: str) -> None:
    values = {
        "mixed_qkv": torch.zeros(3, 96),
        "a": torch.zeros(3, 64),
        "b": torch.zeros(3, 4),
        "A_log": torch.zeros(4),
        "dt_bias": None,
        "scale": None,
        "initial_state": states(5, v_first=True),
        "ssm_state_indices": torch.tensor([0, 1, 2]),
        "out": torch.zeros(3, 1, 4, 8),
    }
    session = Recorder()
    kda_packed_decode.__wrapped__(session, **values)
    assert session.problem[:7] == ("float32", "float32", "float32", 2, 4, 16, 8)
    with pytest.raises(error, match=re.escape(text)):
        kda_packed_decode.__wrapped__(session, **(values | changes))


def test_gate_refusals() -> None:
    g, a_log = torch.zeros(1, 8, 4, 16), torch.zeros(4)
    bad: list[tuple[type[Exception], str, Any]] = [
        (VALUE, "[..., HV, K]", lambda: kda_gate(torch.zeros(4), a_log)),
        (VALUE, "A_log must be given", lambda: kda_gate(g, None)),
        (VALUE, "out must be", lambda: kda_gate(g, a_log, output_dtype=BF16, out=g.clone())),
        (VALUE, "chunk_size must be", lambda: kda_gate_chunk_cumsum(g, a_log, 16)),
        (VALUE, "unit must be", lambda: kda_gate_chunk_cumsum(g, a_log, unit="e")),
        (TYPE, "g must be", lambda: kda_gate(g.int(), a_log)),
    ]
    for error, text, call in bad:
        with pytest.raises(error, match=re.escape(text)):
            call()
