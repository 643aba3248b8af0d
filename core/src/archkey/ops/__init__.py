# SPDX-License-Identifier: Apache-2.0
"""The operators: one file a family, each with contract, Problem and public function."""

from __future__ import annotations

from archkey.ops import attention, kda, mla, mxfp4_linear, rmsnorm, rmsnorm_quant, sparse_mla
from archkey.ops._contract import Operator, Problem, public

__all__ = ["OPERATORS", "Operator", "Problem", "public"]

_FAMILIES = (mla, sparse_mla, rmsnorm, rmsnorm_quant, attention, kda, mxfp4_linear)

OPERATORS: dict[str, Operator] = {
    operator.name: operator for family in _FAMILIES for operator in family.OPERATORS
}
"""Every operator of the core by name."""
