# SPDX-License-Identifier: Apache-2.0
"""What the tests of the attention family share: valid calls, and a session that records them."""

from __future__ import annotations

from typing import Any

import torch

from archkey.errors import ArgumentTypeError, ArgumentValueError

BF16 = torch.bfloat16
VALUE, TYPE = ArgumentValueError, ArgumentTypeError


class Recorder:
    """A session that keeps the problem and the arguments instead of launching."""

    def __init__(self, fp8: str = "e4m3fn", validate: bool = False) -> None:
        self.fp8, self.validate = fp8, validate
        self.problems: dict[Any, Any] = {}
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
