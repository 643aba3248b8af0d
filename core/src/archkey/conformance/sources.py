# SPDX-License-Identifier: Apache-2.0
"""The source that a kernel's result depends on, found without importing it.

Evidence is about code, so it carries a digest of that code: of the kernel's own data, of its
builder and of all that its builder imports from the shared bodies, the number formats or its own
distribution, and of the reference it is judged by. When one of them changes, evidence is stale.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from archkey.kernel import Kernel
from archkey.ops import Operator
from archkey.tuning import Table

__all__ = ["closure", "digest", "has_triton", "imports"]

_ROOMS = ("archkey.kernels", "archkey.formats", "archkey.reference")
"""What is followed inside the core. The rooms that decide and launch are the tests' business."""


def digest(kernel: Kernel, operator: Operator) -> str:
    """SHA-256 over all that decides the results of `kernel`, as hexadecimal digits."""
    data = (kernel.operator, kernel.name, kernel.build, kernel.accepts, kernel.needs)
    text = [repr((*data, kernel.requires, _numbers(kernel.tuning)))]
    for name in sorted(closure(kernel, operator)):
        text += [name, _read(name)]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _numbers(table: Table | None) -> Any:
    """What of a table decides results.

    Where its numbers were measured does not, nor what a row may spill, which is a judge's bound.
    """
    if table is None:
        return None
    return [(row.values, row.when, row.requires) for row in table.rows]


def closure(kernel: Kernel, operator: Operator) -> set[str]:
    """Modules of the kernel and of its reference, by name."""
    return _reach(kernel.build) | _reach(operator.reference)


def imports(kernel: Kernel) -> set[str]:
    """Everything that the kernel's code imports, also inside functions: "triton.language"."""
    return {name for module in _reach(kernel.build) for name in _imported(module)}


def has_triton(kernel: Kernel) -> bool:
    """Whether the kernel's code imports Triton: what is compiled of it is kept on disk."""
    return any(name.partition(".")[0] == "triton" for name in imports(kernel))


def _reach(path: str) -> set[str]:
    """Modules that `module:attribute` leads to."""
    module, found = path.partition(":")[0], set[str]()
    _follow(module, module.partition(".")[0], found)
    return found


def _follow(module: str, home: str, found: set[str]) -> None:
    if module in found or _path(module) is None:
        return
    found.add(module)
    own = (home,) if home != "archkey" else ()
    for name in _imported(module):
        if any(name == room or name.startswith(f"{room}.") for room in (*_ROOMS, *own)):
            # "from a.b import c": c may be a module or a name in one.
            _follow(name if _path(name) else name.rpartition(".")[0], home, found)


@functools.cache
def _imported(module: str) -> frozenset[str]:
    names: set[str] = set()
    package = module if _is_package(module) else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(_read(module))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{up}.{base}".rstrip(".")
            names.update(f"{base}.{alias.name}" for alias in node.names)
            names.add(base)
    return frozenset(names)


def _read(module: str) -> str:
    path = _path(module)
    return "\n".join(path.read_text("utf-8").splitlines()) if path else ""


def _is_package(module: str) -> bool:
    path = _path(module)
    return path is not None and path.name == "__init__.py"


@functools.cache
def _path(module: str) -> Path | None:
    """The module's Python file; parents are packages of the same tree and are not imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return _python(spec.origin)
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
    return None


def _python(origin: str | None) -> Path | None:
    return Path(origin) if origin and origin.endswith(".py") else None
