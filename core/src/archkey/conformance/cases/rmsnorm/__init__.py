# SPDX-License-Identifier: Apache-2.0
"""RMSNorm: the cases of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.conformance.cases.rmsnorm import accuracy, edges, models

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from archkey.conformance.case import Case

__all__ = ["ACCURACY", "CASES", "random"]

ACCURACY = accuracy.CASES
CASES = (*models.CASES, *edges.CASES)


def random(operator: str, size: int = 1) -> SearchStrategy[Case] | None:
    """Random cases of `operator`; needs hypothesis, which is an optional dependency."""
    from archkey.conformance.cases.rmsnorm.strategies import strategy

    return strategy(operator, size)
