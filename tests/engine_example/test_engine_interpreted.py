# SPDX-License-Identifier: Apache-2.0
"""The engine on the kernels of GPUs, in Triton's interpreter: sessions that are pretended.

Tokens only. Equal bits are for a card to show: numpy, which multiplies the tiles here, gives a row
other bits in another place of its tile.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.engine_example._dense import MIXED, SIZES, dense_greedy, prompts
from tests.engine_example.engine import Engine
from tests.engine_example.model import random_model

import archkey

pytestmark = [
    pytest.mark.slow,
    # Of Triton's interpreter: a loop's bound is read from an array, and padding computes with inf.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

TARGET = random_model(MIXED, 2)
LENGTHS = (25, 5)
NEW = 5


@pytest.mark.parametrize("device", ["cuda_sm90", "rocm_gfx950"])
def test_tokens_on_the_kernels_of_a_gpu(device: str) -> None:
    sizes = replace(SIZES, graphs=False, draft_tokens=3)
    engine = Engine(TARGET, archkey.open(device), sizes, draft=TARGET)
    assert engine.degraded == []
    wanted = [dense_greedy(TARGET, prompt, NEW) for prompt in prompts(*LENGTHS)]
    assert engine.generate(prompts(*LENGTHS), NEW) == wanted
