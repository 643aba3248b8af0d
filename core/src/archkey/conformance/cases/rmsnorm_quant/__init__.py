# SPDX-License-Identifier: Apache-2.0
"""RMSNorm with quantised outputs: the cases of the family."""

from __future__ import annotations

from archkey.conformance.cases.rmsnorm_quant import models

__all__ = ["CASES"]

CASES = models.CASES
