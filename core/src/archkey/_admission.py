# SPDX-License-Identifier: Apache-2.0
"""What a plugin registers, checked before any of it is used.

A misspelt name in a kernel's data would not raise later: its condition would silently never
refuse. So every name must mean something here, and every object is plain data of our own types.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from archkey import hookspecs
from archkey.capabilities import VOCABULARY, Capability, check
from archkey.conditions import Condition
from archkey.errors import PluginError, UnknownName
from archkey.kernel import Kernel
from archkey.ops import Operator
from archkey.requirements import Requirement
from archkey.tables import numbers
from archkey.tuning import Row, Space, Table

__all__ = ["check_api", "check_capabilities", "check_kernels", "check_operator", "results"]

T = TypeVar("T")

_OPERATOR = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_KERNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_api(module: Any, who: str) -> None:
    """The plugin `who` supports this version of the door."""
    span: Any = getattr(module, "ARCHKEY_API", None)
    ours = hookspecs.API_VERSION
    pair = isinstance(span, tuple) and [type(n) for n in span] == [int, int]
    if not pair or span[0] > span[1]:
        raise PluginError(
            f"{who} does not say which API it supports: ARCHKEY_API must be the lowest and the "
            f"highest version, such as ({ours}, {ours}), found {span!r:.200}"
        )
    low, high = span
    if not low <= ours <= high:
        older = "archkey" if ours < low else "the plugin"
        raise PluginError(f"{who} supports API {low} to {high}, not {ours}; upgrade {older}")


def results(calls: list[Any], kind: type[T]) -> tuple[T, ...]:
    """All that the hook of one plugin gave; pluggy returns a list with its one result.

    A subclass is refused: it could answer otherwise when it is asked again.
    """
    items = tuple(item for result in calls for item in result)
    for item in items:
        if type(item) is not kind:
            raise PluginError(f"a hook must give objects of {kind.__name__}, found {item!r:.200}")
    return items


def check_operator(operator: Operator, known: dict[str, Operator]) -> None:
    """Its name is free, and its Problem tells Problems of different operators apart."""
    name = operator.name
    if known.get(name, operator) != operator:
        raise PluginError(f"operator {name!r} exists already; give it another name")
    if name not in known and not _OPERATOR.fullmatch(name):
        raise PluginError(f"operator {name!r}: a new operator's name is like 'vendor_name'")
    # Problems are tuples, and equal tuples are one key: the name must be in the tuple.
    if getattr(operator.problem, "_field_defaults", {}).get("operator") != name:
        raise PluginError(
            f"operator {name!r}: its Problem must be a NamedTuple whose last field is "
            f"`operator: str = {name!r}`"
        )


def check_capabilities(facts: tuple[Capability, ...]) -> None:
    """Each is in the vocabulary, or a vendor's own, and stated once."""
    for fact in facts:
        check(fact)
    _no_twins("capabilities", [fact.name for fact in facts])


def check_kernels(
    kernels: tuple[Kernel, ...], operators: dict[str, Operator], facts: set[str]
) -> None:
    """All that they name exists: operators, fields of Problems, capabilities (`facts` and ours)."""
    for kernel in kernels:
        _check_shape(kernel)
        if kernel.operator not in operators:
            hint = f"Kernel {kernel.name!r} names it."
            raise UnknownName("operator", kernel.operator, operators, hint)
        fields = _fields_of(operators[kernel.operator].problem)
        rows = kernel.tuning.rows if kernel.tuning else ()
        for condition in (*kernel.accepts, *(c for row in rows for c in row.when)):
            if condition.field not in fields:
                what = f"field of {kernel.operator}'s Problem"
                raise UnknownName(what, condition.field, fields, f"In kernel {kernel.id}.")
        for need in kernel.needs:
            if need.field not in VOCABULARY and need.field not in facts:
                known = {*VOCABULARY, *facts}
                raise UnknownName("capability", need.field, known, f"In kernel {kernel.id}.")
    _no_twins("kernels", [f"{kernel.operator} {kernel.name}" for kernel in kernels])


def _fields_of(problem: type) -> tuple[str, ...]:
    """What a condition may name: the fields of a Problem, and what it computes from them."""
    computed = (name for name, value in vars(problem).items() if isinstance(value, property))
    return (*problem._fields, *computed)  # type: ignore[attr-defined]


def _check_shape(kernel: Kernel) -> None:
    """A name that cannot be taken for another plugin's, a build path, and tuples of our types."""
    name, build = kernel.name, kernel.build
    if not _KERNEL.fullmatch(name):
        raise PluginError(f"kernel {name!r:.100}: a name is of letters, digits, '.', '_' and '-'")
    if build.count(":") != 1:
        raise PluginError(f"kernel {name!r}: build must be 'module:attribute', is {build!r:.200}")
    parts = (("accepts", Condition), ("needs", Condition), ("requires", Requirement))
    _check_parts(kernel, parts, f"kernel {name!r}")
    if kernel.tuning is None:
        return
    if type(kernel.tuning) is not Table:
        raise PluginError(f"kernel {name!r}: tuning must be a Table, is {kernel.tuning!r:.200}")
    for number, row in enumerate(kernel.tuning.rows, 1):
        where = f"kernel {name!r}, row {number} of its tuning"
        if type(row) is not Row:
            raise PluginError(f"{where}: it must be a Row, is {row!r:.200}")
        _check_parts(row, (("when", Condition), ("requires", Requirement)), where)
    if kernel.space is not None:
        _check_space(kernel.space, numbers(kernel.tuning.rows[0].values), f"kernel {name!r}")


def _check_space(space: Space, fields: dict[str, Any], where: str) -> None:
    """What may be tried are numbers that the values have."""
    if type(space) is not Space:
        raise PluginError(f"{where}: space must be a Space, is {space!r:.200}")
    for name in space.fields:
        if name not in fields:
            raise UnknownName("number of its tuning", name, fields, f"In the space of {where}.")


def _check_parts(owner: Kernel | Row, parts: tuple[tuple[str, type], ...], where: str) -> None:
    """Each named part of `owner` is a tuple of that very type."""
    for part, kind in parts:
        listed = getattr(owner, part)
        if type(listed) is not tuple or any(type(item) is not kind for item in listed):
            what = f"{part} must be a tuple of {kind.__name__}"
            raise PluginError(f"{where}: {what}, found {listed!r:.200}")


def _no_twins(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PluginError(f"two {what} under one name: {', '.join(twice)}")
