# SPDX-License-Identifier: Apache-2.0
"""fla's own layer on archkey: a prompt of odd length, then 256 steps, against the definition.

fla is no requirement of these tests: where it is installed transformers takes its kernels for
other models too, and none of them runs on a CPU. `make fla` installs it apart and runs this file;
on a card `make gpu` runs it where fla is installed.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from typing import Any

import pytest
import torch

if importlib.util.find_spec("fla") is None:
    pytest.skip("flash-linear-attention is not installed: make fla", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without a GPU fla says so
    import fla.layers.kda as fla_layers
    from fla.ops.kda import chunk_kda, fused_recurrent_kda
    from fla.ops.kda.fused_recurrent import fused_recurrent_kda_fwd
    from fla.ops.kda.gate import fused_kda_gate
    from fla.ops.kda.naive import naive_recurrent_kda

from tests.integrations import _kda
from tests.integrations._fla_layers import HIDDEN, by_definition, make, through

import archkey
from archkey.integrations import fla

STEPS = 256
LAYERS: dict[str, dict[str, Any]] = {
    "heads alike": {},
    "GVA": {"num_v_heads": 6},
    "bounded gate": {"safe_gate": True, "lower_bound": -5.0},
    "reflections, wide values": {"allow_neg_eigval": True, "expand_v": 2.0},
}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
        ],
    ),
]
pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:fla"),
]


@pytest.fixture(autouse=True)
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of archkey's operators were called."""
    names: list[str] = []

    def spied(name: str) -> Any:
        run = getattr(archkey, name)
        return lambda *a, **options: names.append(name) or run(*a, **options)

    for name in ("chunk_kda", "fused_recurrent_kda"):
        monkeypatch.setattr(archkey, name, spied(name))
    return names


def held(device: str, dtype: torch.dtype, parts: Any, bounds: Any, options: Any) -> None:
    """On archkey the layer is as near to float32 by definition as its dtype lets it be."""
    parts = [x.to(device) for x in parts]
    bounds = [None if x is None else x.to(device) for x in bounds]
    with by_definition():
        want = through(make(device, torch.float32, **options), parts, bounds)
        rounded = [x.to(dtype) for x in parts]
        own = through(make(device, dtype, **options), rounded, bounds)
    with fla.routed():
        ours = through(make(device, dtype, **options), rounded, bounds)
    first = parts[0].shape[1]
    for part in (slice(0, first), slice(first, None), slice(-32, None)):
        # Convolutions and norms of a card's Triton are as near to torch's as float32 allows.
        floor = 1e-5 if device == "cpu" else 1e-4
        bound = max(floor, 1.5 * _kda.error(own[:, part], want[:, part]))
        assert _kda.error(ours[:, part], want[:, part]) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_batch(kind: str, dtype: torch.dtype, device: str, called: list[str]) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 131 + STEPS, HIDDEN)
    parts = [x[:, :131], *x[:, 131:].split(1, 1)]
    held(device, dtype, parts, [None] * len(parts), LAYERS[kind])
    assert called == ["chunk_kda", *["fused_recurrent_kda"] * STEPS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", LAYERS)
def test_packed_sequences(kind: str, dtype: torch.dtype, device: str, called: list[str]) -> None:
    """Three sequences in one row; then a step of each at a time."""
    torch.manual_seed(2)
    lengths = (63, 1, 97)
    bounds = [torch.tensor([0, 63, 64, sum(lengths)])]
    parts = [torch.randn(1, sum(lengths), HIDDEN)]
    parts += [torch.randn(1, len(lengths), HIDDEN) for _ in range(STEPS)]
    bounds += [torch.arange(len(lengths) + 1)] * STEPS
    held(device, dtype, parts, bounds, LAYERS[kind])
    assert called == ["chunk_kda", *["fused_recurrent_kda"] * STEPS]


def test_fla_as_installed_has_these_names(device: str) -> None:
    for theirs in (chunk_kda, fused_recurrent_kda, fused_recurrent_kda_fwd, fused_kda_gate):
        theirs = inspect.unwrap(theirs)
        own = inspect.signature(getattr(fla, theirs.__name__)).parameters
        listed = inspect.signature(theirs).parameters
        assert [(p.name, p.default) for p in own.values()] == [
            (p.name, p.default) for p in listed.values()
        ]


def test_the_definition_is_flas(device: str) -> None:
    torch.manual_seed(3)
    q, k = (torch.nn.functional.normalize(torch.randn(2, 9, 2, 64), dim=-1) for _ in range(2))
    v, g, beta = torch.randn(2, 9, 4, 32), -torch.rand(2, 9, 4, 64), torch.rand(2, 9, 4)
    call = [x.to(device) for x in (q, k, v, g, beta)]
    states = torch.randn(2, 4, 64, 32, device=device)
    want = naive_recurrent_kda(*call, initial_state=states, output_final_state=True)
    for pair in zip(_kda.defined(*call, initial_state=states), want, strict=True):
        assert _kda.error(*pair) < 1e-5


def test_the_layer_is_routed(device: str) -> None:
    with fla.routed():
        assert fla_layers.chunk_kda is fla.chunk_kda
        assert fla_layers.fused_recurrent_kda is fla.fused_recurrent_kda
    assert fla_layers.chunk_kda is chunk_kda
