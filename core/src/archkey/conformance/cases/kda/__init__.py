# SPDX-License-Identifier: Apache-2.0
"""KDA: the cases of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.conformance.cases.kda import accuracy, edges, edges_decode, invariant, long, models

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from archkey.conformance.case import Case

__all__ = ["ACCURACY", "CASES", "random"]

CASES = (*models.CASES, *edges.CASES, *edges_decode.CASES, *invariant.CASES, *long.CASES)
ACCURACY = accuracy.CASES


def random(operator: str, size: int = 1) -> SearchStrategy[Case] | None:
    """Random cases of `operator`; needs hypothesis, which is an optional dependency."""
    from archkey.conformance.cases.kda.strategies import strategy

    return strategy(operator, size)
