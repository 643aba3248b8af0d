# SPDX-License-Identifier: Apache-2.0
"""Unified attention and the builders of its page tables: the cases of the family."""

from __future__ import annotations

from archkey.conformance.cases.attention import models

__all__ = ["CASES"]

CASES = models.CASES
