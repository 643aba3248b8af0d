# SPDX-License-Identifier: Apache-2.0
"""fla's KDA on archkey: names, orders, defaults, layouts, bounds of flash-linear-attention 0.6.0.

The calls are a drawn part of those that its tests make, with inputs of the same kinds; what they
are held against is written anew. `fla_suite.py` runs its tests themselves.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.integrations._kda import defined, error, gated
from torch.nn import functional as F

from archkey.errors import ArgumentError, ArgumentValueError, MissingDependency, Unsupported
from archkey.integrations import fla

REQUIRED = inspect.Parameter.empty
TOKENS = dict.fromkeys(("q", "k", "v", "g", "beta"), REQUIRED)
FLAGS = {
    "use_qk_l2norm_in_kernel": False,
    "use_gate_in_kernel": False,
    "use_beta_sigmoid_in_kernel": False,
    "allow_neg_eigval": False,
}
SIGNATURES: dict[str, dict[str, Any]] = {
    "chunk_kda": {
        **TOKENS,
        **{"scale": None, "initial_state": None, "output_final_state": False},
        **FLAGS,
        **{"safe_gate": False, "lower_bound": None, "disable_recompute": False},
        **{"return_intermediate_states": False, "state_v_first": False},
        **{"cu_seqlens": None, "cu_seqlens_cpu": None, "cp_context": None},
        **{"use_graph": False, "max_num_seqs": None, "kwargs": REQUIRED},
    },
    "fused_recurrent_kda": {
        **TOKENS,
        **{"A_log": None, "dt_bias": None, "scale": None, "initial_state": None},
        "output_final_state": False,
        **FLAGS,
        **{"lower_bound": None, "state_v_first": False, "cu_seqlens": None, "kwargs": REQUIRED},
    },
    "fused_recurrent_kda_fwd": {
        **TOKENS,
        **{"A_log": None, "dt_bias": None, "initial_state": None, "scale": None},
        **{"output_final_state": False, "inplace_final_state": True, "state_v_first": False},
        **{"cu_seqlens": None, "ssm_state_indices": None, "num_accepted_tokens": None},
        **FLAGS,
        **{"lower_bound": None, "out": None, "kwargs": REQUIRED},
    },
}
SIGNATURES["fused_kda_gate"] = {
    **{"g": REQUIRED, "A_log": None, "dt_bias": None, "lower_bound": None},
    "output_dtype": torch.float32,
}
BOTH = ("chunk_kda", "fused_recurrent_kda")


@pytest.mark.parametrize("name", SIGNATURES)
def test_names_order_and_defaults(name: str) -> None:
    parameters = inspect.signature(getattr(fla, name)).parameters
    assert [(p.name, p.default) for p in parameters.values()] == list(SIGNATURES[name].items())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(42)


def drawn(
    batch: int, length: int, heads: tuple[int, int], dim: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Tokens as fla's tests make them: uniform q, k and v, gates of a log-sigmoid."""
    h, hv = heads
    return {
        "q": F.normalize(torch.rand(batch, length, h, dim), dim=-1).to(dtype),
        "k": F.normalize(torch.rand(batch, length, h, dim), dim=-1).to(dtype),
        "v": torch.rand(batch, length, hv, dim).to(dtype),
        "g": F.logsigmoid(torch.randn(batch, length, hv, dim)),
        "beta": torch.randn(batch, length, hv, dtype=dtype).sigmoid(),
    }


