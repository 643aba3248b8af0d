# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA: the cases of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.conformance.cases.sparse_mla import accuracy, edges, invariant, models

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from archkey.conformance.case import Case

__all__ = ["ACCURACY", "CASES", "random"]

ACCURACY = accuracy.CASES
CASES = (*models.CASES, *edges.CASES, *invariant.CASES)


def random(operator: str, size: int = 1) -> SearchStrategy[Case] | None:
    """Random cases of `operator`; needs hypothesis, which is an optional dependency."""
    from archkey.conformance.cases.sparse_mla.strategies import strategy

    return strategy(operator, size)
