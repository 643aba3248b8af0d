# SPDX-License-Identifier: Apache-2.0
"""Stands in for vLLM's bridge to FlashInfer, of which its custom operators import one name."""

from __future__ import annotations

from typing import Any, NoReturn


def flashinfer_quant_nvfp4_8x4_sf_layout(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("NVFP4 through FlashInfer is not carried")
