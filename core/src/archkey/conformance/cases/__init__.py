# SPDX-License-Identifier: Apache-2.0
"""Cases by family, at the shapes of real models."""

from __future__ import annotations

from archkey.conformance.case import Case
from archkey.conformance.cases import rmsnorm, rmsnorm_quant

CASES: tuple[Case, ...] = (*rmsnorm.CASES, *rmsnorm_quant.CASES)
"""Every case, family by family."""
