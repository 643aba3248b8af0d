# SPDX-License-Identifier: Apache-2.0
"""One name everywhere: folder, distribution, import package, entry point, target key."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

import archkey
from archkey.hookspecs import GROUP
from archkey.ops import OPERATORS

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
FOLDERS = sorted(path.parent.name for path in PLUGINS.glob("*/pyproject.toml"))


def distribution(folder: str) -> importlib.metadata.Distribution:
    return importlib.metadata.distribution(f"archkey-{folder.replace('_', '-')}")


def test_all_four_are_here() -> None:
    assert FOLDERS == ["cuda_sm100", "cuda_sm90", "rocm_gfx942", "rocm_gfx950"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_target_key(folder: str) -> None:
    assert archkey.Target.parse(folder).key == folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_entry_point_and_import_package(folder: str) -> None:
    (point,) = distribution(folder).entry_points
    assert (point.group, point.name) == (GROUP, folder)
    assert point.value == f"archkey_{folder}.plugin"
    spec = importlib.util.find_spec(f"archkey_{folder}")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).parent == PLUGINS / folder / "src" / f"archkey_{folder}"


def test_versions_agree() -> None:
    assert importlib.metadata.version("archkey") == archkey.__version__


def test_public_names() -> None:
    """Names that users import; to take one away is a breaking change."""
    rest = {
        "ArchkeyError",
        "Capability",
        "Device",
        "FrozenError",
        "Kernel",
        "PrepareError",
        "Session",
        "Target",
        "Unsupported",
        "checkpoint",  # the room, as it is
        "chunk_layout",  # of KDA: what a captured prefill rebuilds before each replay
        "devices",
        "hookimpl",
        "open",
        "override",
        "problems_for",
    }
    assert set(archkey.__all__) == rest | set(OPERATORS)
    assert len(archkey.__all__) == len(set(archkey.__all__))
    for name in archkey.__all__:
        assert getattr(archkey, name) is not None
