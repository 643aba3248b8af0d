# SPDX-License-Identifier: Apache-2.0
"""MLA: the cases of the family."""

from __future__ import annotations

from archkey.conformance.cases.mla import models

__all__ = ["CASES"]

CASES = models.CASES
