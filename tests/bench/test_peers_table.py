# SPDX-License-Identifier: Apache-2.0
"""The table of peers against their adapters, which are read and not imported."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from archkey.bench.peers import PEERS, standing
from archkey.ops import OPERATORS

ROUTES = [(peer, route) for peer in PEERS for route in peer.routes]
each_peer = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
each_route = pytest.mark.parametrize(
    ("peer", "route"), ROUTES, ids=lambda x: getattr(x, "function", x.name if x in PEERS else "")
)


@cache
def source(module: str) -> ast.Module:
    """Of a module whose library may be missing; its package has to be importable."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


@cache
def bindings(module: str) -> dict[str, Any]:
    """What the names of a module stand for: its own functions, or (module, name) in archkey."""
    found: dict[str, Any] = {}
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("archkey."):
            found |= {x.asname or x.name: (node.module, x.name) for x in node.names}
    return found | {x.name: x for x in source(module).body if isinstance(x, ast.FunctionDef)}


def defined(module: str, name: str) -> tuple[str, ast.FunctionDef] | None:
    """The function that a name of the module stands for, and the module that defines it."""
    found = bindings(module).get(name)
    if isinstance(found, tuple):
        return defined(*found)
    return None if found is None else (module, found)


def called(module: str, function: ast.FunctionDef) -> list[tuple[str, ast.FunctionDef]]:
    """The functions of archkey that a function calls by name, or as `module.name`."""
    found = []
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            found.append(defined(module, node.func.id))
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            origin = bindings(module).get(node.func.value.id)
            if isinstance(origin, tuple):
                found.append(defined(".".join(origin), node.func.attr))
    return [x for x in found if x is not None]


def refuses_the_unknown(module: str, name: str) -> bool:
    """Whether the adapter, or a function of archkey on its way, calls `only`."""
    start = defined(module, name)
    assert start is not None
    seen, waiting = set(), [start]
    while waiting:
        where, function = waiting.pop()
        if (where, function.name) == ("archkey.bench.entrant", "only"):
            return True
        if (where, function.name) not in seen:
            seen.add((where, function.name))
            waiting += called(where, function)
    return False


def exported(module: str) -> set[str]:
    (names,) = (
        node.value
        for node in source(module).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return set(ast.literal_eval(names))


def test_names_are_unique() -> None:
    names = [peer.name for peer in PEERS]
    assert len(set(names)) == len(names)
    entrants = [(peer.name, route.operator, route.label) for peer, route in ROUTES]
    assert len(set(entrants)) == len(entrants)


@each_peer
def test_an_entry_says_where_the_library_comes_from(peer: Any) -> None:
    assert peer.title and peer.packages and peer.distributions
    assert peer.install and peer.home.startswith("https://")


@each_peer
def test_each_adapter_is_a_route(peer: Any) -> None:
    assert {route.function for route in peer.routes} == exported(peer.module)


@each_route
def test_each_route_has_an_operator_and_an_adapter(peer: Any, route: Any) -> None:
    assert route.operator in OPERATORS
    assert route.function.startswith(route.operator)
    where, function = defined(peer.module, route.function) or ("", None)
    assert where.startswith("archkey.bench.peers.") and function is not None
    assert function.args.args[0].arg == "inputs" and ast.unparse(function.returns) == "Bound"


@each_route
def test_each_adapter_refuses_what_it_does_not_know(peer: Any, route: Any) -> None:
    assert refuses_the_unknown(peer.module, route.function)


def test_an_adapter_that_refuses_nothing_is_found_out() -> None:
    assert not refuses_the_unknown("tests.bench._small", "right")


def test_standing() -> None:
    by_name = {peer.name: standing(peer) for peer in PEERS}
    assert by_name["torch"].state == "installed" and by_name["torch"].versions
    fa3 = by_name["fa3"]
    if fa3.state == "not installed":
        assert "flash_attn_interface or vllm" in fa3.reason
