# SPDX-License-Identifier: Apache-2.0
"""RMSNorm: the cases of the family."""

from __future__ import annotations

from archkey.conformance.cases.rmsnorm import models

__all__ = ["CASES"]

CASES = models.CASES
