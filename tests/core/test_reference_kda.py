# SPDX-License-Identifier: Apache-2.0
"""The KDA references against a scalar loop in float64 numpy, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.core._kda_loop import F64, both, close, cumulative, loop, make

from archkey.reference import _kda_layout as layout
from archkey.reference import kda as reference

VARLEN = {
    "plain": [3, 17, 40],
    "empty_first": [0, 5, 33],
    "empty_middle": [5, 0, 0, 18],
    "empty_last": [16, 64, 0],
    "all_empty": [0, 0],
    "one_token_each": [1, 1, 1],
}


@pytest.fixture
def chunk_form_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """chunk_kda runs the recurrence when asked for float64; here its chunk form does."""
    monkeypatch.setattr(reference, "_recurrence", reference._chunk_form)


@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (2, 6)], ids=lambda h: f"H{h[0]}HV{h[1]}")
@pytest.mark.parametrize("dims", [(8, 6), (5, 12)], ids=lambda d: f"K{d[0]}V{d[1]}")
@pytest.mark.parametrize("length", [1, 15, 16, 37])
@pytest.mark.parametrize("initial", [False, True], ids=["zeros", "initial"])
def test_recurrence_equals_a_loop(
    heads: tuple[int, int], dims: tuple[int, int], length: int, initial: bool
) -> None:
    x = make((2, length), heads, dims)
    shape = (2, heads[1], *dims)
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1)) if initial else None
    states = np.zeros(shape) if given is None else given.double().numpy().copy()
    want = loop(x, states, [(0, length), (length, 2 * length)])
    for o, final in both(x, initial_state=given):
        close(o, want)
        close(final, states)
    o, final, h, track = reference.chunk_kda(**x, initial_state=given)
    assert o.dtype == final.dtype == torch.float32 and h is None and track is None
    close(o, want, 1e-6)
    close(final, states, 1e-6)


@pytest.mark.parametrize("lengths", VARLEN.values(), ids=VARLEN)
def test_varlen(lengths: list[int]) -> None:
    tokens = sum(lengths) + 3  # the last three rows belong to no sequence
    x = make((1, tokens))
    cu = cumulative(lengths)
    given = torch.randn(len(lengths), 4, 8, 6, generator=torch.Generator().manual_seed(1))
    states = given.double().numpy().copy()
    want = loop(x, states, list(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)))
    for o, final in both(x, initial_state=given, cu_seqlens=cu):
        close(o, want)
        close(final, states)
        assert (o[:, tokens - 3 :] == 0).all()
    for n, length in enumerate(lengths):
        if length == 0:
            np.testing.assert_array_equal(states[n], given[n].double().numpy())


@pytest.mark.usefixtures("chunk_form_in_float64")
@pytest.mark.parametrize("length", [1, 16, 63, 64, 65, 200])
@pytest.mark.parametrize("span", [0.0, 0.1, 5.0, 20.0, 200.0], ids=lambda g: f"g{g:g}")
def test_chunk_form_equals_the_recurrence(length: int, span: float) -> None:
    """For any gate, also where factored exponentials leave float32: no exponent is positive."""
    x = make((1, length), (2, 2), (16, 16))
    gen = torch.Generator().manual_seed(3)
    x["g"] = -span * torch.rand(1, length, 2, 16, generator=gen)
    tokens = layout.prepare(*x.values(), None, None, None, None, False, False, False, False, F64)
    state = torch.randn(2, 16, 16, generator=gen, dtype=F64)
    want = np.zeros((2, length, 16))
    states = state.numpy().copy()[None]
    want = loop(x, states, [(0, length)])
    o, _, _, _ = reference.chunk_kda(**x, initial_state=state[None], compute_dtype=F64)
    close(o, want)
    whole, last = reference._chunk_form(state, tokens)[::-1]  # all tokens in one block
    close(whole.transpose(0, 1)[None], want)
    close(last[None], states)


@pytest.mark.parametrize("gate", ["bounded", "one_deep_token", "tiny_after_deep", "minus_infinity"])
def test_float32_keeps_its_digits_under_deep_gates(gate: str) -> None:
    x = make((1, 128), (2, 2), (32, 32))
    if gate == "bounded":
        x["g"] = torch.full_like(x["g"], -5.0)
    elif gate == "one_deep_token":
        x["g"][:, 40] = -200.0
    elif gate == "tiny_after_deep":  # G reaches 3000, where a difference of sums keeps 4 digits
        x["g"] = torch.where(torch.arange(128)[:, None, None] % 16 < 15, -200.0, -0.01).expand_as(
            x["g"]
        )
    else:
        x["g"][:, 40] = -torch.inf  # forgets everything
    o, final, _, _ = reference.chunk_kda(**x)
    want, last = reference.fused_recurrent_kda(**x, compute_dtype=F64)
    close(o, want.numpy(), 1e-6)
    close(final, last.numpy(), 1e-6)


def test_extreme_state_growth_with_negative_eigenvalues() -> None:
    """beta = 2 reflects instead of projecting; nothing decays."""
    x = make((1, 200), (1, 1), (16, 16))
    x["g"] = torch.zeros_like(x["g"])
    x["beta"] = torch.full_like(x["beta"], 2.0)
    want, last = reference.fused_recurrent_kda(**x, compute_dtype=F64)
    o, final, _, _ = reference.chunk_kda(**x)
    close(o, want.numpy(), 2e-5)
    close(final, last.numpy(), 2e-5)


def test_activations_inside_equal_activations_outside() -> None:
    x = make((2, 21), (2, 4))
    gen = torch.Generator().manual_seed(5)
    a_log, bias = torch.randn(4, generator=gen), 8 * torch.randn(4, 8, generator=gen)
    raw, logit = 30 * torch.randn(2, 21, 4, 8, generator=gen), torch.randn(2, 21, 4, generator=gen)
    x["k"] = 3 * x["k"]
    shifted = (raw + bias).double()
    rate = a_log.double().exp()[:, None]
    gates = {
        None: -rate * torch.log1p(torch.exp(-shifted.abs())) - rate * shifted.clamp(min=0),
        -5.0: -5.0 / (1 + torch.exp(-rate * shifted)),
    }
    for lower_bound, gate in gates.items():
        for doubled in (False, True):
            plain = dict(x, g=gate, beta=(1 + doubled) / (1 + torch.exp(-logit.double())))
            for name in ("q", "k"):
                squares = (x[name].double() ** 2).sum(-1, keepdim=True)
                plain[name] = x[name].double() / torch.sqrt(squares + 1e-6)
            states = np.zeros((2, 4, 8, 6))
            want = loop(plain, states, [(0, 21), (21, 42)])
            options = {
                "A_log": a_log,
                "dt_bias": bias.flatten() if doubled else bias,
                "lower_bound": lower_bound,
                "use_gate_in_kernel": True,
                "use_qk_l2norm_in_kernel": True,
                "use_beta_sigmoid_in_kernel": True,
                "allow_neg_eigval": doubled,
            }
            for o, final in both(dict(x, g=raw, beta=logit), **options):
                close(o, want, 1e-8)  # softplus is linear from 20 on
                close(final, states, 1e-8)


def test_scale_multiplies_the_normalised_query() -> None:
    x = make()
    options = {"use_qk_l2norm_in_kernel": True}
    one, _ = reference.fused_recurrent_kda(**x, **options, scale=1.0)
    for (o, _), factor in zip(both(x, **options), (8**-0.5, 8**-0.5), strict=True):
        close(o, (one * factor).double().numpy(), 1e-6)
