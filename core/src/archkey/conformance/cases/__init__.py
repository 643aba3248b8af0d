# SPDX-License-Identifier: Apache-2.0
"""Cases by family, at the shapes of real models."""

from __future__ import annotations

from archkey.conformance.case import Case
from archkey.conformance.cases import attention, kda, mla, rmsnorm, rmsnorm_quant, sparse_mla

_FAMILIES = (mla, sparse_mla, rmsnorm, rmsnorm_quant, attention, kda)

CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)
"""Every case, family by family."""
