# SPDX-License-Identifier: Apache-2.0
"""Rules about the source that no tool checks for us."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core/src/archkey"
SHIPPED = sorted([*CORE.rglob("*.py"), *ROOT.glob("plugins/*/src/**/*.py")])
BODIES = sorted((CORE / "kernels").rglob("*.py"))

# The way of the data, first to last. A room imports rooms before it, when it is imported itself.
ROOMS = (
    *(
        "errors",
        "_torch",
        "settings",
        "_files",
        "_process",
        "_progress",
        "conditions",
        "requirements",
        "tuning",
        "tables",
    ),
    *("target", "probe", "capabilities", "ops", "formats", "kernel", "hookspecs"),
    *(
        "_admission",
        "plugins",
        "selection",
        "explain",
        "artefacts",
        "_body",
        "compilation",
        "launch",
        "locate",
        "preparing",
        "_prepare_pool",
        "_listener",
        "_session_parts",
        "session",
        "diagnosis",
        "_prepare_worker",
    ),
    *(
        "reference",
        "kernels",
        "checkpoint",
        "models",
        "integrations",
        "conformance",
        "bench",
        "scaffold",
        "cli",
    ),
    "__main__",
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(node: ast.AST, *, lazily: bool) -> Iterator[str]:
    """Modules that `node` imports at run time; with `lazily`, also those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports hide the room"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imported(ast.Module(child.orelse, []), lazily=lazily)
        elif lazily or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(child, lazily=lazily)


def imports(path: Path, *, lazily: bool) -> set[str]:
    return set(imported(ast.parse(path.read_text()), lazily=lazily))


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_head_and_length(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
    assert lines[1].startswith('"""'), "a module says what it is for"
    assert len(lines) <= 400, "split it: one file, one thing"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=name)
def test_head_of_tests(path: Path) -> None:
    assert path.read_text().startswith('# SPDX-License-Identifier: Apache-2.0\n"""')


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=name)
def test_rooms_import_only_rooms_before_them(path: Path) -> None:
    room = path.relative_to(CORE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    used = {module.split(".")[1] for module in imports(path, lazily=False) if "archkey." in module}
    before = {*ROOMS[: ROOMS.index(room)], room, "__version__"}
    assert used <= before, f"{room} may not import {', '.join(sorted(used - before))}"


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_triton_is_imported_by_kernels_alone(path: Path) -> None:
    allowed = "kernels" in path.parts or path in [
        CORE / name
        for name in (
            *("_body.py", "compilation.py", "launch.py"),
            "conformance/emulation/driver.py",  # stands in for one of Triton's own drivers
        )
    ]
    modules = {module.partition(".")[0] for module in imports(path, lazily=True)}
    assert allowed or "triton" not in modules


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_transformers_is_imported_by_its_integration_alone(path: Path) -> None:
    room = CORE / "integrations/transformers"
    modules = imports(path, lazily=True)
    assert room in path.parents or not {
        module
        for module in modules
        if module.partition(".")[0] == "transformers"
        or module.startswith("archkey.integrations.transformers")
    }


@pytest.mark.parametrize("path", BODIES, ids=name)
def test_bodies_know_nothing_of_devices_and_choices(path: Path) -> None:
    above = {"probe", "plugins", "selection", "session"}
    assert not above & {m.split(".")[1] for m in imports(path, lazily=True) if "archkey." in m}


@pytest.mark.parametrize("path", BODIES, ids=name)
def test_bodies_name_no_architecture(path: Path) -> None:
    words = r"\b(sm_?\d{2,3}[af]?|gfx\w+|hopper|blackwell|cdna\d?|[hb][123]00|mi3\d\d\w?)\b"
    assert not re.findall(words, path.read_text().lower())
