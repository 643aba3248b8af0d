# SPDX-License-Identifier: Apache-2.0
"""Tells a kernel that refuses a problem, as it may, from one that fails at it."""

from __future__ import annotations

from archkey.errors import Unsupported
from archkey.selection import Code, Decision

__all__ = ["against", "refused"]


def refused(failure: BaseException, kernel: str) -> str:
    """Why the kernel that was asked for by id refused the problem; "" if it did not refuse."""
    if not isinstance(failure, Unsupported) or failure.decision is None:
        return ""
    return against(failure.decision, kernel)


def against(decision: Decision, kernel: str) -> str:
    """The reason against `kernel`; "" if there is none or it could not be built."""
    for rejection in decision.rejected:
        if rejection.kernel == kernel and rejection.code is not Code.BUILD:
            return f"not accepted: {rejection.required}; found {rejection.found}"
    return ""