def run(name: str, **call: Any) -> Any:
    with torch.inference_mode():
        return getattr(fla, name)(**call)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("batch", "length", "heads", "dim", "dtype", "masked", "normaliser"),
    [
        (1, 63, (1, 1), 64, torch.float16, 0.0, 1.0),
        (2, 100, (3, 3), 60, torch.float16, 0.5, 1.0),
        (2, 65, (2, 4), 100, torch.bfloat16, 0.0, 0.1),
        (1, 64, (1, 2), 64, torch.float32, 0.0, 10.0),
    ],
)
def test_a_batch(
    name: str,
    batch: int,
    length: int,
    heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    masked: float,
    normaliser: float,
) -> None:
    call = drawn(batch, length, heads, dim, dtype)
    call["g"] = call["g"] / normaliser * (torch.rand_like(call["g"]) > masked)
    states = torch.randn(batch, heads[1], dim, dim)
    want = defined(**call, scale=0.1, initial_state=states)
    got = run(name, **call, scale=0.1, initial_state=states, output_final_state=True)
    assert [error(*pair) < 0.005 for pair in zip(got, want, strict=True)] == [True, True]
    assert got[0].dtype == dtype
    assert got[1].dtype == torch.float32
    turned = run(
        name, **call, scale=0.1, initial_state=states.mT.contiguous(), output_final_state=True,
        state_v_first=True,
    )  # fmt: skip
    assert error(turned[0], got[0]) < 1e-4
    assert error(turned[1].mT, got[1]) < 1e-4
    assert run(name, **call)[1] is None


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("bounds", "dim", "lower_bound", "rates"),
    [
        ([0, 15], 60, None, "[1, 1, H, 1]"),
        ([0, 15, 100, 100, 180], 64, None, "[H]"),
        ([0, 0, 31, 96, 96], 128, -5.0, "[H]"),
        ([0, 40, 70], 64, -5.0, "none"),
    ],
)
def test_packed_sequences_with_raw_gates(
    name: str, bounds: list[int], dim: int, lower_bound: float | None, rates: str
) -> None:
    """A tenth of the gates at -1000 before the softplus: no decay at all."""
    heads = 4
    call = drawn(1, bounds[-1], (heads, heads), dim, torch.float16)
    raw = torch.randn(1, bounds[-1], heads, dim)
    call["g"] = raw.masked_fill(torch.rand_like(raw) < 0.1, -1000).half()
    beta = torch.randn(1, bounds[-1], heads)
    A_log = None if rates == "none" else torch.empty(heads).uniform_(1, 16).log()
    bias = torch.randn(heads * dim)
    states = torch.randn(len(bounds) - 1, heads, dim, dim)
    finished = {"g": gated(call["g"], A_log, bias, lower_bound), "beta": 2 * beta.sigmoid()}
    want = defined(**call | finished, initial_state=states, bounds=bounds, norm=True)
    shaped = A_log.view(1, 1, heads, 1) if A_log is not None and "1" in rates else A_log
    more = {"safe_gate": lower_bound is not None} if name == "chunk_kda" else {}
    got = run(
        name, **call | {"beta": beta}, A_log=shaped, dt_bias=bias, lower_bound=lower_bound,
        initial_state=states, output_final_state=True, cu_seqlens=torch.tensor(bounds),
        use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True,
        allow_neg_eigval=True, **more,
    )  # fmt: skip
    assert [error(*pair) < 0.002 for pair in zip(got, want, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("shape", "rates", "bias", "lower_bound"),
    [
        ((1, 2, 2, 12), True, False, -5.0),
        ((2, 64, 4, 32), False, True, -5.0),
        ((7, 3, 60), True, True, None),
    ],
)
def test_the_gate(
    shape: tuple[int, ...], rates: bool, bias: bool, lower_bound: float | None
) -> None:
    g, (heads, dim) = torch.randn(shape) * 10, shape[-2:]
    A_log = torch.empty(1, 1, heads, 1).uniform_(1, 16).log() if rates else None
    dt_bias = torch.randn(heads * dim) if bias else None
    call = {"g": g, "A_log": A_log, "dt_bias": dt_bias, "lower_bound": lower_bound}
    want = gated(**call)
    assert error(run("fused_kda_gate", **call), want) < 1e-4
    assert run("fused_kda_gate", **call, output_dtype=torch.bfloat16).dtype == torch.bfloat16
    turned = g.transpose(0, -1).contiguous().transpose(0, -1)
    assert error(run("fused_kda_gate", **call | {"g": turned}), want) < 1e-4


@pytest.mark.parametrize("raw", [False, True], ids=["finished gate", "raw gate"])
def test_a_pool_of_states(raw: bool) -> None:
    """vLLM's decode; what stands in slots of nobody is huge, and stays to the bit."""
    batch, heads, dim = 7, 2, 64
    call = drawn(1, batch, (heads, heads), dim, torch.bfloat16)
    pool, slots = torch.full((3 * batch, heads, dim, dim), 1e30), torch.randperm(3 * batch)[:batch]
    pool[slots] = torch.randn(batch, heads, dim, dim)
    before, more, g = pool.clone(), {}, call["g"]
    if raw:
        more = {"A_log": torch.rand(heads), "dt_bias": torch.randn(heads * dim)}
        more |= {"use_gate_in_kernel": True, "lower_bound": -5.0}
        g = gated(g, more["A_log"], more["dt_bias"], -5.0)
    bounds = list(range(batch + 1))
    want, states = defined(
        **call | {"g": g}, scale=0.5, initial_state=pool[slots], bounds=bounds, norm=True
    )
    got, final = run(
        "fused_recurrent_kda_fwd", **call, **more, initial_state=pool, scale=0.5,
        cu_seqlens=torch.arange(batch + 1, dtype=torch.int32), ssm_state_indices=slots.int(),
        use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    assert error(got, want) < 0.005
    assert final is pool
    assert error(pool[slots], states) < 0.005
    nobody = torch.ones(len(pool), dtype=torch.bool)
    nobody[slots] = False
    assert torch.equal(pool[nobody], before[nobody])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_accepted_tokens(dtype: torch.dtype) -> None:
    """A sequence goes on from the state after its last accepted token."""
    batch, columns, heads, dim = 3, 4, 2, 64
    call = drawn(1, batch * columns, (heads, heads), dim, torch.float32)
    slots = torch.randperm(batch * columns + 2)[: batch * columns].view(batch, columns)
    pool, accepted = torch.randn(batch * columns + 2, heads, dim, dim), torch.tensor([1, 4, 2])
    bounds = [columns * n for n in range(batch + 1)]
    first = pool[slots[torch.arange(batch), accepted - 1]]
    want, states = defined(**call, initial_state=first, bounds=bounds)
    got, _ = run(
        "fused_recurrent_kda_fwd", **call, initial_state=pool, cu_seqlens=torch.tensor(bounds),
        ssm_state_indices=slots.to(dtype), num_accepted_tokens=accepted.to(dtype),
    )  # fmt: skip
    assert error(got, want) < 1e-5
    assert error(pool[slots[:, -1]], states) < 1e-5


def test_states_of_chunks() -> None:
    """As many as there are chunks, in v's dtype; in a graph as many as the shapes allow."""
    call = drawn(2, 130, (2, 2), 64, torch.bfloat16)
    h = run("chunk_kda", **call, return_intermediate_states=True)[2]
    assert h.shape == (2, 3, 2, 64, 64)
    assert h.dtype == torch.bfloat16
    packed = drawn(1, 130, (2, 2), 64, torch.bfloat16)
    bounds = torch.tensor([0, 65, 65, 130])
    o, _, h = run("chunk_kda", **packed, cu_seqlens=bounds, return_intermediate_states=True)
    assert h.shape == (1, 4, 2, 64, 64)
    part = {name: x[:, 65:129] for name, x in packed.items()}
    assert error(h[0, 3], defined(**part)[1][0]) < 0.005
    graph = run(
        "chunk_kda", **packed, cu_seqlens=bounds, return_intermediate_states=True, use_graph=True,
        max_num_seqs=3,
    )  # fmt: skip
    assert torch.equal(graph[0], o)
    assert graph[2].shape[1] >= 4


def test_arguments_by_position() -> None:
    call = drawn(1, 20, (2, 2), 64, torch.float32)
    states = torch.randn(1, 2, 64, 64)
    with torch.inference_mode():
        want = fla.chunk_kda(**call, scale=0.3, initial_state=states, output_final_state=True)
        chunk = fla.chunk_kda(*call.values(), 0.3, states, True)
        step = fla.fused_recurrent_kda(*call.values(), None, None, 0.3, states, True)
    for got in (chunk, step):
        assert [error(*pair) < 1e-5 for pair in zip(got, want, strict=True)] == [True, True]


@pytest.mark.parametrize("name", BOTH)
def test_what_fla_ignores_has_no_effect(name: str) -> None:
    """A gate's parameters beside a finished gate, and keywords of other people."""
    call = drawn(1, 20, (2, 2), 64, torch.float32)
    want = run(name, **call)
    got = run(
        name, **call, A_log=torch.ones(2), dt_bias=torch.ones(128), lower_bound=-5.0,
        layer_idx=3, position_ids=torch.arange(20),
    )  # fmt: skip
    assert torch.equal(got[0], want[0])


@pytest.mark.parametrize("name", BOTH)
def test_strided_tokens(name: str) -> None:
    """As a convolution leaves them: the last dimension is not the innermost."""
    call = drawn(2, 20, (2, 4), 64, torch.float32)
    want = run(name, **call)
    turned = {key: x.transpose(1, -1).contiguous().transpose(1, -1) for key, x in call.items()}
    assert all(x.stride(-1) != 1 for x in turned.values())
    assert torch.equal(run(name, **turned)[0], want[0])


@pytest.mark.parametrize("name", BOTH)
def test_the_old_name_of_state_v_first(name: str) -> None:
    call = drawn(1, 5, (1, 1), 60, torch.float32) | {"output_final_state": True}
    want = run(name, **call, state_v_first=True)[1]
    with pytest.warns(DeprecationWarning, match="state_v_first"):
        got = run(name, **call, transpose_state_layout=True)[1]
    assert torch.equal(got, want)
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match="old name"):
        run(name, **call, transpose_state_layout=True, state_v_first=True)


def test_what_fla_refuses_is_refused() -> None:
    """With ValueError where fla has it, but an error that names argument and remedy."""
    call = drawn(1, 64, (1, 1), 64, torch.float32)
    refused: list[dict[str, Any]] = [
        {"chunk_size": 16},
        {"allow_neg_eigval": True},
        {"use_gate_in_kernel": True},
        {"use_gate_in_kernel": True, "A_log": torch.ones(1), "safe_gate": True},
        {"use_gate_in_kernel": True, "safe_gate": True, "lower_bound": -6.0},
        {"initial_state": torch.zeros(2, 1, 64, 64), "cu_seqlens": torch.tensor([0, 64])},
    ]
    for more in refused:
        with pytest.raises(ArgumentValueError):
            run("chunk_kda", **call, **more)
    with pytest.raises(Unsupported, match="context parallelism"):
        run("chunk_kda", **call, cp_context=object())
    with pytest.raises(ArgumentError):
        run("fused_recurrent_kda_fwd", **call)  # in place, and no state
    call["q"].requires_grad_()
    with pytest.raises(ArgumentError, match="grad"):
        fla.chunk_kda(**call)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """fla's module of KDA, and one of somebody who imported a function of it by another name."""
    home, client = ModuleType("fla.ops.kda"), ModuleType("somebodys_layer")
    home.chunk_kda = lambda *tokens, **options: "fla"  # type: ignore[attr-defined]
    client.attend = home.chunk_kda  # type: ignore[attr-defined]
    for module in (home, client):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return home, client


def test_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a function was looked up, and by whatever name; all is as before afterwards."""
    home, client = stand_in(monkeypatch)
    theirs = client.attend
    with fla.routed():
        assert home.chunk_kda is client.attend is fla.chunk_kda
        with fla.routed():  # again, to no further effect
            assert client.attend is fla.chunk_kda
        assert client.attend is fla.chunk_kda
    assert home.chunk_kda is client.attend is theirs
    with pytest.raises(ZeroDivisionError), fla.routed():
        raise ZeroDivisionError
    assert client.attend is theirs


def test_install(monkeypatch: pytest.MonkeyPatch) -> None:
    home, client = stand_in(monkeypatch)
    monkeypatch.setattr(fla, "_HOMES", {"fla.ops.kda": fla._OWN})  # the real ones stay
    fla.install()
    assert home.chunk_kda is client.attend is fla.chunk_kda


def test_nobody_to_route(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("fla", "transformers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="flash-linear-attention"):
        fla.install()
