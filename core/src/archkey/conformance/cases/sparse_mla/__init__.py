# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA: the cases of the family."""

from __future__ import annotations

from archkey.conformance.cases.sparse_mla import models

__all__ = ["CASES"]

CASES = models.CASES
