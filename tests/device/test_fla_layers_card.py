# SPDX-License-Identifier: Apache-2.0
"""On a card: fla's layer on archkey is as near to the definition as it is on fla's own kernels.

Needs flash-linear-attention 0.6.0 with transformers. Where it is carried to the card:

    python tests/device/carry_peers.py OUT_DIR --only fla
    export TRITON_INTERPRET=0
    tests/device/run.sh OUT_DIR python -m pytest -m gpu tests/device/test_fla_layers_card.py
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from tests.integrations import _kda

from archkey.integrations import fla

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
    pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="no fla is installed"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:fla"),
]

DEVICE = "cuda"
HEADS: dict[str, Any] = {"hidden_size": 1024, "head_dim": 128, "num_heads": 8}  # Kimi-Linear TP4
LAYERS: dict[str, dict[str, Any]] = {
    "Kimi-Linear TP4": HEADS,
    "Kimi-K3, bounded": HEADS | {"safe_gate": True, "lower_bound": -5.0},
    "GVA": HEADS | {"head_dim": 64, "num_v_heads": 32},
}
LENGTHS, STEPS = (1000, 1, 63, 65, 3007), 256


def parts() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A prompt of packed sequences and a token of each at a time; and their cu_seqlens."""
    torch.manual_seed(4)
    ends = torch.tensor([0, *LENGTHS], device=DEVICE).cumsum(0)
    width = HEADS["hidden_size"]
    rows = [
        torch.randn(1, n, width, device=DEVICE) for n in (sum(LENGTHS), *(len(LENGTHS),) * STEPS)
    ]
    return rows, [ends, *[torch.arange(len(LENGTHS) + 1, device=DEVICE)] * STEPS]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_prompt_and_then_256_steps(kind: str) -> None:
    from tests.integrations._fla_layers import by_definition, make, through

    rows, bounds = parts()
    with by_definition():
        want = through(make(DEVICE, torch.float32, **LAYERS[kind]), rows, bounds)
    rounded = [x.bfloat16() for x in rows]
    theirs = through(make(DEVICE, torch.bfloat16, **LAYERS[kind]), rounded, bounds)
    with fla.routed():
        ours = through(make(DEVICE, torch.bfloat16, **LAYERS[kind]), rounded, bounds)
    first = sum(LENGTHS)
    for part in (slice(0, 1000), slice(first - 3007, first), slice(first, None), slice(-160, None)):
        bound = 1.2 * _kda.error(theirs[:, part], want[:, part])
        assert _kda.error(ours[:, part], want[:, part]) <= bound
