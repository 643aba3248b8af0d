# SPDX-License-Identifier: Apache-2.0
"""Cases by family, at the shapes of real models."""

from __future__ import annotations

from archkey.conformance.case import Case
from archkey.conformance.cases import mla, rmsnorm, rmsnorm_quant, sparse_mla

CASES: tuple[Case, ...] = (*mla.CASES, *sparse_mla.CASES, *rmsnorm.CASES, *rmsnorm_quant.CASES)
"""Every case, family by family."""
