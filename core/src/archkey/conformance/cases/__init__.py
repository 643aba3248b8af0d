# SPDX-License-Identifier: Apache-2.0
"""Cases, found through their operator: `Operator.cases` names a module, a vendor's own too.

The module has `CASES`, a tuple of `Case`. It may have `ACCURACY`, a tuple of `AccuracyCase` for
level accuracy, and `random(operator, size)`, which gives a hypothesis strategy of Cases.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from archkey.conformance.case import Case
from archkey.errors import PluginError, describe

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from archkey.conformance.accuracy import AccuracyCase
    from archkey.ops import Operator

__all__ = ["accuracy_of", "cases_of", "random_of"]


def cases_of(operator: Operator) -> tuple[Case, ...]:
    """The listed cases of `operator`; none if it names no module."""
    if not operator.cases:
        return ()
    module = _module(operator)
    return tuple(case for case in module.CASES if case.operator == operator.name)


def accuracy_of(operator: Operator) -> tuple[AccuracyCase, ...]:
    """The cases of level accuracy of `operator`; none if its module has none."""
    module = _module(operator) if operator.cases else None
    return tuple(c for c in getattr(module, "ACCURACY", ()) if c.operator == operator.name)


def random_of(operator: Operator, size: int = 1) -> SearchStrategy[Case] | None:
    """Random cases of `operator`; None if its module has none. Needs hypothesis.

    size: 1 for what an interpreter works through in a second, more on real hardware.
    """
    module = _module(operator) if operator.cases else None
    make = getattr(module, "random", None)
    return make(operator.name, size) if make else None


def _module(operator: Operator) -> Any:
    """The module of its cases. PluginError if it cannot be imported or has no CASES."""
    try:
        module = importlib.import_module(operator.cases)
        tuple(module.CASES)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"the cases of {operator.name} ({operator.cases}) cannot be loaded: {describe(error)}"
        ) from error
    return module
