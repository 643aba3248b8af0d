# SPDX-License-Identifier: Apache-2.0
"""One implementation of an operator, described without importing it.

A plugin lists its kernels best first. Everything that decides whether a kernel may run is data
here; the code is named as `module:attribute` and imported when the kernel is first built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archkey.conditions import Condition
from archkey.requirements import Requirement
from archkey.tuning import Space, Table

if TYPE_CHECKING:
    from archkey.launch import Build

__all__ = ["Kernel", "Run", "resolve"]

Run = Callable[..., None]
"""A kernel bound to a problem: `run(*inputs, *outputs)` in the operator's order."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of `operator`.

    operator  name of the operator, e.g. "rmsnorm"
    name      unique among this plugin's kernels of the operator, by provenance: "triton", "torch";
              letters, digits, `.`, `_`, `-`
    build     "module:attribute" of a `Builder`: (problem, Build) -> run
    accepts   conditions on fields of the operator's Problem; none means every problem
    needs     conditions on capabilities, e.g. `is_("tcgen05", True)`
    requires  distributions it rests on, with known-bad versions; each that is violated disables it
    tuning    numbers for its body, or None
    space     which numbers `archkey tune` may try instead, or None
    plugin    name of the plugin that supplied it; filled in when the plugin is loaded
    """

    operator: str
    name: str
    build: str
    accepts: tuple[Condition, ...] = ()
    needs: tuple[Condition, ...] = ()
    requires: tuple[Requirement, ...] = ()
    tuning: Table | None = None
    summary: str = ""
    plugin: str = ""
    space: Space | None = None

    @property
    def id(self) -> str:
        """`plugin:name`, the name used in decisions, overrides and reports."""
        return f"{self.plugin}:{self.name}"

    def named(self, name: str) -> bool:
        """Whether a user who wrote `name` means this kernel: its name or its id."""
        return name in (self.name, self.id)

    def rules(self) -> tuple[Requirement, ...]:
        """All rules on installed distributions: its own and those of its tuning's rows."""
        rows = self.tuning.rows if self.tuning else ()
        return (*self.requires, *(rule for row in rows for rule in row.requires))

    def builder(self) -> Callable[[Any, Build], Run]:
        """Import the code. May raise whatever the import raises."""
        return resolve(self.build)  # type: ignore[no-any-return]


def resolve(path: str) -> Any:
    """The object named by `module:attribute`."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
