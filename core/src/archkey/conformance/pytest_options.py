# SPDX-License-Identifier: Apache-2.0
"""Options of the exam under pytest, as `archkey check` has them.

    python -m pytest --pyargs archkey.conformance --archkey acme_x1

pytest asks no conftest of a module named with --pyargs for options, so this is an entry point of
the group `pytest11`; it is loaded with every pytest and imports nothing.
"""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """The prefix keeps the names apart from those of other plugins."""
    group = parser.getgroup("archkey", "the exam of a target's or a plugin's kernels")
    add = group.addoption
    add("--archkey", metavar="TARGET|PLUGIN", help="who is examined; default: this machine")
    add("--archkey-level", action="append", default=[], help="only this level; repeatable")
    add("--archkey-operator", action="append", default=[], help="only this one; repeatable")
    add("--archkey-full", action="store_true", help="interpret sizes of real models too: slow")
    add("--archkey-examples", type=int, default=20, help="random problems a kernel [20]")
    add("--archkey-seed", type=int, default=0, help="of all random numbers [0]")
    add("--archkey-timeout", type=float, default=600.0, help="seconds a case, 0: no limit [600]")
