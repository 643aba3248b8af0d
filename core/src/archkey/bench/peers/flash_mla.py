# SPDX-License-Identifier: Apache-2.0
"""FlashMLA as DeepSeek ships it: latent attention for Hopper and Blackwell, dense and sparse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flash_mla import flash_mla_sparse_fwd, flash_mla_with_kvcache, get_mla_metadata

from archkey.bench.entrant import Bound
from archkey.bench.peers import _flashmla

__all__ = ["mla_decode", "sparse_mla_decode", "sparse_mla_prefill"]

LIBRARY = _flashmla.Library(flash_mla_with_kvcache, flash_mla_sparse_fwd, get_mla_metadata)


def mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """Dense decode."""
    return _flashmla.decode(LIBRARY, inputs)


def sparse_mla_decode(inputs: Mapping[str, Any]) -> Bound:
    """Sparse decode over packed FP8 caches."""
    return _flashmla.sparse_decode(LIBRARY, inputs)


def sparse_mla_prefill(inputs: Mapping[str, Any]) -> Bound:
    """Sparse prefill."""
    return _flashmla.sparse_prefill(LIBRARY, inputs)
