# SPDX-License-Identifier: Apache-2.0
"""The numbers that the bodies of sparse MLA take; nothing here is imported from triton."""

from __future__ import annotations

from dataclasses import dataclass

from archkey.kernels.mla_decode_tunings import MlaDecodeTuning

__all__ = ["SparseMlaTuning"]


@dataclass(frozen=True)
class SparseMlaTuning(MlaDecodeTuning):
    """How a sparse body works, in the fields of `MlaDecodeTuning`; its rows are a token's heads."""
