# SPDX-License-Identifier: Apache-2.0
"""KDA: the cases of the family."""

from __future__ import annotations

from archkey.conformance.cases.kda import models

__all__ = ["CASES"]

CASES = models.CASES
